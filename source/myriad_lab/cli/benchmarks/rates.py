"""What this machine can do at most: rate of matrix products, of copies, and the time of a launch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from myriad_lab.cli.benchmarks.line import Timing, Work

_NODES = 100
"""Kernels by which the longer of the two graphs is longer."""


@dataclass(frozen=True)
class Rates:
    """Highest rates of a device."""

    flops: float
    """Arithmetic of a large matrix product [FLOP/s]."""
    bytes: float
    """Copy that leaves the caches, read and write together [B/s]."""
    launch_s: float = 0.0
    """Time to replay a CUDA graph of one kernel [s]; 0 on a CPU."""
    node_s: float = 0.0
    """Time of each further kernel of a CUDA graph [s]; 0 on a CPU."""

    def floor(self, flops: float, moved: float) -> tuple[float, str]:
        """Return the least time of a piece of work [s], and what it is made of.

        Args:
            flops: Arithmetic [FLOP].
            moved: Bytes read and written [B].
        """
        parts = (flops / self.flops, "arithmetic"), (moved / self.bytes, "bytes"), (self.launch_s, "one launch")
        return max(parts)

    def launches(self, nodes: int) -> float:
        """Return the least time of a CUDA graph of ``nodes`` kernels [s]."""
        return self.launch_s + (nodes - 1) * self.node_s


class Yardsticks:
    """Works that show the rates of a device; timed in turns with what is compared with them.

    Args:
        device: Where they run.
        dtype: Of the factors of the matrix product; torch's settings for TF32 hold here as in the work compared.
    """

    def __init__(self, device: str, dtype: torch.dtype = torch.float32) -> None:
        cuda = torch.device(device).type == "cuda"
        self._size, self._bytes = (8192, 2**30) if cuda else (1024, 2**26)
        left = torch.randn(self._size, self._size, device=device).to(dtype)
        right = torch.randn(self._size, self._size, device=device).to(dtype)
        source = torch.zeros(self._bytes // 4, device=device)
        target = torch.zeros_like(source)
        self.works: dict[str, Work] = {"large GEMM": lambda: left @ right, "large copy": lambda: target.copy_(source)}
        if cuda:
            self.works |= {f"graph of {n}": _graph(n, device) for n in (1, 1 + _NODES)}

    def read(self, timings: Mapping[str, Timing]) -> Rates:
        """Return the rates that the times of ``works`` mean."""
        flops = 2.0 * self._size**3 / timings["large GEMM"].median_s
        moved = 2.0 * self._bytes / timings["large copy"].median_s
        if "graph of 1" not in timings:
            return Rates(flops, moved)
        one, many = timings["graph of 1"].median_s, timings[f"graph of {1 + _NODES}"].median_s
        return Rates(flops, moved, one, max(0.0, many - one) / _NODES)


def count_kernels(work: Work, device: str) -> int:
    """Return how many kernels, copies and fills a work launches on a GPU, replayed graphs included; 0 on a CPU."""
    if torch.device(device).type != "cuda":
        return 0
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        work()
        torch.cuda.synchronize(device)
    return sum(event.device_type == DeviceType.CUDA for event in profiled.events() or ())


def _graph(nodes: int, device: str) -> Work:
    """Return the replay of a CUDA graph of ``nodes`` kernels that do next to nothing."""
    scalar = torch.zeros(1, device=device)
    scalar.add_(1.0)
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.device(device), torch.cuda.graph(graph):
        for _ in range(nodes):
            scalar.add_(1.0)
    return lambda: _replay(graph, scalar)


def _replay(graph: torch.cuda.CUDAGraph, written: torch.Tensor) -> None:
    """Replay a graph whose memory the caller thereby keeps: a graph itself holds none of what it reads and writes."""
    graph.replay()
