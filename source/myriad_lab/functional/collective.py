"""What the processes that train one population tell each other; a process that is alone has nobody to tell."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch


class Collective:
    """The ranks of a run. This class is the only rank of a run in one process, for which all of it is the identity.

    Heads, envs and particles are dealt out in contiguous blocks of equal size: rank r has the r-th block of the rows of
    every tensor whose first axis is one of them, and a copy of everything else. All ranks make the same calls in the
    same order, with tensors of the same shapes.
    """

    rank = 0
    """Number of this rank, counted from 0."""
    world_size = 1
    """Number of ranks."""

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which alone prints and writes."""
        return self.rank == 0

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the sum of the tensors of all ranks, the same bits on each; without a gradient."""
        return tensor

    def gather_rows(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the rows of all ranks, ``(world_size * n, ...)``, on every rank."""
        return rows

    def collect_rows(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the rows of all ranks in the memory of the host, for rank 0 to save; other ranks get their own."""
        return rows

    def collect(self, value: Any) -> list[Any]:
        """Return the plain containers and tensors of all ranks, for rank 0 to save; other ranks get their own."""
        return [value]

    def own_part(self, state: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """Return this rank's part of a state whose entry ``others`` holds those of ranks 1, 2 and so on, if any.

        ``None`` where it was saved by another number of ranks.
        """
        parts = [state, *state.get("others", [])]
        return parts[self.rank] if len(parts) == self.world_size else None

    def from_main(self, value: Any) -> Any:
        """Return what rank 0 passes in, plain containers."""
        return value

    def any(self, flags: torch.Tensor) -> torch.Tensor:
        """Return where a flag is set on some rank, bool, same shape."""
        return self.sum(flags.to(torch.int32)) > 0

    def block(self, num_rows: int) -> slice:
        """Return where this rank's rows are among ``num_rows`` rows of all ranks."""
        size = num_rows // self.world_size
        return slice(self.rank * size, (self.rank + 1) * size)

    def own_rows(self, rows: torch.Tensor) -> torch.Tensor:
        """Return this rank's rows of those of all ranks, a view."""
        return rows[self.block(len(rows))]

    def draw(self, sampler: Callable[..., torch.Tensor], num_rows: int, *sizes: int, **options: Any) -> torch.Tensor:
        """Draw for the rows of all ranks and keep those of this one, ``(num_rows, *sizes)``.

        What a row gets therefore does not depend on how many ranks there are, and generators that began alike stay
        alike.

        Args:
            sampler: ``torch.rand`` or ``torch.randn``.
            num_rows: Rows of this rank.
            sizes: Remaining axes.
            options: Generator, device and type.
        """
        return self.own_rows(sampler(self.world_size * num_rows, *sizes, **options))


ALONE = Collective()
"""A process without others."""
