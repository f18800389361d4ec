"""A robot's MJCF as USD: bodies, joints and colliders that every engine of Isaac Lab reads alike.

The bodies lie flat under the robot's prim, in the pose of joint angles zero, the root body at its origin. Beside
UsdPhysics there are a few attributes of PhysX and Newton, without which the two would not be the same robot:
armature, no damping of bodies, no collision of a robot with itself.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
from pxr import Gf, Sdf, Usd, UsdGeom, UsdPhysics, UsdShade

from myriad_lab.envs.isaaclab.robot_model import JointDrive, compile_robot, joint_drives
from myriad_lab.envs.robot import RobotCfg
from myriad_lab.errors import ConfigurationError

LINK_MASS = 1.0e-3
"""Mass of the link between two hinges of one body [kg].

MuJoCo gives a body several hinges and puts nothing between them; other engines need a link there, and a link needs a
mass. The body below gives up what its links weigh, so that the robot weighs the same.
"""
LINK_INERTIA = 1.0e-6
"""Moment of inertia of such a link about each axis [kg m^2]; the armature of its joint is 10000 times as much."""
FRICTION = 1.0
"""Static and dynamic friction of every collider, as in MuJoCo."""


def save_robot(robot: RobotCfg, path: Path | str) -> None:
    """Write the robot alone to a USD file; the ending tells the format, e.g. ``ant.usda``."""
    stage = Usd.Stage.CreateNew(str(path))
    UsdGeom.SetStageUpAxis(stage, UsdGeom.Tokens.z)
    UsdGeom.SetStageMetersPerUnit(stage, 1.0)
    UsdPhysics.SetStageKilogramsPerUnit(stage, 1.0)
    prim = UsdGeom.Xform.Define(stage, f"/{robot.name}").GetPrim()
    stage.SetDefaultPrim(prim)
    write_robot(stage, str(prim.GetPath()), robot)
    stage.GetRootLayer().Save()


def write_robot(stage: Usd.Stage, prim_path: str, robot: RobotCfg) -> None:
    """Write bodies, joints and colliders under the prim ``prim_path``, which must be there.

    Raises:
        ConfigurationError: The MJCF holds a geom or a joint that cannot be written.
    """
    model = compile_robot(robot)
    pose = mujoco.MjData(model)
    mujoco.mj_kinematics(model, pose)
    drives = joint_drives(robot)
    material = write_material(stage, f"{prim_path}/material")
    UsdGeom.Scope.Define(stage, f"{prim_path}/joints")
    for body in range(1, model.nbody):
        name = model.body(body).name
        joints = [model.joint(j) for j in range(model.njnt) if model.jnt_bodyid[j] == body and j > 0]
        # Every hinge but the last leads to a link of its own, which stands where the body stands.
        links = [f"{joint.name}_link" for joint in joints[:-1]]
        matrix = _matrix(pose.xpos[body] - pose.xpos[1], pose.xquat[body])
        for link in links:
            prim = _write_body(stage, f"{prim_path}/{link}", matrix)
            _write_mass(prim, LINK_MASS, np.zeros(3), np.full(3, LINK_INERTIA), np.array([1.0, 0, 0, 0]))
        prim = _write_body(stage, f"{prim_path}/{name}", matrix)
        mass = float(model.body_mass[body]) - LINK_MASS * len(links)
        _write_mass(prim, mass, model.body_ipos[body], model.body_inertia[body], model.body_iquat[body])
        for geom in range(model.body_geomadr[body], model.body_geomadr[body] + model.body_geomnum[body]):
            _write_geom(stage, prim, model, geom, material)
        if body == 1:
            _write_articulation_root(prim)
            continue
        chain = [model.body(model.body_parentid[body]).name, *links, name]
        for index, joint in enumerate(joints):
            ends = Sdf.Path(f"{prim_path}/{chain[index]}"), Sdf.Path(f"{prim_path}/{chain[index + 1]}")
            # Only the first hinge spans the offset from the parent; the links stand in the body's frame already.
            offset = _matrix(model.body_pos[body], model.body_quat[body]) if index == 0 else Gf.Matrix4d(1.0)
            _write_joint(stage, f"{prim_path}/joints/{joint.name}", joint, ends, offset, drives[joint.name])


def _write_body(stage: Usd.Stage, path: str, matrix: Gf.Matrix4d) -> Usd.Prim:
    """Define a rigid body at ``matrix``; PhysX would damp its rotation if nobody said otherwise."""
    xform = UsdGeom.Xform.Define(stage, path)
    _set_pose(xform, matrix)
    prim = xform.GetPrim()
    UsdPhysics.RigidBodyAPI.Apply(prim)
    prim.AddAppliedSchema("PhysxRigidBodyAPI")
    for name in ("linearDamping", "angularDamping"):
        _set(prim, f"physxRigidBody:{name}", Sdf.ValueTypeNames.Float, 0.0)
    return prim


def _write_articulation_root(prim: Usd.Prim) -> None:
    """Make ``prim`` the root, not the robot's prim: engines would pick a root of their own among its children."""
    UsdPhysics.ArticulationRootAPI.Apply(prim)
    prim.AddAppliedSchema("PhysxArticulationAPI")
    prim.AddAppliedSchema("NewtonArticulationRootAPI")
    _set(prim, "newton:selfCollisionEnabled", Sdf.ValueTypeNames.Bool, False)
    _set(prim, "physxArticulation:enabledSelfCollisions", Sdf.ValueTypeNames.Bool, False)
    # A robot that sleeps would not feel a torque that is small but not nothing.
    _set(prim, "physxArticulation:sleepThreshold", Sdf.ValueTypeNames.Float, 0.0)
    _set(prim, "physxArticulation:stabilizationThreshold", Sdf.ValueTypeNames.Float, 0.0)
    _set(prim, "physxArticulation:solverPositionIterationCount", Sdf.ValueTypeNames.Int, 4)
    _set(prim, "physxArticulation:solverVelocityIterationCount", Sdf.ValueTypeNames.Int, 1)


