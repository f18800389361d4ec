"""MuJoCo-Warp behind the seam: it is MuJoCo, rows are independent, breakage and overflow are told, nothing waits.

One robot in one scene, for every further one costs half a minute of compiling where no kernels are cached.
"""

from __future__ import annotations

import logging
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from envs.mujoco.scenes import WALLED, check_snapshot, make_simulator, random_actions, rows, run, standing
from host_waits import NoHostWaits
from myriad_lab.envs.mujoco.simulator import MujocoSimulator
from myriad_lab.envs.mujoco_warp.capacity import footprint, make_data, size_of
from myriad_lab.envs.mujoco_warp.cfg import CapacityCfg
from myriad_lab.envs.mujoco_warp.compat import mjw, wp
from myriad_lab.envs.mujoco_warp.overflow import OverflowWatch
from myriad_lab.envs.mujoco_warp.physics import check_driver
from myriad_lab.envs.mujoco_warp.simulator import MujocoWarpSimulator
from myriad_lab.envs.robot_state import InitialState
from myriad_lab.errors import ConfigurationError
from myriad_lab.tasks.locomotion.robots.robots import ANT, HUMANOID, QUADRUPED


def make_warp(robot=ANT, num_envs: int = 4, **capacity: int) -> MujocoWarpSimulator:
    """Return robots in their default pose."""
    simulator = MujocoWarpSimulator(robot, WALLED, num_envs, capacity=CapacityCfg(**capacity))
    simulator.reset(torch.arange(num_envs), standing(robot, num_envs))
    return simulator


def both(robot, initial) -> tuple[MujocoWarpSimulator, MujocoSimulator]:
    """Return both engines in the same states."""
    ours, reference = make_warp(robot, 8), make_simulator(robot, 8, WALLED)
    for simulator in (ours, reference):
        simulator.reset(torch.arange(8), initial)
    return ours, reference


def crouched(knees: float) -> InitialState:
    """Return ants with bent knees, deep enough to touch the ground, the last ones beside the wall, too."""
    initial = standing(ANT, 8)
    initial.joint_pos[:, 1::2] += knees
    initial.root_pos_w[:, 0] = torch.linspace(0.0, 1.0, 8)
    initial.root_pos_w[:, 2] = 0.33
    return initial


def assert_same_motion(robot, initial) -> None:
    """Step both engines five times with the same actions."""
    ours, reference = both(robot, initial)
    for actions in random_actions(ours, 5):
        assert not ours.step(actions).any()
        reference.step(actions)
        mine, theirs = ours.state(), reference.state()
        for name in ("root_pos_w", "root_quat_w", "joint_pos"):
            torch.testing.assert_close(getattr(mine, name), getattr(theirs, name), atol=1e-5, rtol=0)
        torch.testing.assert_close(mine.root_ang_vel_w, theirs.root_ang_vel_w, atol=2e-3, rtol=0)
        torch.testing.assert_close(mine.joint_torques, theirs.joint_torques, atol=2e-3, rtol=1e-3)
        torch.testing.assert_close(mine.contact_forces, theirs.contact_forces, atol=0.1, rtol=1e-3)
        assert torch.equal(mine.previous_actions, theirs.previous_actions)
    assert (theirs.contact_forces.sum() > 10.0) == (robot is ANT)


def test_it_moves_as_the_c_engine_does():
    assert_same_motion(ANT, crouched(-0.6))


def test_on_steep_shanks_friction_has_other_directions():
    """What docs/mujoco_warp.md says of capsules at more than 60 degrees; where this fails, the engine was mended."""
    engines = both(ANT, crouched(0.6))
    for action in random_actions(engines[0], 1):
        for simulator in engines:
            simulator.step(action)
    mine, theirs = (simulator.state().joint_pos for simulator in engines)
    assert 1e-4 < (mine - theirs).abs().max() < 0.02


@pytest.mark.slow
@pytest.mark.parametrize("robot", [HUMANOID, QUADRUPED], ids=lambda robot: robot.name)
def test_other_robots_move_as_in_the_c_engine(robot):
    in_the_air = standing(robot, 8)
    in_the_air.root_pos_w[:, 2] += 1.0
    assert_same_motion(robot, in_the_air)


def test_the_feet_of_a_standing_robot_carry_what_they_carry_in_the_c_engine():
    ours, reference = make_warp(num_envs=1), make_simulator(ANT, 1, WALLED)
    forces = []
    for simulator in (ours, reference):
        run(simulator, torch.zeros(120, 1, 8))
        forces.append(simulator.state().contact_forces)
    assert forces[1].sum() > 10.0
    torch.testing.assert_close(forces[0], forces[1], atol=0.05, rtol=0.01)


