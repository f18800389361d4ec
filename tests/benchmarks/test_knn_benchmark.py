"""The lines of the neighbour-search benchmark; the times themselves are not judged."""

from __future__ import annotations

import pytest
import torch

from myriad_lab.cli.benchmarks import knn as benchmark
from myriad_lab.cli.benchmarks.line import Timing


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """Run everything once and say that it took 2 s."""
    done = []

    def once(works, device):
        done.extend(work() for work in works.values())
        return dict.fromkeys(works, Timing(2.0, 3.0))

    monkeypatch.setattr(benchmark, "in_turns", once)
    return done


def test_quick_lines(monkeypatch, clock):
    for name, rate in (("_peak_flops", 1e9), ("_peak_looks", 1e12), ("_peak_bytes", 1e12)):
        monkeypatch.setattr(benchmark, name, lambda device, rate=rate: rate)
    lines = [line for case in benchmark.cases("cpu", quick=True) for line in case.run()]
    assert [line.size for line in lines[:2]] == [f"4096 of 4096 points, d={dim}, k=5" for dim in (2, 8)]
    assert lines[0].floor_s == pytest.approx(2 * 4096**2 * 2 / 1e9)
    assert lines[0].peer in ("bare torch cdist + topk", "bare scipy KDTree")
    assert [line.name for line in lines[2:]] == [
        "particle rewards, own",
        "particle rewards, mepol",
        "particle rewards, own, other trajectories",
    ]
    assert len(clock) >= 2 + 3 + 1  # ours and the libraries that are not far slower


def test_what_is_far_slower_is_timed_once(clock, monkeypatch):
    times = {"near": 1.0, "far": 4.5}
    monkeypatch.setattr(benchmark, "measure", lambda work, *rest, **more: Timing(times[work()], 0.0))
    timings = benchmark._compared({name: lambda name=name: name for name in times}, "cpu")
    assert {name: timing.median_s for name, timing in timings.items()} == {"near": 2.0, "far": 4.5}
    assert clock == ["near"]


def test_the_floor_is_the_largest_of_three():
    search = benchmark.Search(64, 1024, 8, 5)
    assert benchmark.floor(search, benchmark.Rates(2.0, 1e12, 1e12)) == 64 * 1024 * 8
    assert benchmark.floor(search, benchmark.Rates(1e12, 2.0, 1e12)) == 64 * 1024 / 2
    assert benchmark.floor(search, benchmark.Rates(1e12, 1e12, 4.0)) == (64 + 1024) * 8 + 3 * 64 * 5


def test_a_part_of_the_points_as_queries(monkeypatch):
    monkeypatch.setitem(benchmark.MAX_PAIRS, "cpu", 2**28)
    assert benchmark.Search(4096, 65_536, 32, 5) in benchmark.searches("cpu", quick=False)
    line = benchmark._size(benchmark.Search(64, 1024, 8), "cpu", benchmark.Rates(1e12, 1.0, 1e12))[0]
    assert line.size == "64 of 1024 points, d=8, k=5"
    assert ", recall 1;" in line.note
    assert line.floor_s == 64 * 1024
    points = benchmark.walks(1024, 8, "cpu")
    monkeypatch.setitem(benchmark.EXHAUSTIVE_PAIRS, "cpu", 2**16)
    assert not {"torch cdist + topk", "faiss flat"} & set(benchmark._peers(points, points, 5, "cpu"))
    assert torch.equal(points, benchmark.walks(1024, 8, "cpu"))


def test_on_a_cpu_the_exhaustive_libraries_are_asked_at_every_size():
    table = benchmark.searches("cpu", quick=False)
    assert {benchmark.Search(65_536, 65_536, 3), benchmark.Search(4096, 10**6, 128)} <= set(table)
    assert all(size.num_queries * size.num_points <= benchmark.EXHAUSTIVE_PAIRS["cpu"] for size in table)


def test_recall_is_the_share_of_true_neighbours():
    points = benchmark.walks(256, 3, "cpu")
    _, indices = benchmark.knn(points, points, 4, exclude="self")
    assert benchmark.recall(points, points, indices, own_row=True) == 1.0
    for wrong in (indices[:, :1], torch.arange(256)[:, None]):  # one of four named twice; the point itself
        some = torch.cat((indices[:, :3], wrong), dim=1)
        assert benchmark.recall(points, points, some, own_row=True) == 0.75
    assert benchmark.recall(points, points, indices[:, 3:], own_row=False) == 0.0


def test_trees_are_for_few_dimensions():
    for dim, trees in ((benchmark.TREES_MAX_DIM, True), (benchmark.TREES_MAX_DIM + 1, False)):
        points = benchmark.walks(64, dim, "cpu")
        assert ("scipy KDTree" in benchmark._peers(points, points, 5, "cpu")) == trees


def test_a_gpu_searches_among_millions():
    table = benchmark.searches("cuda", quick=False)
    for size in ((4096, 65_536, 64), (4096, 10**6, 128), (16_384, 5 * 10**6, 64), (32_768, 10**6, 64)):
        assert {benchmark.Search(*size, 5), benchmark.Search(*size, 12)} <= set(table)
    assert benchmark.Search(2**20, 2**20, 2, 5) in table
    assert all(search.num_queries * search.num_points <= 2**37 for search in table if search.dim > 3)


def test_rates_are_measured(monkeypatch):
    seen = []

    def once(work, device):
        work()
        seen.append(torch.get_float32_matmul_precision())
        return 2.0

    monkeypatch.setattr(benchmark, "_fastest", once)
    assert benchmark._peak_flops("cpu") == 2048**3
    assert benchmark._peak_looks("cpu") == 64 * 8192 / 2
    assert benchmark._peak_bytes("cpu") == 4 * 2**25
    assert seen == ["highest"] * 3
    assert torch.get_float32_matmul_precision() == "highest"
