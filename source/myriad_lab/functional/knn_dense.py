"""Dense k-nearest-neighbour search: tiles of squared distances by one matmul, selection, re-ranking by subtraction.

A tile holds ``|r|^2 - 2 q.r``, which orders the references of one query as their distances do. Where there are many,
only the minimum of each group of a few outlives the tile, and the groups with the smallest minima have the neighbours.
In float32 the expanded form confuses neighbours that are much closer to each other than to the origin. So the features
are centred, a few candidates more than ``k`` are kept, their distances are recomputed by direct subtraction, and every
row says whether the rounding error could have cost it a true neighbour.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

MARGIN = {"cpu": 4, "gpu": 8}
"""Candidates kept beyond ``k`` for the re-ranking; more where rows in doubt are not searched again."""
GROUP = 8
"""Entries per group where a selection goes in stages; measured best of 4 to 128 on a CPU."""
FEW = 16
"""Entries up to which sorting all of them is faster than selecting some."""
MAX_COLUMNS = {"cpu": 1 << 13, "gpu": 1 << 18}
"""References up to which a tile has them all, and single ones are selected; beyond, groups of :data:`SIZE`."""
SIZE = 8
"""References per group where groups are selected; all members are re-ranked. Measured best of 2 to 16 on a CPU."""
COLUMNS = {"cpu": 1 << 11, "gpu": 1 << 18}
"""References of a tile whose groups are selected."""
CPU_TILE = {"single": 1 << 20, "groups": 1 << 19}
"""Elements of a distance tile for each CPU thread (4, 2 MiB; where groups are selected, for two threads at least): it
stays in the cache between the matmul and the selection, and has the rows that the matmul needs to be fast."""
GPU_TILE = 1 << 28
"""Elements of a distance tile on a GPU (1 GiB in float32)."""
GATHERED = {"cpu": 1 << 18, "gpu": 1 << 28}
"""Features of candidates that are gathered at a time."""
SORTING_THREADS = 4
"""Threads up to which numpy selects faster with one than torch with all of them."""


@dataclass
class DenseResult:
    """Neighbours of a batch of queries."""

    distances: torch.Tensor
    """Distances, ascending, shape (b, n, k); infinite where fewer than k references are allowed."""
    indices: torch.Tensor
    """Rows of the references, shape (b, n, k)."""
    certain: torch.Tensor
    """Rows whose neighbours are proved exact in spite of rounding, bool (b, n)."""


@dataclass
class Exclusion:
    """Which references a query must not see; row ``i`` is query ``i`` of the batch."""

    own_row: bool = False
    """Leave out the reference with the query's own row."""
    query_groups: torch.Tensor | None = None
    """Group of each query as a number of the tile's type, shape (b, n); references of the group are left out."""
    reference_groups: torch.Tensor | None = None
    """Group of each reference, shape (b, m), padded as the references are."""

    @classmethod
    def by_group(cls, queries: torch.Tensor, references: torch.Tensor, dtype: torch.dtype) -> Exclusion:
        """Leave out the references of the query's group, given integer groups (n,) and (m,) of any value.

        Groups become their ranks, which ``dtype`` holds exactly (float32 up to 2^24 groups): comparing floats and
        adding the outcome to the tile is four times faster than filling by a mask of integers.
        """
        ordered = torch.cat([queries, references]).sort().values
        changes = torch.nn.functional.pad((ordered[1:] != ordered[:-1]).cumsum(0), (1, 0))
        places = [torch.searchsorted(ordered, groups.contiguous()) for groups in (queries, references)]
        ranks = [changes[place].to(dtype)[None] for place in places]
        padded = torch.nn.functional.pad(ranks[1], (0, _padding(len(references))))
        return cls(query_groups=ranks[0], reference_groups=padded)

    def mask(self, tile: torch.Tensor, rows: slice, columns: slice, scratch: torch.Tensor) -> None:
        """Make the excluded entries of ``tile`` (b, rows, columns) at least :func:`beyond`, in place."""
        if self.query_groups is not None and self.reference_groups is not None:
            same = scratch[: tile.numel()].view(tile.shape)
            torch.eq(self.query_groups[:, rows, None], self.reference_groups[:, None, columns], out=same)
            tile.add_(same, alpha=2.0 * beyond(tile.dtype))
        elif self.own_row:
            start, stop = max(rows.start, columns.start), min(rows.stop, columns.stop)
            if start < stop:
                block = tile[:, start - rows.start : stop - rows.start, start - columns.start : stop - columns.start]
                block.diagonal(dim1=-2, dim2=-1).fill_(torch.inf)

    def forbids(self, references: torch.Tensor, rows: slice) -> torch.Tensor:
        """Say which of ``references`` (b, rows, c) the queries of ``rows`` must not see."""
        if self.query_groups is not None and self.reference_groups is not None:
            own = self.reference_groups.expand(len(references), -1).gather(1, references.flatten(1))
            return own.view_as(references) == self.query_groups[:, rows, None]
        if self.own_row:
            return references == torch.arange(rows.start, rows.stop, device=references.device)[:, None]
        return torch.zeros_like(references, dtype=torch.bool)


