"""Which cores physics takes, beside other ranks and beside learner processes."""

from __future__ import annotations

import os

import pytest

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


def test_only_learners_in_processes_of_their_own_take_cores() -> None:
    assert ParallelQRunnerCfg(learner_threads=3).process_threads == 0
    assert ParallelQRunnerCfg(mode="parallel", learner_threads=3).process_threads == 6
