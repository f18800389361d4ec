"""The story: its goal, and that it goes on where it was interrupted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from myriad_lab.cli.goal import candidates, choose_goal
from myriad_lab.cli.plan import make_plan
from myriad_lab.cli.story import load_story
from myriad_lab.errors import ConfigurationError

GOAL_TASK = "Myriad-PointMaze-Maze-Goal"


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_candidates_begin_at_the_percentile_and_end_at_the_farthest_cell() -> None:
    assert candidates(80.0) == [80.0, 84.0, 88.0, 92.0, 96.0, 100.0]
    assert candidates(93.0) == [93.0, 97.0, 100.0]
    assert candidates(100.0) == [100.0]


def test_a_goal_is_chosen_on_the_map_of_the_run() -> None:
    flags = {"task": GOAL_TASK, "algorithm": "pql", "num_envs": 8}
    plans = [make_plan(flags, ["env.episode_steps=5", f"env.arena_scale={scale}"]) for scale in (0.4, 0.8)]
    small, large = (choose_goal(plan, percentile=60.0, episodes=4) for plan in plans)
    assert (small.percentile, small.random_episodes) == (60.0, 4)
    assert large.goal == plans[1].task.arena.far_goal(60.0)
    assert large.goal != small.goal


def test_a_goal_that_chance_meets_is_moved_farther() -> None:
    plan = make_plan({"task": GOAL_TASK, "algorithm": "pql", "num_envs": 8}, ["env.episode_steps=60"])
    chosen = choose_goal(plan, percentile=1.0, episodes=64)
    assert chosen.percentile > 1.0
    assert chosen.percentile in candidates(1.0)


@pytest.mark.parametrize("percentile", [0.0, -3.0, 100.5, float("nan")])
def test_a_goal_percentile_out_of_range(percentile: float, monkeypatch: pytest.MonkeyPatch) -> None:
    from myriad_lab.cli import configuration

    preset: dict[str, Any] = {"goal_percentile": percentile}
    monkeypatch.setattr(configuration, "read_preset", lambda group, name: preset)
    with pytest.raises(ConfigurationError, match=r"goal_percentile=.*expected a number in \(0, 100\]"):
        load_story("point")


def test_shipped_stories() -> None:
    assert {name: load_story(name).goal_percentile for name in ("point", "ant", "quick")} == {
        "point": 80.0,
        "ant": 15.0,
        "quick": 80.0,
    }