@dataclass
class Layout:
    """Which references the columns of a tile are, and how they are grouped."""

    total: int
    """References, padded."""
    width: int
    """Most references of a tile."""
    size: int
    """References of a group: columns of a tile that are as far apart as can be."""

    @classmethod
    def of(cls, total: int, kind: str) -> Layout:
        """Return that of so many references on a kind of device."""
        alone = total <= MAX_COLUMNS[kind]
        return cls(total, total if alone else COLUMNS[kind], 1 if alone else SIZE)

    @property
    def num_groups(self) -> int:
        """Groups of all tiles."""
        return self.total // self.size

    def members(self, groups: torch.Tensor) -> torch.Tensor:
        """Return the references in ``groups`` (..., count), shape (..., count * size)."""
        tile = groups * self.size // self.width * self.width  # its first reference; the last tile may be narrower
        apart = (self.total - tile).clamp(max=self.width) // self.size
        first = tile + groups - tile // self.size
        return (first[..., None] + torch.arange(self.size, device=groups.device) * apart[..., None]).flatten(-2)


@dataclass
class Sides:
    """What a tile is the product of: ``|r|^2 - 2 q.r`` for some rows and columns."""

    rows: torch.Tensor
    """``-2 q``, shape (b, n, d)."""
    columns: torch.Tensor
    """``r``, shape (b, m, d), padded with zeros."""
    norms: torch.Tensor
    """``|r|^2``, shape (b, m), padded with infinity."""
    squares: torch.Tensor
    """``|q|^2``, shape (b, n)."""

    @classmethod
    def of(cls, queries: torch.Tensor, references: torch.Tensor) -> Sides:
        """Return those of centred features."""
        padding, squares = _padding(references.shape[1]), queries.square().sum(dim=-1)
        norms = torch.nn.functional.pad(references.square().sum(dim=-1), (0, padding), value=torch.inf)
        return cls(-2.0 * queries, torch.nn.functional.pad(references, (0, 0, 0, padding)), norms, squares)

    def tile(self, rows: slice, columns: slice, scratch: torch.Tensor) -> torch.Tensor:
        """Return the tile of some rows and columns, (b, rows, columns)."""
        left, right, norms = self.rows[:, rows], self.columns[:, columns], self.norms[:, columns]
        if _has_onednn(left):  # torch has no public way to it in full precision
            return torch.ops.mkldnn._linear_pointwise(left[0], right[0], norms[0], "none", [], "")[None]
        shape = (*left.shape[:2], right.shape[1])
        tile = scratch[: math.prod(shape)].view(shape)
        return torch.baddbmm(norms[:, None], left, right.mT, out=tile)


def beyond(dtype: torch.dtype) -> float:
    """Return the tile value from which on an entry stands for no reference."""
    return 0.25 * torch.finfo(dtype).max


@contextmanager
def full_precision() -> Iterator[None]:
    """Run float32 matmuls without TF32 or bfloat16 shortcuts, whatever the process has set.

    Backend by backend: once somebody has set one, torch refuses to tell a precision for all.
    """
    mkldnn: Any = torch.backends.mkldnn  # makes its attributes as it is imported
    backends = (torch.backends.cuda.matmul, mkldnn.matmul)
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision


