"""An update that always touches the same memory, replayed as one CUDA graph instead of launched kernel by kernel."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch

WARM_UPS = 3
"""Calls before the capture: optimisers make their moments, libraries their workspaces, compilers their kernels."""


class CapturedUpdate:
    """A function without arguments; on a GPU its kernels are recorded once and replayed ever after.

    The function must read and write tensors that stay where they are and never ask the device for a value. It must draw
    from ``generator`` alone. Whoever replaces such a tensor makes a new ``CapturedUpdate``. The graph has a memory pool
    of its own, and only what this thread does is captured: a simulator in the same process may go on.

    Args:
        function: One update; returns its metrics, a tensor.
        generator: Source of the random numbers drawn in it, of the device where it runs.
        graphs: Whether to capture; plain calls otherwise.
    """

    def __init__(self, function: Callable[[], torch.Tensor], generator: torch.Generator, graphs: bool) -> None:
        self._function, self._generator, self._graphs = function, generator, graphs
        self._graph: torch.cuda.CUDAGraph | None = None
        self._metrics: torch.Tensor | None = None
        self._calls = 0

    def __call__(self) -> torch.Tensor:
        """Do one update and return its metrics, a tensor of its own."""
        if not self._graphs:
            return self._function()
        with torch.cuda.device(self._generator.device):
            if self._calls < WARM_UPS:
                self._calls += 1
                return self._warm_up()
            if self._graph is None or self._metrics is None:
                self._graph, self._metrics = self._capture()
            self._graph.replay()
            return self._metrics.clone()

    def _warm_up(self) -> torch.Tensor:
        """Do one update on a stream beside the current one, as a capture wants it."""
        current, side = torch.cuda.current_stream(), _side_stream(self._generator.device)
        side.wait_stream(current)
        with torch.cuda.stream(side):
            metrics = self._function()
        current.wait_stream(side)
        metrics.record_stream(current)
        return metrics

    def _capture(self) -> tuple[torch.cuda.CUDAGraph, torch.Tensor]:
        """Record one update, which is not done by that; returns the graph and where its metrics will be."""
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(self._generator)
        side = _side_stream(self._generator.device)
        with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
            metrics = self._function()
        return graph, metrics


@functools.cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """Return the stream where updates of a device are warmed up and captured: memory is kept for each stream apart."""
    return torch.cuda.Stream(device)
