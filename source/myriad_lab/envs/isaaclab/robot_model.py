"""What a robot's MJCF says about its joints; needs MuJoCo, and no USD, which configurations must not load."""

from __future__ import annotations

import math
from dataclasses import dataclass

import mujoco

from myriad_lab.envs.mujoco.model import load_robot_spec
from myriad_lab.envs.robot import RobotCfg
from myriad_lab.errors import ConfigurationError


@dataclass(frozen=True)
class JointDrive:
    """What acts on a joint beside the policy's torque: springs and dampers of the MJCF, or the servo of the robot."""

    stiffness: float
    """Stiffness [N m/rad] towards ``rest``, or towards the policy's target under position control."""
    damping: float
    """Damping [N m s/rad]."""
    armature: float
    """Inertia of the rotor seen from the joint [kg m^2]."""
    friction: float
    """Dry friction [N m]."""
    rest: float
    """Angle where the spring is slack [rad]; under position control, the default pose."""
    max_torque: float
    """Bound on the torque of a servo [N m]; infinite where the policy commands torques, which are in bounds already."""


def compile_robot(robot: RobotCfg) -> mujoco.MjModel:
    """Return the MuJoCo model of the robot alone, without ground and actuators.

    Raises:
        ConfigurationError: The MJCF cannot be loaded, or is not a free body with the hinges ``robot.joint_names``.
    """
    model = load_robot_spec(robot).compile()
    names = tuple(model.joint(i).name for i in range(model.njnt))
    kinds = [mujoco.mjtJoint(kind) for kind in model.jnt_type]
    wanted = [mujoco.mjtJoint.mjJNT_FREE] + [mujoco.mjtJoint.mjJNT_HINGE] * len(robot.joint_names)
    if kinds != wanted or names[1:] != robot.joint_names or model.qpos0[7:].any():
        raise ConfigurationError(
            f"Robot {robot.name!r}: the MJCF must be a free joint followed by the hinges joint_names "
            f"{robot.joint_names}, all of reference angle 0; it has {names}."
        )
    return model


def joint_drives(robot: RobotCfg) -> dict[str, JointDrive]:
    """Return the drive of every joint, in the order of ``robot.joint_names``.

    Raises:
        ConfigurationError: A joint has both a servo and a spring; one drive cannot be both.
    """
    model = compile_robot(robot)
    servo = robot.action.kind == "position"
    drives = {}
    for index, name in enumerate(robot.joint_names):
        joint = model.joint(name)
        spring, rest, limit = float(joint.stiffness[0]), float(joint.qpos_spring[0]), math.inf
        damping = float(joint.damping[0])
        if servo:
            if spring:
                raise ConfigurationError(f"Robot {robot.name!r}: joint {name!r} has a servo and a spring; remove one.")
            spring, rest = robot.stiffness[index], robot.default_joint_pos[index]
            damping += robot.damping[index]
            limit = float(model.jnt_actfrcrange[joint.id, 1]) if model.jnt_actfrclimited[joint.id] else math.inf
        drives[name] = JointDrive(spring, damping, float(joint.armature[0]), float(joint.frictionloss[0]), rest, limit)
    return drives
