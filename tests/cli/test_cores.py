"""Which cores physics takes, beside other ranks and beside learner processes."""

from __future__ import annotations

import os
from typing import Any

import pytest

from myriad_lab.cli import train
from myriad_lab.cli.ranks import physics_threads
from myriad_lab.distributed.process_group import Place
from myriad_lab.envs import cores
from myriad_lab.runners.parallel_q_cfg import ParallelQRunnerCfg


@pytest.mark.parametrize(
    ("own", "launcher", "ranks", "learner_threads", "threads"),
    [
        (8, 8, 1, 0, None),
        (8, 8, 1, 2, 6),
        (2, 2, 1, 2, 1),
        (8, 8, 2, 0, 4),
        (4, 8, 2, 0, 4),  # bound to cores of its own
        (2, 2, 4, 0, 1),
    ],
)
def test_physics_takes_the_cores_that_others_leave(
    own: int, launcher: int, ranks: int, learner_threads: int, threads: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = {0: own, os.getppid(): launcher}
    monkeypatch.setattr(cores, "usable_cores", lambda process=0: list(range(counts[process])))
    place = Place(world_size=ranks, local_world_size=ranks)
    assert physics_threads(place, learner_threads) == threads


class Reached(Exception):  # noqa: N818
    """The env would be built now."""


@pytest.mark.parametrize(("mode", "threads"), [("parallel", 6), ("interleaved", None)])
def test_a_run_with_learner_processes_leaves_them_cores(
    mode: str, threads: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def build(plan: Any, ranks: Any, num_threads: int | None) -> None:
        asked.append(num_threads)
        raise Reached

    monkeypatch.setattr(cores, "usable_cores", lambda process=0: list(range(8)))
    monkeypatch.setattr(train, "_make_env", build)
    monkeypatch.setattr(train, "settle_torch", lambda deterministic: None)
    flags = {"task": "Myriad-PointMaze-Maze", "algorithm": "pql", "num_envs": 8, "num_policies": 1}
    with pytest.raises(Reached):
        train.train(flags, [f"agent.runner.mode={mode}"])
    assert asked == [threads]


def test_only_learners_in_processes_of_their_own_take_cores() -> None:
    assert ParallelQRunnerCfg(learner_threads=3).process_threads == 0
    assert ParallelQRunnerCfg(mode="parallel", learner_threads=3).process_threads == 6
