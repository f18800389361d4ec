"""One line of a benchmark, the case that makes it, and the clock that fills it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True)
class BenchmarkLine:
    """A measured time beside its floor, and beside what somebody would use instead on the same input."""

    name: str
    """What was measured, e.g. ``env step, Myriad-Ant``; what stands before the comma shares a plot."""
    size: str
    """For which size, e.g. ``1024 envs``."""
    measured_s: float
    """Median time of one repetition [s]."""
    p95_s: float
    """95th percentile of the time of one repetition [s]."""
    floor_s: float | None = None
    """Least time that the work can take on this machine [s], if one is known."""
    floor: str = ""
    """What the floor is, e.g. ``arithmetic``."""
    peer_s: float | None = None
    """Time of the peer on the same input in the same run [s], if there is one."""
    peer: str = ""
    """What the peer is, e.g. ``bare mujoco``."""
    peak_bytes: int | None = None
    """Most memory that was held beyond what was held before [B]: resident on a CPU, allocated tensors on a GPU."""
    x: float | None = None
    """The size as a number, for plots."""
    x_name: str = ""
    """What that number counts, e.g. ``envs``."""
    note: str = ""
    """Anything else, e.g. a rate or a target."""

    @property
    def floor_ratio(self) -> float | None:
        """How many times the floor was needed: 1 is as fast as can be."""
        return None if self.floor_s is None else self.measured_s / self.floor_s

    @property
    def peer_ratio(self) -> float | None:
        """How many times the peer's time was needed: below 1 is faster than the peer."""
        return None if self.peer_s is None else self.measured_s / self.peer_s


@dataclass(frozen=True)
class Case:
    """The unit of a benchmark that is run, and recorded, as a whole."""

    name: str
    """Unique in its benchmark; a record that has it is not asked to measure it again."""
    run: Callable[[], list[BenchmarkLine]]
    """Measures; everything large is built in here."""
    needs_bytes: int = 0
    """Memory of the device that it takes about [B]; where less is free, it is left out."""
    needs_host_bytes: int = 0
    """The same of the host, whatever the device is."""


class Timing(NamedTuple):
    """Times of one repetition."""

    median_s: float
    """Median [s]."""
    p95_s: float
    """95th percentile [s]."""


Work = Callable[[], object]


def measure(work: Work, repetitions: int = 20, warmup: int = 3, device: str = "cpu") -> Timing:
    """Return the median and the 95th percentile of the time of ``work`` [s].

    Args:
        work: Called ``warmup + repetitions`` times.
        repetitions: Number of timed calls.
        warmup: Number of calls before.
        device: Device that is waited for before each reading of the clock.
    """
    for _ in range(warmup):
        work()
    return summary([_timed(work, 1, device) for _ in range(repetitions)])


def in_turns(works: Mapping[str, Work], device: str, quick: bool = False) -> dict[str, Timing]:
    """Time several works in turns, so that all of them see the same load of the machine and the same clock rate.

    Each is warmed up, past what is compiled or captured at first calls, then timed 3 to 20 times, as often as fits into
    about four seconds for all together. On a GPU a repetition is as many calls as take some milliseconds: waiting for
    the device after each would hide that launches overlap with work.

    Args:
        works: Name -> work, called again and again.
        device: Device that is waited for before each reading of the clock.
        quick: Two repetitions only.

    Returns:
        Name -> times of one call.
    """
    import torch

    cuda = torch.device(device).type == "cuda"
    once = {}
    for name, work in works.items():
        for _ in range(10 if cuda else 1):
            work()
        once[name] = _timed(work, 1, device)
    calls = {name: max(1, min(100, math.ceil(0.005 / seconds))) if cuda else 1 for name, seconds in once.items()}
    a_round = sum(calls[name] * seconds for name, seconds in once.items())
    repetitions = 2 if quick else max(3, min(20, int(4.0 / a_round)))
    times: dict[str, list[float]] = {name: [] if cuda else [seconds] for name, seconds in once.items()}
    for turn in range(repetitions - (not cuda)):
        # the second of two finds the caches as the first left them, so they take turns at being first
        for name in reversed(list(works)) if turn % 2 else works:
            times[name].append(_timed(works[name], calls[name], device))
    return {name: summary(taken) for name, taken in times.items()}


def summary(times: list[float]) -> Timing:
    """Return median and 95th percentile of times, both among the values given."""
    ordered = sorted(times)
    return Timing(ordered[len(ordered) // 2], ordered[round(0.95 * (len(ordered) - 1))])


def wait(device: str) -> None:
    """Wait until a GPU has done all it was told."""
    import torch

    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def _timed(work: Work, calls: int, device: str) -> float:
    wait(device)
    start = time.perf_counter()
    for _ in range(calls):
        work()
    wait(device)
    return (time.perf_counter() - start) / calls
