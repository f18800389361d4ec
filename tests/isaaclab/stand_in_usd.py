"""Robots described by a few lines each, written as flat USD: every body directly under the robot's prim.

A body stands where its joint to its parent is, so one offset tells both; the joint turns about axes of its own frame.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from pxr import Gf, Sdf, Usd, UsdGeom, UsdPhysics

Vector = tuple[float, float, float]


@dataclass(frozen=True)
class Shape:
    """A box with its edges along the body's axes, a capsule along one of them, or a sphere."""

    size: tuple[float, ...]
    """Edges of a box [m]; radius [m] of a sphere; radius and length without the caps [m] of a capsule."""
    at: Vector = (0.0, 0.0, 0.0)
    """Centre in the body's frame [m]."""
    along: str = "Z"
    """Axis of a capsule."""
    collides: bool = True

    def edges(self) -> Vector:
        """Return the edges of the box around it [m]."""
        if len(self.size) == 3:
            return self.size
        radius, length = (*self.size, 0.0)[:2]
        x, y, z = (2 * radius + (length if axis == self.along else 0.0) for axis in "XYZ")
        return x, y, z


@dataclass(frozen=True)
class Body:
    """A rigid body and its joint to its parent."""

    name: str
    mass: float
    """Mass [kg], spread over the box around the first shape."""
    shapes: tuple[Shape, ...]
    parent: str = ""
    """Body that the joint holds on to; empty for the root."""
    at: Vector = (0.0, 0.0, 0.0)
    """Where the joint is in the parent's frame [m]."""
    turn: tuple[str, float] = ("X", 0.0)
    """Axis and angle [degrees] by which the frame is turned against the parent's."""
    joint: str = ""
    """Name of the joint; a fixed joint without axes has one of its own where this is empty."""
    axes: tuple[tuple[str, float, float], ...] = ()
    """What the joint lets free, with limits: rotX, rotY, rotZ [degrees], or one of transX, transY, transZ [m]."""
    stiffness: float = 0.0
    """Stiffness of the drive [N m/rad or N/m], for tasks that leave it to the asset."""


@dataclass(frozen=True)
class Robot:
    """A robot, its root body first, children after their parents."""

    name: str
    bodies: tuple[Body, ...]
    fixed: bool = False
    """Whether the root body is fixed to the world."""
    armature: float = 0.0
    """Inertia of every joint's motor [kg m^2 or kg]."""
    variants: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """Variant sets that the task selects from; all variants are alike."""


def save_robot(robot: Robot, path: Path) -> None:
    """Write ``robot`` to a USD file."""
    stage = Usd.Stage.CreateNew(str(path))
    UsdGeom.SetStageUpAxis(stage, UsdGeom.Tokens.z)
    UsdGeom.SetStageMetersPerUnit(stage, 1.0)
    UsdPhysics.SetStageKilogramsPerUnit(stage, 1.0)
    prim = UsdGeom.Xform.Define(stage, f"/{robot.name}").GetPrim()
    stage.SetDefaultPrim(prim)
    for name, variants in robot.variants:
        for variant in variants:
            prim.GetVariantSets().AddVariantSet(name).AddVariant(variant)
    # The engines find the root of a fixed robot by its joint to the world, that of a free one must be told.
    owner = "" if robot.fixed else f"/{robot.bodies[0].name}"
    poses: dict[str, Gf.Matrix4d] = {"": Gf.Matrix4d(1.0)}
    UsdGeom.Scope.Define(stage, f"/{robot.name}/joints")
    for body in robot.bodies:
        poses[body.name] = _offset(body) * poses[body.parent]
        _write_body(stage, f"/{robot.name}/{body.name}", body, poses[body.name])
        if body.parent or robot.fixed:
            _write_joint(stage, f"/{robot.name}", body, robot.armature)
    UsdPhysics.ArticulationRootAPI.Apply(stage.GetPrimAtPath(f"/{robot.name}{owner}"))
    stage.GetRootLayer().Save()


def _offset(body: Body) -> Gf.Matrix4d:
    axis, angle = body.turn
    matrix = Gf.Matrix4d(1.0).SetRotate(Gf.Rotation(Gf.Vec3d(*(float(axis == name) for name in "XYZ")), angle))
    return matrix.SetTranslateOnly(Gf.Vec3d(*body.at))


