"""The scene: options, walls, height field, actuators, sensors, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import mujoco
import numpy as np
import pytest
import torch

from myriad_lab.envs.arena import Arena, Box, HeightField
from myriad_lab.envs.mujoco.model import build_model
from myriad_lab.errors import ConfigurationError
from myriad_lab.tasks.locomotion.robots.robots import ANT, HUMANOID, QUADRUPED
from myriad_lab.tasks.maze.arenas import get_arena

from .scenes import OPEN, WALLED, make_simulator, run


def test_options():
    model = build_model(ANT, OPEN)
    assert model.opt.timestep == pytest.approx(1 / 120)
    assert model.opt.integrator == mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    assert model.opt.solver == mujoco.mjtSolver.mjSOL_NEWTON
    assert ANT.decimation == 2


def test_only_static_geoms_touch_robots():
    model = build_model(ANT, WALLED)
    static = model.geom_bodyid == 0
    assert static.sum() == 2
    touches = (model.geom_contype[:, None] & model.geom_conaffinity[None]).astype(bool)
    touches |= touches.T
    assert not touches[static][:, static].any()
    assert not touches[~static][:, ~static].any()
    assert touches[static][:, ~static].all()


def ray_height(model: mujoco.MjModel, data: mujoco.MjData, x: float, y: float) -> float:
    """Return the height of the first static surface under (x, y)."""
    hit = np.zeros(1, dtype=np.int32)
    start = np.array([x, y, 20.0])
    return 20.0 - mujoco.mj_ray(model, data, start, np.array([0.0, 0.0, -1.0]), None, 1, model.body("torso").id, hit)


def test_boxes_stand_where_the_arena_says():
    arena = Arena("a", (-5, 5, -5, 5), (Box((1.0, -2.0), (0.5, 1.5), 1.2),))
    model = build_model(ANT, arena)
    data = mujoco.MjData(model)
    data.qpos[:2] = 4.0
    mujoco.mj_forward(model, data)
    probes = {(1.0, -2.0): 1.2, (1.45, -0.55): 1.2, (1.55, -2.0): 0.0, (1.0, -0.45): 0.0, (-1.0, 2.0): 0.0}
    for (x, y), height in probes.items():
        assert ray_height(model, data, x, y) == pytest.approx(height, abs=1e-6)


def test_height_field_is_the_arena_s_own():
    heights = tuple(tuple(0.1 * row + 0.3 * column for column in range(6)) for row in range(4))
    arena = Arena("slope", (1.0, 6.0, -4.0, -1.0), height_field=HeightField(heights))
    model = build_model(ANT, arena)
    data = mujoco.MjData(model)
    data.qpos[:3] = (0.0, 0.0, 50.0)
    mujoco.mj_forward(model, data)
    points = torch.tensor([[1.3, -3.7], [2.6, -1.4], [5.5, -2.5], [4.1, -3.2]], dtype=torch.float64)
    for point, expected in zip(points.tolist(), arena.height_at(points).tolist(), strict=True):
        assert ray_height(model, data, *point) == pytest.approx(expected, abs=2e-3)


def test_an_ant_stands_on_the_pyramid():
    arena = get_arena("pyramid")
    simulator = make_simulator(num_envs=1, arena=arena)
    state = simulator.state()
    simulator.engine.motion[0, :3] = (0.0, 0.0, 4.0 + ANT.start_height)
    run(simulator, torch.zeros(60, 1, 8))
    assert 4.0 < state.root_pos_w[0, 2] < 4.7


@pytest.mark.parametrize(("robot", "mass"), [(ANT, 4.0), (HUMANOID, 47.4), (QUADRUPED, 15.4)])
def test_joints_actuators_and_mass(robot, mass):
    model = build_model(robot, OPEN)
    assert [model.actuator(i).name for i in range(model.nu)] == list(robot.action.names)
    assert [model.joint(i + 1).name for i in range(model.njnt - 1)] == list(robot.joint_names)
    assert model.body_mass.sum() == pytest.approx(mass, abs=0.05)
    # A full action is within what the joint gives.
    limits = model.jnt_actfrcrange[1:, 1]
    assert (limits >= robot.action.scale).all() if robot.action.kind == "torque" else (limits > 0).all()


@pytest.mark.parametrize(
    ("robot", "height", "tolerance"), [(ANT, 0.56, 0.02), (QUADRUPED, 0.295, 0.015)], ids=["ant", "quadruped"]
)
def test_an_idle_robot_stands(robot, height, tolerance):
    simulator = make_simulator(robot, num_envs=1)
    run(simulator, torch.zeros(120, 1, len(robot.action.names)))
    state = simulator.state()
    assert state.root_pos_w[0, 2].item() == pytest.approx(height, abs=tolerance)
    assert state.root_quat_w[0, 0] > 0.99
    assert state.joint_vel.abs().max() < 0.5


def test_an_idle_humanoid_stands_for_a_while_and_falls():
    simulator = make_simulator(HUMANOID, num_envs=1)
    run(simulator, torch.zeros(40, 1, 21))
    assert simulator.state().root_pos_w[0, 2].item() == pytest.approx(1.187, abs=0.01)
    run(simulator, torch.zeros(160, 1, 21))
    assert simulator.state().root_pos_w[0, 2] < 0.8


def test_gains_are_the_configuration_s():
    """In free fall a servo pulls with stiffness x error - damping x velocity; both show in the sensed torque."""
    stiffness, damping = (30.0,) * 12, (0.7,) * 12
    robot = replace(QUADRUPED, stiffness=stiffness, damping=damping, action=replace(QUADRUPED.action, delay_steps=0))
    model = build_model(robot, OPEN)
    np.testing.assert_allclose(model.actuator_gainprm[:, 0], 30.0)
    np.testing.assert_allclose(model.actuator_biasprm[:, 1:3], [[-30.0, -0.7]] * 12)
    simulator = make_simulator(replace(robot, decimation=1), num_envs=1)
    simulator.engine.motion[0, 2] = 30.0
    action = torch.zeros(1, 12)
    action[0, 1] = 0.4  # 0.4 x 0.5 rad beyond the default pose
    simulator.step(action)
    torque = simulator.state().joint_torques[0]
    torch.testing.assert_close(torque[1], torch.tensor(30.0 * 0.2))
    assert torque[[0, 2, 3]].abs().max() < 0.1


@pytest.mark.parametrize(("robot", "steps"), [(QUADRUPED, 120), (ANT, 120), (HUMANOID, 30)], ids=lambda v: str(v)[:20])
def test_feet_of_a_standing_robot_carry_its_weight(robot, steps):
    """Without a torque the humanoid stands for half a second before it folds."""
    simulator = make_simulator(robot, num_envs=1)
    idle = torch.zeros(steps, 1, len(robot.joint_names))
    run(simulator, idle)
    weight = simulator.model.body_mass.sum() * 9.81
    assert simulator.state().contact_forces.shape == (1, len(robot.contact_bodies))
    assert simulator.state().contact_forces.sum().item() == pytest.approx(weight, rel=0.1)
    simulator.engine.motion[0, 2] = 5.0
    simulator.step(idle[0])
    assert simulator.state().contact_forces.abs().max() == 0.0


def test_a_driven_ant_cannot_pass_a_wall():
    box = Arena("cell", (-1, 1, -1, 1), tuple(Box(c, h, 2.0) for c, h in _cell(1.2)))
    simulator = make_simulator(num_envs=32, arena=box)
    generator = torch.Generator().manual_seed(0)
    for step in range(120):
        if step % 8 == 0:
            actions = (2 * torch.rand(32, 8, generator=generator) - 1).sign()
        assert not simulator.step(actions).any()
        assert simulator.state().root_pos_w[:, :2].abs().max() < 1.2


def _cell(half: float) -> list[tuple[tuple[float, float], tuple[float, float]]]:
    """Return centre and half size of four walls around the origin."""
    out = half + 0.25
    return [((out, 0), (0.25, 2.0)), ((-out, 0), (0.25, 2.0)), ((0, out), (2.0, 0.25)), ((0, -out), (2.0, 0.25))]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mjcf": None}, "has no MJCF"),
        ({"mjcf": "myriad_lab.tasks.locomotion.robots:aunt.xml"}, r"cannot load the MJCF .*aunt\.xml"),
        ({"joint_names": ANT.joint_names[::-1]}, "followed by joint_names"),
        ({"action": replace(ANT.action, names=("tail",) * 8)}, "'tail' names no joint"),
        ({"action": replace(ANT.action, kind="velocity")}, "torque or position, not 'velocity'"),
        ({"action": replace(ANT.action, kind="position")}, "needs stiffness and damping"),
    ],
)
def test_bad_robots_are_refused(changes, message):
    with pytest.raises(ConfigurationError, match=message):
        build_model(replace(ANT, **changes), OPEN)


@pytest.mark.parametrize(
    "content", ["raise ImportError('libmujoco.so.3 not found')", "__version__ = '4.0.0'"], ids=["raises", "half"]
)
def test_a_broken_mujoco_is_explained_in_one_sentence(tmp_path: Path, content: str):
    (tmp_path / "mujoco.py").write_text(content)
    code = "import sys; sys.path.insert(0, sys.argv[1]); import myriad_lab.envs.mujoco.simulator"
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("myriad_lab.errors.ConfigurationError: The installed MuJoCo is broken")
    assert "--force-reinstall --no-deps mujoco mujoco-core mujoco-studio" in last
