"""The clock, the rates and the peaks; times themselves are not judged."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from myriad_lab.cli.benchmarks import line as clock
from myriad_lab.cli.benchmarks.line import BenchmarkLine, Timing, in_turns, measure, summary
from myriad_lab.cli.benchmarks.memory import PeakMemory, free_bytes
from myriad_lab.cli.benchmarks.rates import Rates, Yardsticks, count_kernels


def test_summary_is_of_the_values_given() -> None:
    assert summary([5.0, 1.0, 3.0]) == (3.0, 5.0)
    assert summary([float(i) for i in range(101)]) == (50.0, 95.0)
    assert summary([2.0]) == (2.0, 2.0)


def test_works_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    works = {name: lambda name=name: calls.append(name) for name in "abc"}
    now = iter(range(1000))
    monkeypatch.setattr(clock, "time", SimpleNamespace(perf_counter=lambda: float(next(now))))
    timings = in_turns(works, "cpu")
    assert timings == {name: Timing(1.0, 1.0) for name in "abc"}
    # one call to warm up and one timed, each on its own; then in turns, to and fro
    assert "".join(calls) == "aabbcc" + "abc" + "cba"
    calls.clear()
    in_turns(works, "cpu", quick=True)
    assert "".join(calls) == "aabbcc" + "abc"


def test_measure_warms_up() -> None:
    calls: list[int] = []
    timing = measure(lambda: calls.append(1), repetitions=4, warmup=3)
    assert len(calls) == 7
    assert 0.0 <= timing.median_s <= timing.p95_s


def test_ratios_of_a_line() -> None:
    line = BenchmarkLine("a, b", "1", 3.0, 4.0, 1.5, "bytes", 6.0, "other")
    assert (line.floor_ratio, line.peer_ratio) == (2.0, 0.5)
    bare = BenchmarkLine("a, b", "1", 3.0, 4.0)
    assert (bare.floor_ratio, bare.peer_ratio) == (None, None)


def test_floor_is_the_largest_part() -> None:
    rates = Rates(flops=100.0, bytes=10.0, launch_s=0.5, node_s=0.01)
    assert rates.floor(200.0, 10.0) == (2.0, "arithmetic")
    assert rates.floor(200.0, 30.0) == (3.0, "bytes")
    assert rates.floor(1.0, 1.0) == (0.5, "one launch")
    assert rates.launches(1) == 0.5
    assert rates.launches(101) == pytest.approx(1.5)


def test_rates_are_read_from_times() -> None:
    yardsticks = Yardsticks("cpu")
    timings = {name: Timing(2.0, 2.0) for name in yardsticks.works}
    rates = yardsticks.read(timings)
    assert rates == Rates(1024.0**3, 2.0**26)
    launches = {"graph of 1": Timing(10e-6, 0.0), "graph of 101": Timing(110e-6, 0.0)}
    on_gpu = yardsticks.read(timings | launches)
    assert (on_gpu.launch_s, on_gpu.node_s) == pytest.approx((10e-6, 1e-6))
    assert yardsticks.works["large GEMM"]().dtype == torch.float32
    assert Yardsticks("cpu", torch.bfloat16).works["large GEMM"]().dtype == torch.bfloat16
    assert count_kernels(lambda: None, "cpu") == 0


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells")
def test_peak_sees_what_was_held_and_freed() -> None:
    size = 2**26
    with PeakMemory("cpu") as peak:
        held = torch.ones(size // 4)
        del held
    assert peak.num_bytes is not None
    assert 0.9 * size < peak.num_bytes < 2.0 * size
    with PeakMemory("cpu") as later:
        pass
    assert later.num_bytes is not None
    assert later.num_bytes < 0.5 * size
    free = free_bytes("cpu")
    assert free is not None
    assert free > size


def test_peak_is_unknown_where_the_system_does_not_tell(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    from myriad_lab.cli.benchmarks import memory

    for name in ("_STATUS", "_CLEAR", "_INFO"):
        monkeypatch.setattr(memory, name, tmp_path / "missing" / "file")
    with PeakMemory("cpu") as peak:
        pass
    assert peak.num_bytes is None
    assert free_bytes("cpu") is None


def test_a_gpu_is_asked_for_its_tensors_and_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is asked of CUDA, told by stand-ins: nothing here has run on a GPU."""
    done: list[str] = []
    for name, answer in (("memory_allocated", 100), ("max_memory_allocated", 175), ("mem_get_info", (7, 9))):
        monkeypatch.setattr(torch.cuda, name, lambda device, answer=answer: answer)
    for name in ("synchronize", "reset_peak_memory_stats", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, lambda *device, name=name: done.append(name))
    with PeakMemory("cuda:0") as peak:
        pass
    assert (peak.num_bytes, free_bytes("cuda:0")) == (75, 7)
    assert done == ["synchronize", "reset_peak_memory_stats", "empty_cache"]

    class Profile:
        def __init__(self, activities: list) -> None:
            assert activities == [torch.profiler.ProfilerActivity.CUDA]

        def __enter__(self) -> Profile:
            return self

        def __exit__(self, *error: object) -> None:
            done.append("profiled")

        def events(self) -> list[SimpleNamespace]:
            kinds = torch.autograd.DeviceType
            return [SimpleNamespace(device_type=kind) for kind in (kinds.CUDA, kinds.CPU, kinds.CUDA)]

    monkeypatch.setattr(torch.profiler, "profile", Profile)
    assert count_kernels(lambda: done.append("work"), "cuda:0") == 2
    assert done[-3:] == ["work", "synchronize", "profiled"]
