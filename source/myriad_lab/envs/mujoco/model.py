"""A MuJoCo model from a robot and an arena."""

from __future__ import annotations

from importlib.resources import files

import numpy as np

from myriad_lab.envs.arena import Arena
from myriad_lab.envs.mujoco.compat import mujoco
from myriad_lab.envs.robot import RobotCfg
from myriad_lab.errors import ConfigurationError

_STATIC_CONTACT = {"contype": 1, "conaffinity": 0}
"""Static geoms collide with robots (contype 0, conaffinity 1) and with nothing else."""
_FRICTION = (1.0, 0.01, 0.001)
_BASE_THICKNESS = 1.0
"""Depth of a height field below its zero level [m]."""


def load_robot_spec(robot: RobotCfg) -> mujoco.MjSpec:
    """Parse the MJCF of ``robot``.

    Raises:
        ConfigurationError: The robot has no MJCF, or the resource is not there or not valid.
    """
    if robot.mjcf is None:
        raise ConfigurationError(f"Robot {robot.name!r} has no MJCF; the mujoco backend cannot build it.")
    package, _, name = robot.mjcf.partition(":")
    try:
        return mujoco.MjSpec.from_string(files(package).joinpath(name).read_text())
    except (ModuleNotFoundError, FileNotFoundError, ValueError) as error:
        raise ConfigurationError(f"Robot {robot.name!r}: cannot load the MJCF {robot.mjcf!r}: {error}") from error


def build_spec(robot: RobotCfg, arena: Arena) -> mujoco.MjSpec:
    """Return the scene: the robot with its actuators and sensors, the ground and the walls."""
    spec = load_robot_spec(robot)
    set_options(spec, robot.physics_dt)
    add_arena(spec, arena)
    _add_actuators(spec, robot)
    _add_sensors(spec, robot)
    return spec


def build_model(robot: RobotCfg, arena: Arena) -> mujoco.MjModel:
    """Compile the scene and check that its joints are the robot's, in order.

    Raises:
        ConfigurationError: The MJCF and the robot's configuration disagree.
    """
    model = build_spec(robot, arena).compile()
    names = tuple(model.joint(i).name for i in range(model.njnt))
    if model.jnt_type[0] != mujoco.mjtJoint.mjJNT_FREE or names[1:] != robot.joint_names:
        raise ConfigurationError(
            f"Robot {robot.name!r}: the MJCF must start with a free joint followed by joint_names {robot.joint_names}; "
            f"it has {names}."
        )
    return model


def set_options(spec: mujoco.MjSpec, physics_dt: float) -> None:
    """Set time step, integrator and solver; a broken state must stay visible, so MuJoCo's own reset is off."""
    option = spec.option
    option.timestep = physics_dt
    option.integrator = mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    option.solver = mujoco.mjtSolver.mjSOL_NEWTON
    option.cone = mujoco.mjtCone.mjCONE_PYRAMIDAL
    option.disableflags |= mujoco.mjtDisableBit.mjDSBL_AUTORESET


def add_arena(spec: mujoco.MjSpec, arena: Arena) -> None:
    """Spawn the ground (a plane or a height field) and the boxes as static geoms."""
    world = spec.worldbody
    contact = {**_STATIC_CONTACT, "friction": _FRICTION}
    if arena.height_field is None:
        plane = mujoco.mjtGeom.mjGEOM_PLANE
        world.add_geom(name="ground", type=plane, size=(0, 0, 1), rgba=(0.8, 0.8, 0.8, 1), **contact)
    else:
        heights = np.asarray(arena.height_field.heights, dtype=np.float64)
        top = max(float(heights.max()), 1e-3)
        half_x, half_y = arena.half_extent
        spec.add_hfield(
            name="terrain",
            size=(half_x, half_y, top, _BASE_THICKNESS),
            nrow=heights.shape[0],
            ncol=heights.shape[1],
            userdata=(heights / top).flatten(),
        )
        world.add_geom(
            name="ground",
            type=mujoco.mjtGeom.mjGEOM_HFIELD,
            hfieldname="terrain",
            pos=(*arena.middle, 0.0),
            rgba=(0.7, 0.7, 0.72, 1),
            **contact,
        )
    for index, box in enumerate(arena.boxes):
        world.add_geom(
            name=f"box_{index}",
            type=mujoco.mjtGeom.mjGEOM_BOX,
            pos=(*box.center, box.height / 2),
            size=(*box.half_size, box.height / 2),
            rgba=(0.45, 0.5, 0.6, 1),
            **contact,
        )


def contact_sensor_name(body: str) -> str:
    """Return the name of the sensor that measures the contact force on ``body``."""
    return f"contact_{body}"


def torque_sensor_name(joint: str) -> str:
    """Return the name of the sensor that measures the actuator torque on ``joint``."""
    return f"torque_{joint}"


def _add_actuators(spec: mujoco.MjSpec, robot: RobotCfg) -> None:
    """Add one motor or one position servo per action; their gains come from the robot's configuration."""
    gains = dict(zip(robot.joint_names, zip(robot.stiffness, robot.damping, strict=True), strict=False))
    for name in robot.action.names:
        if spec.joint(name) is None:
            raise ConfigurationError(f"Robot {robot.name!r}: action {name!r} names no joint of {robot.mjcf!r}.")
        actuator = spec.add_actuator(name=name, target=name, trntype=mujoco.mjtTrn.mjTRN_JOINT)
        if robot.action.kind == "torque":
            actuator.set_to_motor()
        elif robot.action.kind == "position":
            if name not in gains:
                raise ConfigurationError(
                    f"Robot {robot.name!r}: position control of {name!r} needs stiffness and damping."
                )
            stiffness, damping = gains[name]
            actuator.set_to_position(kp=stiffness, kv=damping)
        else:
            raise ConfigurationError(
                f"Robot {robot.name!r}: the mujoco backend drives torque or position, not {robot.action.kind!r}."
            )


def _add_sensors(spec: mujoco.MjSpec, robot: RobotCfg) -> None:
    """Add the net contact force of each sensed body and, under position control, the torque of each joint."""
    for body in robot.contact_bodies:
        spec.add_sensor(
            name=contact_sensor_name(body),
            type=mujoco.mjtSensor.mjSENS_CONTACT,
            objtype=mujoco.mjtObj.mjOBJ_BODY,
            objname=body,
            intprm=_net_force_params(),
        )
    if robot.action.kind == "position":
        for joint in robot.joint_names:
            spec.add_sensor(
                name=torque_sensor_name(joint),
                type=mujoco.mjtSensor.mjSENS_JOINTACTFRC,
                objtype=mujoco.mjtObj.mjOBJ_JOINT,
                objname=joint,
            )


def _net_force_params() -> tuple[int, int, int]:
    """Return data specification, reduction and slots of a contact sensor that reports the net force [N]."""
    net_force = 3
    return 1 << mujoco.mjtConDataField.mjCONDATA_FORCE.value, net_force, 1
