"""The robots as USD are the robots of their MJCF: masses, joints, and where the bodies stand at any joint angles."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from myriad_lab.envs.robot import RobotCfg
from myriad_lab.tasks.locomotion.robots.robots import ANT, HUMANOID, QUADRUPED

pytestmark = pytest.mark.isaaclab

ROBOTS = (ANT, HUMANOID, QUADRUPED)
BY_NAME = pytest.mark.parametrize("robot", ROBOTS, ids=lambda robot: robot.name)


class Written:
    """A robot's file, opened, beside its MuJoCo model."""

    def __init__(self, robot: RobotCfg, folder: Path) -> None:
        from pxr import Usd, UsdPhysics

        from myriad_lab.envs.isaaclab.robot_model import compile_robot
        from myriad_lab.envs.isaaclab.robot_usd import save_robot

        path = folder / f"{robot.name}.usda"
        save_robot(robot, path)
        self.robot, self.model = robot, compile_robot(robot)
        self.stage = Usd.Stage.Open(str(path))
        self.root = self.stage.GetDefaultPrim()
        self.bodies = {p.GetName(): p for p in self.root.GetChildren() if p.HasAPI(UsdPhysics.RigidBodyAPI)}
        joints = self.stage.GetPrimAtPath(f"/{robot.name}/joints").GetChildren()
        self.joints = {p.GetName(): UsdPhysics.RevoluteJoint(p) for p in joints}
        self.links = [name for name in self.bodies if name.endswith("_link")]

    def mass(self, name: str):
        from pxr import UsdPhysics

        return UsdPhysics.MassAPI(self.bodies[name])

    def ends(self, name: str) -> tuple[str, str]:
        joint = self.joints[name]
        return tuple(rel.GetTargets()[0].name for rel in (joint.GetBody0Rel(), joint.GetBody1Rel()))


@pytest.fixture(scope="module", params=ROBOTS, ids=lambda robot: robot.name)
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Written:
    return Written(request.param, tmp_path_factory.mktemp("usd"))


def rotation(quat) -> np.ndarray:
    """Return the matrix of a ``Gf.Quat``."""
    w, (x, y, z) = quat.GetReal(), quat.GetImaginary()
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def pose(position, quat) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = rotation(quat), position
    return matrix