def _write_mass(prim: Usd.Prim, mass: float, center: np.ndarray, inertia: np.ndarray, axes: np.ndarray) -> None:
    """Author mass [kg], centre of mass [m], principal moments [kg m^2] and their axes (quaternion w, x, y, z)."""
    api = UsdPhysics.MassAPI.Apply(prim)
    api.CreateMassAttr(mass)
    api.CreateCenterOfMassAttr(Gf.Vec3f(*center.tolist()))
    api.CreateDiagonalInertiaAttr(Gf.Vec3f(*inertia.tolist()))
    api.CreatePrincipalAxesAttr(Gf.Quatf(*axes.tolist()))


def _write_geom(stage: Usd.Stage, body: Usd.Prim, model: mujoco.MjModel, geom: int, material: Any) -> None:
    """Define a shape; it collides where the MJCF lets it touch what is static."""
    kind, size = mujoco.mjtGeom(model.geom_type[geom]), model.geom_size[geom].tolist()
    path = f"{body.GetPath()}/{model.geom(geom).name or f'geom_{geom}'}_geom"
    scale = Gf.Vec3d(1.0)
    if kind == mujoco.mjtGeom.mjGEOM_SPHERE:
        shape = UsdGeom.Sphere.Define(stage, path)
        shape.CreateRadiusAttr(size[0])
    elif kind == mujoco.mjtGeom.mjGEOM_CAPSULE:
        shape = UsdGeom.Capsule.Define(stage, path)
        shape.CreateAxisAttr(UsdGeom.Tokens.z)
        shape.CreateRadiusAttr(size[0])
        shape.CreateHeightAttr(2 * size[1])
    elif kind == mujoco.mjtGeom.mjGEOM_BOX:
        shape = UsdGeom.Cube.Define(stage, path)
        shape.CreateSizeAttr(2.0)
        scale = Gf.Vec3d(*size)
    else:
        raise ConfigurationError(
            f"{path}: a geom of kind {kind.name} cannot be written; robots are made of spheres, capsules and boxes."
        )
    shape.CreateDisplayColorAttr([Gf.Vec3f(*model.geom_rgba[geom, :3].tolist())])
    _set_pose(shape, _matrix(model.geom_pos[geom], model.geom_quat[geom]), scale)
    if model.geom_conaffinity[geom]:
        make_collider(shape.GetPrim(), material)


