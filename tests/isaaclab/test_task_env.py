"""Our tasks in Isaac Lab, on both engines that need no Isaac Sim, beside the same tasks on MuJoCo."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from myriad_lab.tasks.registry import get, list_tasks

pytestmark = [pytest.mark.isaaclab, pytest.mark.timeout(600)]

WORKER = Path(__file__).with_name("task_env_worker.py")
IDS = [entry.id for entry in list_tasks() if "isaaclab" in entry.backends]
MOTION = ("root_pos_w", "root_quat_w", "root_lin_vel_w", "root_ang_vel_w", "joint_pos", "joint_vel")
NEWTON, PHYSX = "newton_mjwarp", "ovphysx"
TOLERANCE = {
    # Newton runs MuJoCo's own solver: the same robot moves alike, to single precision.
    NEWTON: {"fall": 1e-3, "pulse": 1e-3, "stand": 1e-3, "drop": 1e-3},
    # PhysX integrates and rubs otherwise: its feet stick where MuJoCo's creep, so that a dropped ant rests lower.
    PHYSX: {"fall": 0.06, "pulse": 0.06, "stand": 0.02, "drop": 0.1},
}


@pytest.fixture(scope="module", params=(NEWTON, PHYSX))
def engine(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def seen(engine: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the worker saw on the engine."""
    path = tmp_path_factory.mktemp("worker") / "seen.pt"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(WORKER), engine, str(path)], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return torch.load(path, weights_only=True)


def test_configurations_load_nothing_that_must_wait_for_kit(seen: dict[str, Any]) -> None:
    assert seen["loaded"] == []


def test_every_task_was_played(seen: dict[str, Any]) -> None:
    assert list(seen["steps"]) == IDS


@pytest.mark.parametrize("task_id", IDS)
def test_random_steps(task_id: str, seen: dict[str, Any]) -> None:
    found, entry = seen["steps"][task_id], get(task_id)
    task = entry.make_task(entry.cfg)
    widths = {
        group: sum(torch.Size(term.shape).numel() for term in terms)
        for group, terms in task.observation_terms().items()
    }
    assert found["shapes"] == {group: (4, width) for group, width in widths.items()}
    assert found["rewards"] == (4,)
    assert found["finite"]
    assert found["largest_action"] == 1.0
    assert found["max_episode_length"] == entry.cfg.episode_steps
    assert found["step_dt"] == pytest.approx(task.robot.control_period)


@pytest.mark.parametrize("task_id", IDS)
def test_a_state_reads_back_as_it_was_written(task_id: str, seen: dict[str, Any]) -> None:
    error = seen["steps"][task_id]["error"]
    assert set(error) == set(MOTION)
    assert max(error.values()) < 1e-5


@pytest.mark.parametrize("task_id", IDS)
def test_the_seed_decides_on_the_starts(task_id: str, seen: dict[str, Any]) -> None:
    assert seen["steps"][task_id]["same_start"]


@pytest.mark.parametrize("motion", ["fall", "pulse", "stand", "drop"])
def test_moves_as_on_mujoco(motion: str, engine: str, seen: dict[str, Any]) -> None:
    here, mujoco = seen["mujoco"][motion]["here"], seen["mujoco"][motion]["mujoco"]
    for name in MOTION:
        assert torch.allclose(here[name], mujoco[name], rtol=0.0, atol=TOLERANCE[engine][motion]), name
    if motion == "pulse":
        pushed = here["joint_vel"][:, [0, 3]]
        assert (pushed[:, 0] > 9.0).all()
        assert (pushed[:, 1] < -10.0).all()
        assert torch.equal(here["joint_torques"], mujoco["joint_torques"])
    if motion == "stand":
        assert (here["root_pos_w"] - mujoco["root_pos_w"]).abs().max() < 0.002
        assert here["contact_forces"] == pytest.approx(mujoco["contact_forces"], rel=0.02)


def test_walls_stop_an_ant(seen: dict[str, Any]) -> None:
    for name in ("wall", "wall_together"):
        furthest = seen[name].amax(0)
        # The wall stands at 20 m, and the ball of the ant has a radius of 0.25 m.
        assert (furthest > 19.7).all()
        assert (furthest < 19.8).all()


def test_ants_stand_on_a_slope(seen: dict[str, Any]) -> None:
    assert seen["slope"]["ground"] == pytest.approx(2.0)
    assert (seen["slope"]["above"] > 0.4).all()
    assert (seen["slope"]["above"] < 0.8).all()


def test_robots_of_different_envs_do_not_touch(seen: dict[str, Any]) -> None:
    state = seen["one_place"]
    alone = state["root_pos_w"][3] - torch.tensor([2.0, 0.0, 0.0])
    for row in range(3):
        assert torch.allclose(state["root_pos_w"][row], alone, atol=1e-3)
        assert torch.allclose(state["joint_pos"][row], state["joint_pos"][3], atol=1e-2)


