"""A CUDA graph for a CPU: what torch does to tensors is recorded, and done again without a line of Python in between.

Like a graph, a replay reads and writes the tensors of the recording, whatever names they have by then, and knows no
number that was one of Python's at the time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from myriad_lab.algorithms.captured import WARM_UPS


class Tape(TorchDispatchMode):
    """Records operations while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self._steps: list[tuple[Any, tuple, dict, list[torch.Tensor]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Do an operation, and remember it with what came out."""
        result = func(*args, **(kwargs or {}))
        self._steps.append((func, args, kwargs or {}, tensors_in(result)))
        return result

    @torch.no_grad()
    def replay(self) -> None:
        """Do all of it again; what came out then has the new values."""
        for func, args, kwargs, made in self._steps:
            for old, new in zip(made, tensors_in(func(*args, **kwargs)), strict=True):
                if old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class TapedUpdate:
    """Stands in for ``CapturedUpdate``: the same warm-ups, a recording, and replays."""

    def __init__(self, function: Callable[[], torch.Tensor], generator: torch.Generator, graphs: bool) -> None:
        self._function, self._calls = function, 0
        self.tape: Tape | None = None
        self._out = torch.zeros(())

    def __call__(self) -> torch.Tensor:
        """Do one update and return its metrics."""
        self._calls += 1
        if self._calls <= WARM_UPS:
            return self._function()
        if self.tape is not None:
            self.tape.replay()
        else:
            with Tape() as self.tape:  # unlike a capture it does the update too: that is the first replay
                self._out = self._function()
        return self._out.clone()


def tensors_in(value: Any) -> list[torch.Tensor]:
    """Return the tensors of a result."""
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor)]