def about_x(angle: float) -> np.ndarray:
    matrix = np.eye(4)
    matrix[1:3, 1:3] = [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
    return matrix


def test_mass_centre_and_inertia(written: Written) -> None:
    from pxr import Gf

    model = written.model
    assert set(written.bodies) - set(written.links) == {model.body(i).name for i in range(1, model.nbody)}
    total = sum(written.mass(name).GetMassAttr().Get() for name in written.bodies)
    assert total == pytest.approx(model.body_mass.sum(), rel=1e-5)
    for index in range(1, model.nbody):
        api = written.mass(model.body(index).name)
        mass = api.GetMassAttr().Get()
        above = sum(written.ends(joint)[1] in written.links for joint in written.joints if _of(written, joint, index))
        assert mass == pytest.approx(model.body_mass[index] - 1e-3 * above, rel=1e-5)
        assert np.allclose(api.GetCenterOfMassAttr().Get(), model.body_ipos[index], atol=1e-6)
        axes = rotation(api.GetPrincipalAxesAttr().Get())
        ours = axes @ np.diag(api.GetDiagonalInertiaAttr().Get()) @ axes.T
        true_axes = rotation(Gf.Quatd(*model.body_iquat[index].tolist()))
        assert np.allclose(ours, true_axes @ np.diag(model.body_inertia[index]) @ true_axes.T, atol=1e-6)


def _of(written: Written, joint: str, body: int) -> bool:
    return written.model.jnt_bodyid[written.model.joint(joint).id] == body


def test_links_without_substance_weigh_next_to_nothing(written: Written) -> None:
    hinges = np.bincount(written.model.jnt_bodyid[1:], minlength=written.model.nbody)
    assert len(written.links) == int(np.maximum(hinges - 1, 0).sum())
    assert all(written.mass(name).GetMassAttr().Get() == pytest.approx(1e-3) for name in written.links)


def test_joints(written: Written) -> None:
    model = written.model
    assert tuple(written.joints) == tuple(model.joint(i).name for i in range(1, model.njnt))
    for name, joint in written.joints.items():
        index = model.joint(name).id
        limits = joint.GetLowerLimitAttr().Get(), joint.GetUpperLimitAttr().Get()
        assert np.radians(limits) == pytest.approx(model.jnt_range[index], abs=1e-6)
        prim = joint.GetPrim()
        assert prim.GetAttribute("physxJoint:armature").Get() == pytest.approx(model.joint(name).armature[0])


def test_drives_are_written_per_degree(written: Written) -> None:
    from pxr import UsdPhysics

    from myriad_lab.envs.isaaclab.robot_model import joint_drives

    for name, drive in joint_drives(written.robot).items():
        api = UsdPhysics.DriveAPI(written.joints[name].GetPrim(), "angular")
        degree = math.pi / 180.0
        assert api.GetTypeAttr().Get() == "force"
        assert api.GetStiffnessAttr().Get() == pytest.approx(drive.stiffness * degree)
        assert api.GetDampingAttr().Get() == pytest.approx(drive.damping * degree)
        assert api.GetTargetPositionAttr().Get() == pytest.approx(drive.rest / degree, abs=1e-5)
        limit = api.GetMaxForceAttr()
        assert limit.Get() == pytest.approx(drive.max_torque) if limit.IsAuthored() else drive.max_torque == math.inf


@BY_NAME
def test_drives_are_the_springs_or_the_servos(robot: RobotCfg) -> None:
    from myriad_lab.envs.isaaclab.robot_model import compile_robot, joint_drives

    model, drives = compile_robot(robot), joint_drives(robot)
    assert tuple(drives) == robot.joint_names
    for index, (name, drive) in enumerate(drives.items()):
        joint = model.joint(name)
        if robot.action.kind == "position":
            assert drive.stiffness == robot.stiffness[index]
            assert drive.damping == pytest.approx(robot.damping[index] + joint.damping[0])
            assert drive.rest == robot.default_joint_pos[index]
            assert drive.max_torque == model.jnt_actfrcrange[joint.id, 1]
        else:
            assert (drive.stiffness, drive.rest) == (joint.stiffness[0], joint.qpos_spring[0])
            assert drive.max_torque == math.inf


def test_bodies_stand_where_mujoco_puts_them(written: Written) -> None:
    import mujoco

    model, data = written.model, mujoco.MjData(written.model)
    rng = np.random.default_rng(0)
    for _ in range(5):
        data.qpos[7:] = rng.uniform(model.jnt_range[1:, 0], model.jnt_range[1:, 1])
        data.qpos[:3], data.qpos[3:7] = 0.0, (1.0, 0.0, 0.0, 0.0)
        mujoco.mj_kinematics(model, data)
        world = {model.body(1).name: np.eye(4)}
        for index, (name, joint) in enumerate(written.joints.items()):
            parent, child = written.ends(name)
            in_parent = pose(joint.GetLocalPos0Attr().Get(), joint.GetLocalRot0Attr().Get())
            in_child = pose(joint.GetLocalPos1Attr().Get(), joint.GetLocalRot1Attr().Get())
            angle = data.qpos[7 + index]
            world[child] = world[parent] @ in_parent @ about_x(angle) @ np.linalg.inv(in_child)
        for index in range(1, model.nbody):
            found = world[model.body(index).name]
            assert np.allclose(found[:3, 3], data.xpos[index], atol=1e-5)
            assert np.allclose(found[:3, :3], data.xmat[index].reshape(3, 3), atol=1e-5)


def test_shapes_collide_where_the_mjcf_lets_them(written: Written) -> None:
    from pxr import UsdGeom, UsdPhysics

    model = written.model
    shapes = [p for body in written.bodies.values() for p in body.GetChildren() if p.IsA(UsdGeom.Gprim)]
    assert len(shapes) == model.ngeom
    colliders = {p.GetName() for p in shapes if p.HasAPI(UsdPhysics.CollisionAPI)}
    assert colliders == {f"{model.geom(i).name}_geom" for i in range(model.ngeom) if model.geom_conaffinity[i]}
    for index in range(model.ngeom):
        prim = next(p for p in shapes if p.GetName() == f"{model.geom(index).name}_geom")
        place, size = UsdGeom.Xformable(prim).GetLocalTransformation(), model.geom_size[index]
        assert np.allclose(place.ExtractTranslation(), model.geom_pos[index], atol=1e-6)
        if prim.IsA(UsdGeom.Cube):
            scale = np.array(prim.GetAttribute("xformOp:scale").Get())
            assert np.allclose(prim.GetAttribute("size").Get() / 2 * scale, size)
        else:
            assert prim.GetAttribute("radius").Get() == pytest.approx(size[0])
        if prim.IsA(UsdGeom.Capsule):
            assert prim.GetAttribute("height").Get() == pytest.approx(2 * size[1])


def test_the_root_is_the_base_and_nothing_touches_itself(written: Written) -> None:
    from pxr import UsdPhysics

    roots = [name for name, prim in written.bodies.items() if prim.HasAPI(UsdPhysics.ArticulationRootAPI)]
    assert roots == [written.model.body(1).name]
    for name in ("newton:selfCollisionEnabled", "physxArticulation:enabledSelfCollisions"):
        assert written.bodies[roots[0]].GetAttribute(name).Get() is False


def test_what_cannot_be_written_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    from myriad_lab.envs.isaaclab.robot_usd import save_robot
    from myriad_lab.errors import ConfigurationError

    (tmp_path / "strange").mkdir()
    (tmp_path / "strange" / "__init__.py").touch()
    (tmp_path / "strange" / "odd.xml").write_text(
        '<mujoco><worldbody><body name="b"><freejoint/><geom type="ellipsoid" size="1 1 2"/></body></worldbody>'
        "</mujoco>"
    )
    monkeypatch.syspath_prepend(tmp_path)
    odd = replace(ANT, name="odd", mjcf="strange:odd.xml", joint_names=(), default_joint_pos=())
    with pytest.raises(ConfigurationError, match="mjGEOM_ELLIPSOID cannot be written"):
        save_robot(odd, tmp_path / "odd.usda")
    with pytest.raises(ConfigurationError, match="hinges joint_names"):
        save_robot(replace(ANT, joint_names=ANT.joint_names[::-1]), tmp_path / "reversed.usda")