def _write_body(stage: Usd.Stage, path: str, body: Body, pose: Gf.Matrix4d) -> None:
    xform = UsdGeom.Xform.Define(stage, path)
    xform.AddTranslateOp().Set(pose.ExtractTranslation())
    xform.AddOrientOp(UsdGeom.XformOp.PrecisionDouble).Set(pose.ExtractRotationQuat())
    xform.AddScaleOp().Set(Gf.Vec3f(1.0))
    prim = xform.GetPrim()
    UsdPhysics.RigidBodyAPI.Apply(prim)
    x, y, z = body.shapes[0].edges()
    inertia = Gf.Vec3f(y * y + z * z, x * x + z * z, x * x + y * y) * body.mass / 12
    mass = UsdPhysics.MassAPI.Apply(prim)
    mass.CreateMassAttr(body.mass)
    mass.CreateCenterOfMassAttr(Gf.Vec3f(*body.shapes[0].at))
    mass.CreateDiagonalInertiaAttr(inertia)
    mass.CreatePrincipalAxesAttr(Gf.Quatf(1.0))
    for index, shape in enumerate(body.shapes):
        _write_shape(stage, f"{path}/shape_{index}", shape)


def _write_shape(stage: Usd.Stage, path: str, shape: Shape) -> None:
    scale = Gf.Vec3f(1.0)
    if len(shape.size) == 3:
        geom = UsdGeom.Cube.Define(stage, path)
        geom.CreateSizeAttr(1.0)
        scale = Gf.Vec3f(*shape.size)
    elif len(shape.size) == 2:
        geom = UsdGeom.Capsule.Define(stage, path)
        geom.CreateAxisAttr(shape.along)
        geom.CreateRadiusAttr(shape.size[0])
        geom.CreateHeightAttr(shape.size[1])
    else:
        geom = UsdGeom.Sphere.Define(stage, path)
        geom.CreateRadiusAttr(shape.size[0])
    geom.AddTranslateOp().Set(Gf.Vec3d(*shape.at))
    geom.AddScaleOp().Set(scale)
    if shape.collides:
        UsdPhysics.CollisionAPI.Apply(geom.GetPrim())


def _write_joint(stage: Usd.Stage, robot: str, body: Body, armature: float) -> None:
    """Define the joint: of one axis, of several, or fixed."""
    path = f"{robot}/joints/{body.joint or f'{body.name}_fixed'}"
    free = {name for name, _, _ in body.axes}
    single = len(free) == 1
    if single:
        (name,) = free
        kind = UsdPhysics.RevoluteJoint if name.startswith("rot") else UsdPhysics.PrismaticJoint
        kind.Define(stage, path).CreateAxisAttr(name[-1])
    else:
        (UsdPhysics.Joint if free else UsdPhysics.FixedJoint).Define(stage, path)
    joint = UsdPhysics.Joint.Get(stage, path)
    if body.parent:
        joint.CreateBody0Rel().SetTargets([f"{robot}/{body.parent}"])
    joint.CreateBody1Rel().SetTargets([f"{robot}/{body.name}"])
    offset = _offset(body)
    joint.CreateLocalPos0Attr(Gf.Vec3f(offset.ExtractTranslation()))
    joint.CreateLocalRot0Attr(Gf.Quatf(offset.ExtractRotationQuat()))
    joint.CreateLocalPos1Attr(Gf.Vec3f(0.0))
    joint.CreateLocalRot1Attr(Gf.Quatf(1.0))
    prim = joint.GetPrim()
    for name, low, high in body.axes:
        _write_limits(prim, name, low, high, single=single)
        _write_drive(prim, name, body.stiffness, single=single)
    if not single and free:
        for name in {f"{kind}{axis}" for kind in ("trans", "rot") for axis in "XYZ"} - free:
            _write_limits(prim, name, 1.0, -1.0, single=False)  # upside down: locked
    if free:
        prim.AddAppliedSchema("PhysxJointAPI")
        prim.CreateAttribute("physxJoint:armature", Sdf.ValueTypeNames.Float, custom=False).Set(armature)


def _write_limits(prim: Usd.Prim, name: str, low: float, high: float, *, single: bool) -> None:
    if single:
        prim.GetAttribute("physics:lowerLimit").Set(low)
        prim.GetAttribute("physics:upperLimit").Set(high)
    else:
        api = UsdPhysics.LimitAPI.Apply(prim, name)
        api.CreateLowAttr(low)
        api.CreateHighAttr(high)


def _write_drive(prim: Usd.Prim, name: str, stiffness: float, *, single: bool) -> None:
    """Without a drive in the file, the engines would not take the gains that a task sets."""
    angular = name.startswith("rot")
    kind = ("angular" if angular else "linear") if single else name
    api = UsdPhysics.DriveAPI.Apply(prim, kind)
    api.CreateTypeAttr(UsdPhysics.Tokens.force)
    api.CreateStiffnessAttr(math.radians(stiffness) if angular else stiffness)
    api.CreateDampingAttr(0.0)