def _write_joint(
    stage: Usd.Stage,
    path: str,
    joint: Any,
    ends: tuple[Sdf.Path, Sdf.Path],
    offset: Gf.Matrix4d,
    drive: JointDrive,
) -> None:
    """Define a hinge between two bodies; ``offset`` is the pose of the second in the frame of the first at angle 0."""
    hinge = UsdPhysics.RevoluteJoint.Define(stage, path)
    hinge.CreateBody0Rel().SetTargets([ends[0]])
    hinge.CreateBody1Rel().SetTargets([ends[1]])
    # USD's hinge turns about a coordinate axis, so both frames are turned until x is the hinge.
    align = Gf.Matrix4d(1.0)
    align.SetRotate(Gf.Rotation(Gf.Vec3d(1, 0, 0), Gf.Vec3d(*joint.axis.tolist())))
    align.SetTranslateOnly(Gf.Vec3d(*joint.pos.tolist()))
    hinge.CreateAxisAttr(UsdPhysics.Tokens.x)
    for frame, position, rotation in (
        (align * offset, hinge.CreateLocalPos0Attr(), hinge.CreateLocalRot0Attr()),
        (align, hinge.CreateLocalPos1Attr(), hinge.CreateLocalRot1Attr()),
    ):
        position.Set(Gf.Vec3f(frame.ExtractTranslation()))
        rotation.Set(Gf.Quatf(frame.ExtractRotationQuat()))
    prim = hinge.GetPrim()
    if joint.limited[0]:
        low, high = np.degrees(joint.range).tolist()
        hinge.CreateLowerLimitAttr(low)
        hinge.CreateUpperLimitAttr(high)
        _set(prim, "mjc:solreflimit", Sdf.ValueTypeNames.DoubleArray, joint.solref.tolist())
    prim.AddAppliedSchema("PhysxJointAPI")
    _set(prim, "physxJoint:armature", Sdf.ValueTypeNames.Float, drive.armature)
    api = UsdPhysics.DriveAPI.Apply(prim, "angular")
    api.CreateTypeAttr(UsdPhysics.Tokens.force)
    api.CreateStiffnessAttr(math.radians(drive.stiffness))
    api.CreateDampingAttr(math.radians(drive.damping))
    api.CreateTargetPositionAttr(math.degrees(drive.rest))
    if math.isfinite(drive.max_torque):
        api.CreateMaxForceAttr(drive.max_torque)


def make_collider(prim: Usd.Prim, material: UsdShade.Material) -> None:
    """Let the shape ``prim`` collide, with the friction of ``material``."""
    UsdPhysics.CollisionAPI.Apply(prim)
    binding = UsdShade.MaterialBindingAPI.Apply(prim)
    binding.Bind(material, UsdShade.Tokens.weakerThanDescendants, "physics")


def write_material(stage: Usd.Stage, path: str) -> UsdShade.Material:
    """Define the one surface of robots and ground: friction, and nothing bounces."""
    material = UsdShade.Material.Define(stage, path)
    api = UsdPhysics.MaterialAPI.Apply(material.GetPrim())
    api.CreateStaticFrictionAttr(FRICTION)
    api.CreateDynamicFrictionAttr(FRICTION)
    api.CreateRestitutionAttr(0.0)
    return material


def _matrix(position: np.ndarray, quat: np.ndarray) -> Gf.Matrix4d:
    """Return the pose of position [m] and quaternion w, x, y, z."""
    w, x, y, z = (float(value) for value in quat)
    matrix = Gf.Matrix4d(1.0)
    matrix.SetRotate(Gf.Quatd(w, x, y, z))
    return matrix.SetTranslateOnly(Gf.Vec3d(*(float(value) for value in position)))


def _set_pose(shape: UsdGeom.Xformable, matrix: Gf.Matrix4d, scale: Gf.Vec3d | None = None) -> None:
    """Author translate, orient and scale."""
    shape.AddTranslateOp(UsdGeom.XformOp.PrecisionDouble).Set(matrix.ExtractTranslation())
    shape.AddOrientOp(UsdGeom.XformOp.PrecisionDouble).Set(matrix.ExtractRotationQuat())
    shape.AddScaleOp(UsdGeom.XformOp.PrecisionDouble).Set(scale or Gf.Vec3d(1.0))


def _set(prim: Usd.Prim, name: str, kind: Sdf.ValueTypeName, value: Any) -> None:
    """Author an attribute of a schema that this USD build need not know."""
    prim.CreateAttribute(name, kind, custom=False).Set(value)
