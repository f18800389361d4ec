"""One part of a larger batch of envs, whose other parts are stepped by other processes."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Shard:
    """Block ``index`` of ``count`` blocks of equal size; by default the whole batch."""

    index: int = 0
    """Which block, counted from 0."""
    count: int = 1
    """Number of blocks."""

    def own(self, rows: torch.Tensor) -> torch.Tensor:
        """Return this block's rows of those of the whole batch, a view."""
        size = len(rows) // self.count
        return rows[self.index * size : (self.index + 1) * size]

    def own_seed(self, seed: int) -> int:
        """Return a seed of this block's own; ``seed`` itself for a whole batch."""
        if self.count == 1:
            return seed
        generator = torch.Generator().manual_seed(seed)
        return int(torch.randint(2**31, (self.count,), generator=generator)[self.index])


WHOLE = Shard()
"""All envs of a run in one process."""
