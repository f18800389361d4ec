"""The MuJoCo simulator: engines agree, threads do not matter, rows are independent, breakage stays inside."""

from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from myriad_lab.envs.mujoco import engine as engine_module
from myriad_lab.envs.robot_state import InitialState
from myriad_lab.envs.rotations import quat_from_yaw, quat_rotate_inverse
from myriad_lab.errors import ConfigurationError
from myriad_lab.tasks.locomotion.robots.robots import ANT, HUMANOID, QUADRUPED

from .scenes import WALLED, check_snapshot, make_simulator, random_actions, rows, run, standing

ROBOTS = pytest.mark.parametrize("robot", [ANT, HUMANOID, QUADRUPED], ids=lambda robot: robot.name)


@ROBOTS
def test_engines_agree(robot):
    batch, rollout = (make_simulator(robot, arena=WALLED, engine=kind) for kind in ("batch", "rollout"))
    actions = random_actions(batch, 5)
    torch.testing.assert_close(run(batch, actions), run(rollout, actions), atol=1e-5, rtol=1e-5)


@ROBOTS
@pytest.mark.parametrize("kind", ["batch", "rollout"])
def test_threads_do_not_change_a_bit(robot, kind):
    results = []
    for threads in (1, 2, 3):
        simulator = make_simulator(robot, num_envs=16, arena=WALLED, engine=kind, num_threads=threads)
        results.append(run(simulator, random_actions(simulator, 40)))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
    assert not torch.equal(results[0][0], results[0][1])


@pytest.mark.parametrize("kind", ["batch", "rollout"])
def test_reset_touches_only_its_rows(kind):
    reference, partial = (make_simulator(QUADRUPED, engine=kind) for _ in range(2))
    actions = random_actions(reference, 20)
    run(reference, actions[:10])
    run(partial, actions[:10])
    before = rows(partial)
    ids = torch.tensor([1, 3])
    partial.reset(ids, standing(QUADRUPED, 2))
    assert torch.equal(rows(partial)[[0, 2]], before[[0, 2]])
    fresh = make_simulator(QUADRUPED, engine=kind)
    assert torch.equal(rows(partial)[ids], rows(fresh)[ids])
    # And the untouched rows go on as if nothing had happened, the others as if they had just been made.
    after = run(partial, actions[10:])
    assert torch.equal(after[[0, 2]], run(reference, actions[10:])[[0, 2]])
    assert torch.equal(after[ids], run(fresh, actions[10:])[ids])


@ROBOTS
@pytest.mark.parametrize("kind", ["batch", "rollout"])
def test_snapshot_is_exact(robot, kind):
    check_snapshot(make_simulator(robot, engine=kind), make_simulator(robot, engine=kind))


def test_snapshot_of_another_size_is_refused():
    with pytest.raises(ConfigurationError, match="another num_envs"):
        make_simulator(num_envs=2).load_state_dict(make_simulator(num_envs=3).state_dict())


def test_world_frame_and_quaternion_order():
    simulator = make_simulator(num_envs=1)
    quarter_turn = quat_from_yaw(torch.tensor([torch.pi / 2]))
    rolled = torch.tensor([[0.8, 0.6, 0.0, 0.0]])
    for quat in (quarter_turn, rolled):
        spin = torch.tensor([[0.3, -0.2, 1.5]])
        initial = replace(standing(ANT, 1), root_quat_w=quat, root_ang_vel_w=spin)
        initial.root_pos_w[:, 2] = 5.0
        simulator.reset(torch.tensor([0]), initial)
        torch.testing.assert_close(simulator.state().root_ang_vel_w, spin)
        # MuJoCo itself holds the spin in the body frame.
        body_spin = torch.from_numpy(simulator.engine.motion[:, -11:-8]).float()
        torch.testing.assert_close(body_spin, quat_rotate_inverse(quat, spin))
    simulator.reset(torch.tensor([0]), replace(initial, root_quat_w=quarter_turn))
    leg = simulator.model.body("front_left_thigh").id
    import mujoco

    data = mujoco.MjData(simulator.model)
    data.qpos[:] = simulator.engine.motion[0, : simulator.model.nq]
    mujoco.mj_kinematics(simulator.model, data)
    # A leg at (+x, +y) of the body stands at (-x, +y) of the world after a quarter turn to the left.
    np.testing.assert_allclose(data.xpos[leg] - data.qpos[:3], [-0.1768, 0.1768, 0.0], atol=1e-6)


def test_free_fall_moves_with_gravity():
    simulator = make_simulator(num_envs=1)
    initial = replace(standing(ANT, 1), root_lin_vel_w=torch.tensor([[1.0, -2.0, 0.0]]))
    initial.root_pos_w[:, 2] = 50.0
    simulator.reset(torch.tensor([0]), initial)
    run(simulator, torch.zeros(30, 1, 8))
    state = simulator.state()
    torch.testing.assert_close(state.root_lin_vel_w, torch.tensor([[1.0, -2.0, -9.81 * 0.5]]), atol=0.05, rtol=0)
    torch.testing.assert_close(state.root_pos_w[:, :2], torch.tensor([[0.5, -1.0]]), atol=0.02, rtol=0)


