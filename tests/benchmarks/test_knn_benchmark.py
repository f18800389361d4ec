"""The lines of the neighbour-search benchmark; the times themselves are not judged."""

from __future__ import annotations

import pytest
import torch

from myriad_lab.cli.benchmarks import knn as benchmark


def test_quick_lines(monkeypatch):
    done = []
    monkeypatch.setattr(benchmark, "_timed", lambda work, device: done.append(work()) or (2.0, 3.0))
    monkeypatch.setattr(benchmark, "_peak_flops", lambda device: 1e9)
    monkeypatch.setattr(benchmark, "_peak_looks", lambda device: 1e12)
    lines = [line for case in benchmark.cases("cpu", quick=True) for line in case.run()]
    assert [line.size for line in lines[:2]] == ["4096 of 4096 points, d=2", "4096 of 4096 points, d=8"]
    assert lines[0].floor_s == pytest.approx(2 * 4096**2 * 2 / 1e9)
    assert lines[0].peer in ("bare torch cdist + topk", "bare scipy KDTree")
    assert [line.name for line in lines[2:]] == [
        "particle rewards, own",
        "particle rewards, mepol",
        "particle rewards, own, other trajectories",
    ]
    assert len(done) == 2 * 3 + 2 + 3


def test_a_part_of_the_points_as_queries(monkeypatch):
    monkeypatch.setattr(benchmark, "_timed", lambda work, device: (work(), (2.0, 3.0))[1])
    monkeypatch.setattr(benchmark, "MAX_PAIRS", 2**16)
    line = benchmark._size(1024, 8, "cpu", 1e9, 1.0)[0]
    assert line.size == "64 of 1024 points, d=8"
    assert line.floor_s == 64 * 1024
    points = benchmark.walks(1024, 8, "cpu")
    assert set(benchmark._peers(points, points, "cpu")) == {"scipy KDTree"}
    assert torch.equal(points, benchmark.walks(1024, 8, "cpu"))