def test_a_partial_reset_touches_its_rows_only(seen: dict[str, Any]) -> None:
    before, after = seen["partial"]["before"], seen["partial"]["after"]
    others = torch.tensor([0, 1, 3])
    for name in before:
        assert torch.equal(before[name][others], after[name][others]), name
    assert not torch.equal(before["joint_pos"][2], after["joint_pos"][2])
    for name in ("actions", "previous_actions", "joint_torques", "root_lin_vel_w", "joint_vel"):
        assert before[name][2].abs().max() > 0
        assert after[name][2].abs().max() == 0
    assert [ages.tolist() for ages in seen["partial"]["ages"]] == [[3, 3, 3, 3], [3, 3, 0, 3]]


def test_the_goal_ends_one_episode(seen: dict[str, Any]) -> None:
    found, only_second = seen["goal"], [False, True, False, False]
    for name in ("terminated", "success"):
        assert found[name].tolist() == only_second
    assert found["rewards"].tolist() == [0.0, 1.0, 0.0, 0.0]
    assert not found["time_outs"].any()
    assert not found["diverged"].any()
    assert not found["success_next"].any()
    # The last observation is that at the goal, the one handed out that of the new start.
    assert torch.allclose(found["final"][1], found["goal"], atol=0.05)
    assert (found["features"][1] - found["start"]).abs().max() <= 0.1
    assert torch.equal(found["final"][[0, 2, 3]], found["features"][[0, 2, 3]])


def test_ends_are_logged_once(seen: dict[str, Any]) -> None:
    found = seen["goal"]
    assert {name: float(value) for name, value in found["log"].items()} == {
        "Episode_Reward/goal": 1.0,
        "Episode_Termination/terminated": 1.0,
        "Episode_Termination/time_out": 0.0,
        "Episode_Termination/diverged": 0.0,
        "Metrics/episode_length": 1.0,
        "Metrics/success": 1.0,
    }
    assert not found["log_next"]


def test_what_follows_from_the_task_cannot_be_set_otherwise() -> None:
    from isaaclab_tasks.utils import load_cfg_from_registry

    import myriad_lab.tasks.isaaclab  # noqa: F401
    from myriad_lab.errors import ConfigurationError

    cfg = load_cfg_from_registry("Myriad-AntMaze-Maze", "env_cfg_entry_point")
    cfg.task.decimation, cfg.task.episode_steps = 2, 50
    entry = get("Myriad-AntMaze-Maze")
    cfg.resolve(entry.make_task(cfg.task))
    assert (cfg.decimation, cfg.sim.render_interval, cfg.sim.dt) == (2, 2, pytest.approx(1 / 120))
    assert cfg.episode_length_s == pytest.approx(49.5 * 2 / 120)
    cfg.decimation = 3
    with pytest.raises(ConfigurationError, match=r"env\.decimation=3: this follows from the task.*make it 2"):
        cfg.resolve(entry.make_task(cfg.task))


@pytest.mark.parametrize("engine", ["newton_mjwarp", "ovphysx"])
def test_robots_stand_where_their_arena_is(engine: str) -> None:
    from isaaclab_tasks.utils import load_cfg_from_registry

    import myriad_lab.tasks.isaaclab  # noqa: F401
    from myriad_lab.errors import ConfigurationError

    cfg = load_cfg_from_registry("Myriad-AntMaze-Maze", "env_cfg_entry_point")
    cfg.sim.physics = getattr(cfg.sim.physics, engine)
    cfg.scene.env_spacing = 3.0
    with pytest.raises(ConfigurationError, match=r"env\.scene\.env_spacing=3\.0: this follows from"):
        cfg.resolve(get("Myriad-AntMaze-Maze").make_task(cfg.task))


def test_places_of_their_own_for_physx_alone() -> None:
    from isaaclab_tasks.utils import load_cfg_from_registry

    import myriad_lab.tasks.isaaclab  # noqa: F401

    def resolved(engine: str, task_id: str) -> Any:
        cfg = load_cfg_from_registry(task_id, "env_cfg_entry_point")
        cfg.sim.physics = getattr(cfg.sim.physics, engine)
        cfg.resolve(get(task_id).make_task(cfg.task))
        return cfg.scene

    scene = resolved(NEWTON, "Myriad-AntMaze-Maze")
    assert (scene.env_spacing, scene.ground, scene.arena.prim_path) == (0.0, None, "/World/arena")
    scene = resolved(PHYSX, "Myriad-AntMaze-Maze")
    assert (scene.env_spacing, scene.ground.prim_path, scene.arena.prim_path) == (
        45.0,
        "/World/ground",
        "{ENV_REGEX_NS}/Arena",
    )
    assert not scene.arena.spawn.ground
    scene = resolved(PHYSX, "Myriad-Ant")
    assert scene.ground.prim_path == "/World/ground"
    assert scene.arena is None
    scene = resolved(PHYSX, "Myriad-AntMaze-Pyramid")
    assert scene.ground is None
    assert scene.arena.spawn.ground
