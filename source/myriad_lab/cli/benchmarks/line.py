"""One line of a benchmark, and the clock that fills it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class BenchmarkLine:
    """A measured time beside the best one could hope for, or beside the bare library."""

    name: str
    """What was measured, e.g. ``env step, Myriad-Ant``."""
    size: str
    """For which size, e.g. ``1024 envs``."""
    measured_s: float
    """Median time of one repetition [s]."""
    p95_s: float
    """95th percentile of the time of one repetition [s]."""
    reference_s: float
    """Time of the floor or of the bare library for the same work [s]."""
    peer: str
    """What the reference is, e.g. ``mujoco.batch``."""
    note: str = ""
    """Anything else, e.g. a rate or a target."""

    @property
    def ratio(self) -> float:
        """Share of the reference's speed that is reached: 1 is as fast, below 1 is slower."""
        return self.reference_s / self.measured_s


def measure(
    work: Callable[[], object], repetitions: int = 20, warmup: int = 3, device: str = "cpu"
) -> tuple[float, float]:
    """Return the median and the 95th percentile of the time of ``work`` [s].

    Args:
        work: Called ``warmup + repetitions`` times.
        repetitions: Number of timed calls.
        warmup: Number of calls before.
        device: Device that is waited for before each reading of the clock.
    """
    import torch

    def wait() -> None:
        if torch.device(device).type == "cuda":
            torch.cuda.synchronize(device)

    for _ in range(warmup):
        work()
    times = []
    for _ in range(repetitions):
        wait()
        start = time.perf_counter()
        work()
        wait()
        times.append(time.perf_counter() - start)
    times.sort()
    return times[len(times) // 2], times[min(len(times) - 1, round(0.95 * (len(times) - 1)))]