def smallest(values: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the ``count`` smallest entries along the last axis, in no particular order, and their columns.

    The minimum of each group of columns, the ``count`` groups with the smallest minima, found in the same way, then the
    members of these groups alone. Exact, because each of the ``count`` smallest entries lies in a group whose minimum
    is among the ``count`` smallest minima. It reads the tile once, whereas ``torch.topk`` on the whole row is the
    bottleneck of the search (2 to 6 times slower on a CPU).

    Args:
        values: Tile, shape (..., columns); columns divisible by :data:`GROUP` for the fast path.
        count: Number of entries to return, at most ``columns``.
    """
    columns = values.shape[-1]
    groups = columns // GROUP
    if columns % GROUP or groups < 2 * count:
        return _least(values, count)
    # Column c belongs to group c % groups, so that the reduction runs over contiguous memory.
    minima = values.unflatten(-1, (GROUP, groups)).amin(dim=-2)
    chosen = smallest(minima, count)[1]
    offsets = torch.arange(GROUP, device=values.device)[:, None] * groups
    members = (chosen.unsqueeze(-2) + offsets).flatten(-2)
    found, places = _least(values.gather(-1, members), count)
    return found, members.gather(-1, places)


def _least(values: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Do what :func:`smallest` does in one stage."""
    if values.shape[-1] <= FEW:
        found = values.sort(dim=-1)
        return found.values[..., :count], found.indices[..., :count]
    if values.device.type != "cpu" or values.dtype != torch.float32 or torch.get_num_threads() > SORTING_THREADS:
        found = values.topk(count, dim=-1, largest=False, sorted=False)
        return found.values, found.indices
    # numpy partitions rows of some hundred numbers with vector instructions and one thread, 4 times as fast as torch's
    # topk with one, but without telling their columns. A double has 29 bits to spare for these below a float.
    keys = values.double().clamp_(max=2.0 * torch.finfo(torch.float32).max)  # infinity has none
    bits = keys.view(torch.int64)
    bits |= torch.arange(values.shape[-1])
    if count < values.shape[-1]:
        keys.numpy().partition(count - 1, axis=-1)
    kept = bits[..., :count]
    columns = kept & ((1 << 29) - 1)
    return (kept ^ columns).view(torch.float64).float(), columns


def dense_search(
    queries: torch.Tensor, references: torch.Tensor, k: int, exclusion: Exclusion, chunk: int | None = None
) -> DenseResult:
    """Search the ``k`` nearest references of each query, independently for each member of the batch.

    Args:
        queries: Shape (b, n, d), floating point.
        references: Shape (b, m, d), same type and device.
        k: Number of neighbours.
        exclusion: References that a query must not see.
        chunk: Queries per tile; chosen from the tile budget where ``None``.
    """
    batch, num_queries, _ = queries.shape
    if num_queries == 0:
        none = queries.new_empty(batch, 0, k)
        return DenseResult(none, none.long(), none[..., 0].bool())
    kind = "cpu" if queries.device.type == "cpu" else "gpu"
    centre = references.mean(dim=1, keepdim=True)
    sides = Sides.of(queries - centre, references - centre)
    layout = Layout.of(sides.columns.shape[1], kind)
    count = min(layout.num_groups, k + MARGIN[kind])
    if chunk is None:
        chunk = max(1, _tile_elements(kind, layout) // (batch * layout.width))
    chunk = min(chunk, num_queries)
    # Tiles that are allocated anew each time cost as much in page faults as the matmul itself (oneDNN's have to be).
    scratch = queries.new_empty((2 if exclusion.query_groups is not None else 1, batch * chunk * layout.width))
    parts: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
    with full_precision():
        for start in range(0, num_queries, chunk):
            rows = slice(start, min(start + chunk, num_queries))
            least, groups = smallest(_minima(sides, rows, layout, exclusion, scratch), count)
            distances, indices = _rerank(queries, references, layout.members(groups), rows, k, exclusion)
            # With every reference among the candidates, none can have been missed.
            reach = least.amax(dim=-1) if count < layout.num_groups else torch.full_like(least[..., 0], torch.inf)
            parts.append((distances, indices, reach + sides.squares[:, rows]))
    distances = torch.cat([part[0] for part in parts], dim=1)
    indices = torch.cat([part[1] for part in parts], dim=1)
    reach = torch.cat([part[2] for part in parts], dim=1)
    certain = _certain(distances[..., -1], reach, sides)
    return DenseResult(distances, indices, certain)


def _tile_elements(kind: str, layout: Layout) -> int:
    """Return how many elements a tile should have."""
    if kind == "gpu":
        return GPU_TILE
    threads = torch.get_num_threads()
    return CPU_TILE["single"] * threads if layout.size == 1 else CPU_TILE["groups"] * max(2, threads)


def _padding(num_references: int) -> int:
    """Return how many references are missing for whole groups and, where they are many, whole groups of groups."""
    return -num_references % (GROUP if num_references < GROUP**3 else GROUP**2)


def _has_onednn(side: torch.Tensor) -> bool:
    """Say whether oneDNN can multiply: it is twice as fast as torch's matmul (MKL) on an AMD processor."""
    alone = side.device.type == "cpu" and side.dtype == torch.float32 and len(side) == 1
    return alone and torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _minima(sides: Sides, rows: slice, layout: Layout, exclusion: Exclusion, scratch: torch.Tensor) -> torch.Tensor:
    """Return the smallest entry of each group of references for each row, (b, r, groups)."""

    def tile(columns: slice) -> torch.Tensor:
        products = sides.tile(rows, columns, scratch[0])
        exclusion.mask(products, rows, columns, scratch[-1])
        return products

    if layout.size == 1:  # all references, each a group of its own
        return tile(slice(0, layout.total))
    minima = sides.norms.new_empty(len(sides.norms), rows.stop - rows.start, layout.num_groups)
    for start in range(0, layout.total, layout.width):
        stop = min(start + layout.width, layout.total)
        # The members of a group lie far apart, so that the reduction runs over contiguous memory.
        members = tile(slice(start, stop)).unflatten(-1, (layout.size, -1))
        torch.amin(members, dim=-2, out=minima[..., start // layout.size : stop // layout.size])
    return minima


def _rerank(
    queries: torch.Tensor, references: torch.Tensor, candidates: torch.Tensor, rows: slice, k: int, exclusion: Exclusion
) -> tuple[torch.Tensor, torch.Tensor]:
    """Measure the ``candidates`` (b, r, c) by subtraction of the raw features; keep the ``k`` nearest, ascending."""
    (batch, num_rows, count), (num_references, dim) = candidates.shape, references.shape[1:]
    flat = references.flatten(0, 1)
    clouds = torch.arange(batch, device=queries.device)[:, None, None] * num_references
    step = max(1, GATHERED["cpu" if queries.device.type == "cpu" else "gpu"] // (batch * count * dim))
    parts: list[tuple[torch.Tensor, torch.Tensor]] = []
    for first in range(0, num_rows, step):
        asked = slice(rows.start + first, min(rows.start + first + step, rows.stop))
        some = candidates[:, first : first + step]
        places = some.clamp(max=num_references - 1) + clouds  # padding is beyond
        near = flat.index_select(0, places.flatten()).view(*some.shape, dim)
        squared = near.sub_(queries[:, asked].unsqueeze(2)).square_().sum(dim=-1)
        squared.masked_fill_(exclusion.forbids(some, asked) | (some >= num_references), torch.inf)
        least, found = _least(squared, k)
        parts.append((least, some.gather(-1, found)))
    nearest = torch.cat([part[0] for part in parts], dim=1).sort(dim=-1)
    return nearest.values.sqrt_(), torch.cat([part[1] for part in parts], dim=1).gather(-1, nearest.indices)


def _certain(kth: torch.Tensor, reach: torch.Tensor, sides: Sides) -> torch.Tensor:
    """Say which rows are proved exact: the k-th distance lies below anything outside the candidates, error included.

    ``reach`` is the largest candidate value turned into a squared distance. The error of a dot product of length ``l``,
    the norm that is added to it among its terms, is at most ``l * eps`` times the sum of the terms' magnitudes (Higham,
    Accuracy and Stability, eq. 3.5).
    """
    norms, squares, dim = sides.norms, sides.squares, sides.rows.shape[-1]
    largest = norms.masked_fill(norms == torch.inf, 0.0).amax(dim=-1, keepdim=True)
    magnitude = largest + 2.0 * (squares * largest).sqrt() + squares
    error = (dim + 8) * torch.finfo(kth.dtype).eps * magnitude
    return (kth.square() + error <= reach) | (kth == 0.0)