def test_a_captured_step_is_the_step(monkeypatch):
    """Warp captures on a CPU, too; only what speaks of torch's streams is taken away."""
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(wp, "stream_from_torch", lambda device: None)
    captured, eager = make_warp(), make_warp()
    before = captured.state_dict()["physics"]
    captured.physics._graph = captured.physics._capture()
    for name, rows_now in captured.state_dict()["physics"].items():
        assert torch.equal(rows_now, before[name])
    monkeypatch.setattr(captured.physics, "_run", lambda: pytest.fail("it was not replayed"))
    actions = random_actions(captured, 20)
    captured.reset(torch.tensor([1]), standing(ANT, 1))
    assert torch.equal(run(captured, actions), run(eager, actions))


def test_tensors_are_views_of_the_engine():
    simulator = make_warp()
    simulator.physics.qpos[2, 0] = 7.25
    assert simulator.physics._data.qpos.numpy()[2, 0] == 7.25


def test_reset_touches_only_its_rows():
    reference, partial = make_warp(), make_warp()
    actions = random_actions(reference, 20)
    run(reference, actions[:10])
    run(partial, actions[:10])
    before = rows(partial)
    ids = torch.tensor([1, 3])
    partial.reset(ids, standing(ANT, 2))
    assert torch.equal(rows(partial)[[0, 2]], before[[0, 2]])
    fresh = make_warp()
    assert torch.equal(rows(partial)[ids], rows(fresh)[ids])
    after = run(partial, actions[10:])
    assert torch.equal(after[[0, 2]], run(reference, actions[10:])[[0, 2]])
    assert torch.equal(after[ids], run(fresh, actions[10:])[ids])


def test_snapshot_is_exact():
    robot = replace(ANT, action=replace(ANT.action, delay_steps=2))
    check_snapshot(make_warp(robot), make_warp(robot))


def test_snapshots_of_another_size_or_backend_are_refused():
    simulator = make_warp(num_envs=2)
    for other in (make_warp(num_envs=3), make_simulator(num_envs=2)):
        with pytest.raises(ConfigurationError, match="another num_envs, robot or backend"):
            simulator.load_state_dict(other.state_dict())


@pytest.mark.parametrize(("name", "value"), [("qpos", torch.nan), ("qvel", torch.inf), ("qvel", 1e7)])
def test_a_broken_robot_is_reported_and_stays_finite(name, value):
    broken, healthy = make_warp(), make_warp()
    actions = random_actions(broken, 6)
    run(broken, actions[:3])
    run(healthy, actions[:3])
    before = rows(broken)
    getattr(broken.physics, name)[2, 0] = value
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


def test_neither_step_nor_reset_waits_for_the_device():
    simulator = make_warp()
    actions, ids, initial = random_actions(simulator, 8), torch.tensor([0, 2]), standing(ANT, 2)
    with NoHostWaits():
        for action in actions:
            simulator.step(action)
            simulator.reset(ids, initial)


@pytest.mark.parametrize(("name", "what"), [("njmax", "some constraints"), ("nconmax", "some contacts")])
def test_too_little_room_is_told_once_with_the_number_to_raise(name, what, caplog):
    simulator = make_warp(num_envs=2, **{name: 1})
    with caplog.at_level(logging.WARNING, logger="myriad_lab"):
        for action in random_actions(simulator, 60):
            simulator.step(action)
        simulator.state_dict()
        simulator.close()
    told = [record.getMessage() for record in caplog.records if what in record.getMessage()]
    assert len(told) == 1
    assert f"raise env.capacity.{name}, it is 1" in told[0]


def test_the_defaults_hold_ants_thrown_at_a_wall(caplog):
    simulator = make_warp(num_envs=16)
    thrown = standing(ANT, 16)
    thrown.root_pos_w[:, 0] = 1.0
    thrown.root_lin_vel_w[:, 0] = 6.0
    thrown.root_quat_w[:] = torch.nn.functional.normalize(torch.randn(16, 4, generator=torch.manual_seed(0)))
    simulator.reset(torch.arange(16), thrown)
    caplog.clear()  # it said that it runs on a CPU
    with caplog.at_level(logging.WARNING, logger="myriad_lab"):
        for action in random_actions(simulator, 60):
            simulator.step(action.sign())
        simulator.close()
    assert not caplog.records


def test_overflow_is_seen_without_being_asked_for(caplog):
    flags = torch.zeros(3, dtype=torch.int32)
    watch = OverflowWatch(flags, {"njmax": 8}, interval=5)
    flags[1] |= int(mjw.OverflowType.NEFC | mjw.OverflowType.LS_ITERATIONS)
    for step in range(1, 21):
        watch.after_step()
        assert len(caplog.records) == (1 if step >= 10 else 0)  # looked at after 5 steps, told when 5 more are done
    assert "constraints in 1 of 3 envs" in caplog.text
    assert "it is 8" in caplog.text
    flags |= int(mjw.OverflowType.NARROWPHASE)  # the engine raises it everywhere
    watch.check()
    assert "contacts in some of 3 envs" in caplog.text


