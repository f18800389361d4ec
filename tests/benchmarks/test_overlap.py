"""Collector and learners apart and together: the line says so, and cores are given back."""

from __future__ import annotations

import os

import pytest
import torch

from myriad_lab.cli.benchmarks import overlap
from myriad_lab.cli.benchmarks.line import Timing
from myriad_lab.envs.cores import usable_cores


def test_quick_line() -> None:
    before, threads = usable_cores(), torch.get_num_threads()
    (case,) = overlap.cases("cpu", quick=True)
    (line,) = case.run()
    assert (usable_cores(), torch.get_num_threads()) == (before, threads)
    assert line.size == "64 envs, 2 critic updates of 32 rows per step"
    assert (line.floor, line.peer) == ("the longer alone", "in turns")
    assert line.p95_s >= line.measured_s > 0
    assert line.floor_s
    assert line.peer_s
    assert "2 critic and 1 policy updates per step" in line.note
    assert ("nothing pinned" in line.note) == (len(before) < 2)


def test_the_line_is_the_arithmetic_of_its_times() -> None:
    times = {"alone": Timing(0.03, 0.03), "turns": Timing(0.05, 0.06), "parallel": Timing(0.035, 0.04)}
    metrics = {"Perf/policy_lag": 2.0, "Perf/collector_wait": 0.25}
    setting = overlap.Setting("Myriad-Ant", 1024, 256, 3)
    cores = overlap.Cores((0,), (1,))
    line = overlap._line(setting, times, 0.02, metrics, cores)
    assert (line.measured_s, line.p95_s, line.floor_s, line.peer_s) == (0.035, 0.04, 0.03, 0.05)
    assert "overlap efficiency 0.75 (in turns 0.00)" in line.note
    assert "collector waits 25%, policy lag 2 updates, 1.3 env steps, 3 critic and 1.5 policy updates" in line.note
    assert "per step, 1.125 rows drawn per transition" in line.note
    assert line.note.endswith("cores [0] and [1]")


def test_cores_are_shared_by_halves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlap, "usable_cores", lambda: [1, 3, 4, 6, 7])
    cores = overlap.share_cores("cpu")
    assert (cores.collector, cores.learners, cores.pinned) == ((1, 3), (4, 6, 7), True)
    assert not overlap.share_cores("cuda:0").pinned
    monkeypatch.setattr(overlap, "usable_cores", lambda: [2])
    assert overlap.share_cores("cpu") == overlap.Cores((2,), (2,))


def test_cores_are_given_back_after_an_error() -> None:
    before = usable_cores()

    def fail() -> None:
        with overlap.pinned(before[:1]):
            assert sorted(os.sched_getaffinity(0)) == before[:1]
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        fail()
    assert usable_cores() == before


def test_larger_settings_on_a_gpu() -> None:
    on_cpu, on_gpu = ([case.name for case in overlap.cases(device, quick=False)] for device in ("cpu", "cuda:0"))
    assert on_gpu[:-1] == on_cpu
    assert "65536 envs" in on_gpu[-1]