@pytest.mark.parametrize("delay", [0, 1, 3])
def test_delay_shifts_the_response(delay):
    robot = replace(QUADRUPED, action=replace(QUADRUPED.action, delay_steps=delay))
    simulator = make_simulator(robot, num_envs=2)
    idle = make_simulator(robot, num_envs=2)
    kick = torch.zeros(2, 12)
    kick[1, 4] = 1.0
    for step in range(5):
        simulator.step(kick)
        idle.step(torch.zeros_like(kick))
        assert torch.equal(simulator.state().joint_pos[0], idle.state().joint_pos[0])
        moved = not torch.equal(simulator.state().joint_pos[1], idle.state().joint_pos[1])
        assert moved == (step >= delay)
    # A reset empties the line: the late kick of the old episode never reaches the new one.
    simulator.reset(torch.tensor([0, 1]), standing(robot, 2))
    fresh = make_simulator(robot, num_envs=2)
    assert torch.equal(run(simulator, torch.zeros(4, 2, 12)), run(fresh, torch.zeros(4, 2, 12)))


def test_actions_and_their_predecessors():
    simulator = make_simulator(num_envs=2)
    actions = random_actions(simulator, 2)
    run(simulator, actions)
    assert torch.equal(simulator.state().actions, actions[1])
    assert torch.equal(simulator.state().previous_actions, actions[0])
    torch.testing.assert_close(simulator.state().joint_torques, 35.0 * actions[1])


@pytest.mark.parametrize("kind", ["batch", "rollout"])
@pytest.mark.parametrize(("column", "value"), [(0, np.nan), (-1, np.inf), (-3, 1e7)])
def test_a_broken_robot_is_reported_and_stays_finite(kind, column, value, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    broken, healthy = (make_simulator(engine=kind) for _ in range(2))
    actions = random_actions(broken, 6)
    run(broken, actions[:3])
    run(healthy, actions[:3])
    before = rows(broken)
    broken.engine.motion[2, column] = value
    diverged = broken.step(actions[3])
    healthy.step(actions[3])
    assert diverged.tolist() == [False, False, True, False]
    assert torch.isfinite(rows(broken)).all()
    assert torch.equal(broken.state().root_pos_w[2], before[2, :3])
    others = [0, 1, 3]
    assert torch.equal(rows(broken)[others], rows(healthy)[others])
    # Without a reset the next step is sane, too.
    assert not broken.step(actions[4]).any()
    assert torch.isfinite(rows(broken)).all()
    assert not (tmp_path / "MUJOCO_LOG.TXT").exists()


def test_a_robot_that_flies_away_is_reported():
    simulator = make_simulator(num_envs=2)
    initial = standing(ANT, 1)
    initial.root_pos_w[:, 0] = 2000.0
    simulator.reset(torch.tensor([1]), initial)
    assert simulator.step(torch.zeros(2, 8)).tolist() == [False, True]


def test_simulations_that_raise_are_reported(monkeypatch):
    simulator = make_simulator()
    from mujoco.batch import SimulationError

    def fail(nstep: int) -> None:
        raise SimulationError(np.array([0, 3]), "out of memory")

    monkeypatch.setattr(simulator.engine._batch, "step", fail)
    assert simulator.step(torch.zeros(4, 8)).tolist() == [True, False, False, True]


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="counts threads where Linux lists them")
@pytest.mark.parametrize("kind", ["batch", "rollout"])
def test_close_ends_the_physics_threads(kind):
    gc.collect()  # simulators of other tests, which nobody closed, end theirs now
    before = len(list(Path("/proc/self/task").iterdir()))
    simulator = make_simulator(num_envs=16, num_threads=6, engine=kind)
    run(simulator, random_actions(simulator, 2))
    assert len(list(Path("/proc/self/task").iterdir())) >= before + 5
    simulator.close()
    simulator.close()
    assert len(list(Path("/proc/self/task").iterdir())) == before


def test_torch_leaves_the_cores_to_the_physics():
    torch.set_num_threads(2)
    make_simulator(num_envs=1)
    assert torch.get_num_threads() == 1


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"num_threads": 0}, "num_threads must be at least 1"),
        ({"engine": "bach"}, "Did you mean batch"),
        ({"num_envs": 0}, "num_envs must be at least 1"),
    ],
)
def test_bad_input(kwargs, message):
    with pytest.raises(ConfigurationError, match=message):
        make_simulator(**kwargs)


def test_batch_is_refused_where_mujoco_lacks_it(monkeypatch):
    monkeypatch.setattr(engine_module, "HAS_BATCH", False)
    with pytest.raises(ConfigurationError, match=r"has no mujoco\.batch"):
        make_simulator(engine="batch")
    assert type(make_simulator().engine).__name__ == "RolloutEngine"


def test_initial_states_may_differ_between_rows():
    simulator = make_simulator(num_envs=3)
    initial = standing(ANT, 3)
    initial.root_pos_w[:, 0] = torch.tensor([1.0, 2.0, 3.0])
    initial.joint_pos += torch.linspace(-0.1, 0.1, 8)
    simulator.reset(torch.arange(3), initial)
    state: InitialState = simulator.state()  # pyright: ignore[reportAssignmentType]
    for name in InitialState.__dataclass_fields__:
        torch.testing.assert_close(getattr(state, name), getattr(initial, name))