def test_a_device_that_warp_does_not_see_is_refused(monkeypatch):
    monkeypatch.setattr(wp, "get_cuda_device_count", lambda: 1)
    with pytest.raises(ConfigurationError, match=r"on cuda:1: Warp .* sees 1 CUDA devices.*R580.*\+cu12"):
        check_driver(torch.device("cuda:1"))
    monkeypatch.setattr(wp, "is_conditional_graph_supported", lambda: False)
    with pytest.raises(ConfigurationError, match=r"on cuda:0 needs a driver of CUDA 12\.4"):
        check_driver(torch.device("cuda:0"))
    check_driver(torch.device("cpu"))


@pytest.mark.parametrize(
    ("robot", "expected"),
    [(ANT, (34, 144, 9)), (HUMANOID, (66, 285, 17))],
    ids=lambda value: getattr(value, "name", ""),
)
def test_capacity_follows_from_the_geometry(robot, expected):
    from myriad_lab.envs.mujoco.model import build_model
    from myriad_lab.envs.mujoco_warp.capacity import Capacity, capacity_of

    model = build_model(robot, WALLED)
    assert capacity_of(model, CapacityCfg()) == Capacity(*expected)
    assert capacity_of(model, CapacityCfg(nconmax=6, njmax=20, nccdmax=9)) == Capacity(6, 20, 6)


def test_footprint_is_what_is_allocated():
    simulator = make_warp(num_envs=5)
    told = footprint(simulator.model, simulator.capacity)
    with wp.ScopedDevice("cpu"):
        sizes = [size_of(make_data(simulator.model, num_envs, simulator.capacity)) for num_envs in (40, 90)]
    assert sizes[1] - sizes[0] == 50 * told.per_env
    assert size_of(simulator.physics._data) - 5 * told.per_env == sizes[0] - 40 * told.per_env
    # What a physics step takes in addition is counted by Warp itself.
    reports: list[str] = []
    with wp.ScopedMemoryTracker("step", report_func=reports.append):
        simulator.physics.advance()
    total = next(line for line in reports[0].splitlines() if line.split()[:1] == ["cpu"] and "(" in line)
    amount, unit = total.split("(")[1].rstrip(")").split()
    taken = float(amount) * {"B": 1, "KB": 1024, "MB": 1024**2}[unit] / simulator.robot.decimation / 5
    assert 0.8 * taken < told.scratch_per_env < 1.5 * taken


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [({"njmax": 0}, r"capacity\.njmax=0; expected at least 1"), ({"num_envs": 0}, "num_envs must be at least 1")],
)
def test_bad_input(kwargs, message):
    with pytest.raises(ConfigurationError, match=message):
        make_warp(**kwargs)


def test_a_second_close_is_idle():
    simulator = make_warp(num_envs=1)
    simulator.close()
    simulator.close()


@pytest.mark.parametrize("missing", ["warp", "mujoco_warp"])
def test_a_missing_package_is_told_with_the_way_to_get_it(missing, monkeypatch):
    name = "myriad_lab.envs.mujoco_warp.compat"
    monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.setattr("importlib.util.find_spec", lambda package: None if package == missing else object())
    with pytest.raises(ConfigurationError, match=r"pip install 'myriad-lab\[warp\]'"):
        __import__(name)


COMPILE = """
import sys
import torch, warp
from myriad_lab.tasks.registry import make_env

for task in ("Myriad-AntMaze-Maze", "Myriad-AntMaze-Pyramid", "Myriad-Humanoid", "Myriad-Velocity-Quadruped"):
    env = make_env(task, backend="mujoco_warp", num_envs=1)
    env.step(torch.zeros(1, env.num_actions))
for module in [module for module in warp._src.context.user_modules.values() if module.execs]:
    warp.compile_aot_module(module, arch=90, module_dir=sys.argv[1], use_ptx=False)
"""


@pytest.mark.slow
def test_all_kernels_compile_for_a_gpu_that_is_not_there(tmp_path):
    # in a process of its own, which has loaded the kernels of these scenes alone: walls, a height field, other robots
    subprocess.run([sys.executable, "-c", COMPILE, str(tmp_path)], check=True)
    cubins = list(tmp_path.rglob("*.sm90.cubin"))
    assert len(cubins) > 30
    assert all(cubin.stat().st_size > 0 for cubin in cubins)
