"""Exact k-nearest-neighbour search on a GPU without a distance matrix, in Triton kernels.

1. ``_split``: the points less the centre of their cloud, as bfloat16 numbers that tensor cores multiply exactly.
2. ``_group_minima``: tiles of squared distances, each less what splitting and rounding may have added to it. Of some
   consecutive references only the smallest of these lower bounds leaves the chip, and ``torch.topk`` takes the groups
   with the smallest ones.
3. ``_group_distances``: the distances to all members of these groups, by direct subtraction in float32.
4. ``_look_further``: where the k-th distance does not lie below the bounds of all groups left out, the distances to the
   members of every group whose bound it does not lie below. The other queries do nothing there, so the host never has
   to know which they are.
"""

# Arguments of kernels are pointers, numbers, and in capitals constants of the compiler.
# ruff: noqa: ANN001, ANN202, N803

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl

from myriad_lab.functional.knn_keys import keep_nearest, make_keys, none_yet, pack, unpack
from myriad_lab.functional.knn_parts import PADDED_TO, Layout, Split

SPARE = 8
"""Groups looked into beyond ``k``."""
MAX_HELD = 1 << 29
"""Group minima, or distances to members of groups, held at once (2 GiB); more queries are searched in chunks."""

_NONE, _OWN_ROW, _BY_GROUP = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
_PER_CHUNK = ("own_row", "num_queries", "tiles")
"""Arguments that change from one part of the queries to the next, for which nothing is compiled anew."""
_ROWS, _COLUMNS = PADDED_TO, PADDED_TO
"""Queries and references of a tile. References are read once for so many queries."""
_WARPS = 8
"""Of a program; two programs on a multiprocessor, so that one multiplies while the other looks at its distances."""
_MIN_PROGRAMS, _MAX_TILES = 2048, 32
"""A program keeps its queries for as many tiles of references as leave so many programs, and no more than these."""
_MAX_PROGRAMS = 65_535
"""The second and the third axis of a grid hold no more."""
_NOBODY = -(2**31)
"""As number of a group in 32 bits: that of a query whose own does not fit; the next one that of such a reference."""
_BLOCK = 128
"""Groups whose bounds are read at once by the last kernel."""
_TINY = 2.0**-100
"""What numbers too small for float32 or bfloat16 may add to a squared distance."""


def fused_search(
    queries: torch.Tensor,
    references: torch.Tensor,
    k: int,
    *,
    own_row: bool = False,
    query_groups: torch.Tensor | None = None,
    reference_groups: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the ``k`` nearest references of each query, in each cloud of the batch.

    Args:
        queries: Features, float32 (b, n, d), d up to 128, all finite.
        references: Features, float32 (b, m, d), on the same device, all finite.
        k: Number of neighbours, up to 64.
        own_row: Query i does not see reference i.
        query_groups: Integers (b, n); a query does not see the references of its group.
        reference_groups: Integers (b, m).

    Returns:
        Distances, ascending, infinite where fewer than ``k`` references are allowed, and indices, int64; both
        (b, n, k).
    """
    batch, num_queries, dim = queries.shape
    clouds = _Clouds.of(references, reference_groups)
    kept = k + SPARE + own_row  # its own group will be among them
    group = _group_size(clouds.size, dim, kept)
    found = torch.empty(batch, num_queries, k, dtype=torch.int64, device=queries.device)
    held = max(math.ceil(clouds.size / group), kept * group)
    rows_at_once = max(1, MAX_HELD // held)
    at_once = min(_MAX_PROGRAMS, max(1, MAX_HELD // (held * max(1, num_queries))))
    for cloud in range(0, batch, at_once):
        some, part = slice(cloud, cloud + at_once), clouds.part(slice(cloud, cloud + at_once))
        for start in range(0, num_queries, rows_at_once):
            rows = slice(start, start + rows_at_once)
            groups = None if query_groups is None else query_groups[some, rows].contiguous()
            first = start if own_row else None
            found[some, rows] = _search(queries[some, rows].contiguous(), part, k, kept, group, first, groups)
    return unpack(found)


def _group_size(num_references: int, dim: int, kept: int) -> int:
    """Return the references of a group: a power of two for which bounds and members of groups cost about the same.

    A bound is written once and read six times by ``torch.topk``, and so is a distance to a member of a group that is
    looked into, whose features are read too.
    """
    size = math.sqrt(7.0 * num_references / (kept * (dim + 7)))
    return min(_COLUMNS, max(32, 2 ** round(math.log2(max(1.0, size)))))


@dataclass
class _Clouds:
    """The references, and what all queries need of them."""

    points: torch.Tensor
    """As given, (b, m, d)."""
    centre: torch.Tensor
    """Of each cloud, (b, 1, d)."""
    layout: Layout
    """Which parts of the points are multiplied."""
    split: Split
    """Those parts."""
    groups: torch.Tensor | None
    """Group of each reference, (b, m)."""
    ids: torch.Tensor | None
    """The same for the kernel of the lower bounds, int32, with as many rows as ``split``."""

    @classmethod
    def of(cls, points: torch.Tensor, groups: torch.Tensor | None) -> _Clouds:
        """Prepare the references."""
        # of some points, by feature: any centre will do, and this one is not drawn to a few that are far away
        some = points[:, :: max(1, points.shape[1] // 1024)].sort(1).values
        centre = some[:, some.shape[1] // 2].unsqueeze(1)
        points, layout = points.contiguous(), Layout.of(points.shape[2])
        groups, ids = (None, None) if groups is None else (groups.contiguous(), _narrow(groups, _NOBODY + 1))
        return cls(points, centre, layout, layout.split(points, centre, queries=False), groups, ids)

    @property
    def size(self) -> int:
        """Number of references of a cloud."""
        return self.points.shape[1]

    def part(self, some: slice) -> _Clouds:
        """Return some of the clouds."""
        groups, ids = (None if each is None else each[some] for each in (self.groups, self.ids))
        split = Split(*(tensor[some] for tensor in self.split))
        return _Clouds(self.points[some], self.centre[some], self.layout, split, groups, ids)


def _narrow(groups: torch.Tensor, nobody: int) -> torch.Tensor:
    """Return groups as int32, rows added; a number that does not fit becomes ``nobody``, which is seen by everybody.

    The lower bound of a group that holds references that the query may not see is still a lower bound.
    """
    groups = groups.to(torch.int64)
    fits = (groups > _NOBODY + 1) & (groups < -_NOBODY)
    padding = -groups.shape[1] % PADDED_TO
    return torch.nn.functional.pad(torch.where(fits, groups, nobody).to(torch.int32), (0, padding))


def _search(
    queries: torch.Tensor,
    clouds: _Clouds,
    k: int,
    kept: int,
    group: int,
    own_row: int | None,
    query_groups: torch.Tensor | None,
) -> torch.Tensor:
    """Return the keys of the neighbours of some queries; the first is reference ``own_row`` where that is given."""
    batch, num_queries, dim = queries.shape
    exclusion = _BY_GROUP if query_groups is not None else _NONE if own_row is None else _OWN_ROW
    # Pointers that are not read, where there are no groups.
    seen = (queries, clouds.points) if query_groups is None else (query_groups, clouds.groups)
    ids = (queries, clouds.points) if query_groups is None else (_narrow(query_groups, _NOBODY), clouds.ids)
    shape: dict[str, Any] = {"WIDTH": triton.next_power_of_2(dim), "DIM": dim, "EXCLUSION": exclusion.value}
    shape["GROUP"] = group
    sizes = (own_row or 0, num_queries, clouds.size)

    minima, lows = _lower_bounds(queries, clouds, group, ids, query_groups is not None)
    num_groups = minima.shape[2]
    nearest = minima.topk(min(kept, num_groups), largest=False, sorted=False)
    members = queries.new_empty(*nearest.indices.shape, group)
    _group_distances[(batch * num_queries, nearest.indices.shape[2])](
        queries, clouds.points, *seen, nearest.indices, members, *sizes, nearest.indices.shape[2], **shape
    )
    best = members.flatten(2).topk(k, largest=False, sorted=False)
    indices = nearest.indices.gather(2, best.indices // group) * group + best.indices % group

    bound, kth = nearest.values.amax(2), best.values.amax(2)
    # A group with a greater bound has no member nearer than the k-th.
    limits = (1.0 + clouds.layout.rounding) * kth - lows + _TINY
    certain = (limits < bound) | (kth == 0.0)
    # Of two infinite ones the second tells that the groups left out have no member that the query may see.
    certain |= torch.isposinf(kth) & torch.isposinf(bound)
    if kept >= num_groups:
        certain = torch.ones_like(certain)
    keys = pack(best.values, indices)
    tensors: list[Any] = [queries, clouds.points, *seen, minima, limits, certain.to(torch.int32), keys]
    slots = {"SLOTS": triton.next_power_of_2(k), "BLOCK": _BLOCK}
    numbers: list[Any] = [*sizes, num_groups, k]
    _look_further[(batch * num_queries,)](*tensors, *numbers, **shape, **slots)
    return keys


def _lower_bounds(
    queries: torch.Tensor, clouds: _Clouds, group: int, ids: tuple[torch.Tensor | None, ...], by_group: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return bounds of the squared distances to each group's members, less ``|q|^2``, and a lower bound of ``|q|^2``.

    Shapes (b, n, groups) and (b, n). A query's own row counts as a member here: that bound is a bound as well.
    """
    batch, num_queries, _ = queries.shape
    layout = clouds.layout
    left = layout.split(queries, clouds.centre, queries=True)
    row_tiles, column_tiles = left.lows.shape[1] // _ROWS, clouds.split.lows.shape[1] // _COLUMNS
    tiles = min(_MAX_TILES, max(1, batch * row_tiles * column_tiles // _MIN_PROGRAMS))
    tiles = max(tiles, triton.cdiv(column_tiles, _MAX_PROGRAMS))
    minima = queries.new_empty(batch, num_queries, math.ceil(clouds.size / group))
    grid = (row_tiles, triton.cdiv(column_tiles, tiles), batch)
    reaches = layout.cross_error * left.sizes
    tensors: list[Any] = [left.factors, reaches, *clouds.split, *ids, minima]
    tile = {"ROWS": _ROWS, "COLUMNS": _COLUMNS, "STAGES": _stages(layout.width), "num_warps": _WARPS}
    shape: dict[str, Any] = {"WIDTH": layout.width, "GROUP": group, "BY_GROUP": by_group, **tile}
    numbers: list[Any] = [num_queries, clouds.size, tiles]
    _group_minima[grid](*tensors, *numbers, **shape)
    return minima, left.lows[:, :num_queries]


def _stages(width: int) -> int:
    """Return how many tiles of references are on their way at once: what fits on a multiprocessor twice."""
    return 2 if width == 128 else 3


@triton.jit
def _groups_from(groups, offset, EXCLUSION):
    """Return the pointer moved to the groups of a cloud, if there are any."""
    if EXCLUSION == _BY_GROUP:
        groups += offset
    return groups


@triton.jit
def _allowed(rows, columns, query_groups, reference_groups, own_row, num_queries, num_references, EXCLUSION):
    """Return which references (columns) queries (rows) may see, and that are there at all."""
    seen = (columns < num_references) & (rows < num_queries)
    if EXCLUSION == _OWN_ROW:
        seen = seen & (rows + own_row != columns)
    if EXCLUSION == _BY_GROUP:
        mine = tl.load(query_groups + rows, mask=rows < num_queries, other=0)
        theirs = tl.load(reference_groups + columns, mask=columns < num_references, other=0)
        seen = seen & (mine != theirs)
    return seen


@triton.jit(do_not_specialize=_PER_CHUNK)
def _group_minima(
    factors, reaches, others, lows, sizes, query_ids, reference_ids, out,
    num_queries, num_references, tiles,
    WIDTH: tl.constexpr, GROUP: tl.constexpr, BY_GROUP: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Write ``min (low - reach |r| - 2 q.r)`` over each group of references.

    ``reaches`` is ``cross_error |q|``, ``lows`` and ``sizes`` are those of the references, of which rows were added
    until tiles were full, as of the queries.
    """
    cloud = tl.program_id(2).to(tl.int64)
    num_groups, column_tiles = tl.cdiv(num_references, GROUP), tl.cdiv(num_references, COLUMNS)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    padded_rows = cloud * (tl.cdiv(num_queries, ROWS) * ROWS) + rows
    dims = tl.arange(0, WIDTH)
    left = tl.load(factors + padded_rows[:, None] * WIDTH + dims[None, :])
    reach = tl.load(reaches + padded_rows)
    out += cloud * num_queries * num_groups
    there = rows < num_queries
    if BY_GROUP:
        mine = tl.load(query_ids + padded_rows)
    columns = tl.arange(0, COLUMNS)
    begin = tl.program_id(1) * tiles
    end = tl.minimum(begin + tiles, column_tiles)
    skipped = (cloud * column_tiles + begin) * COLUMNS
    others += skipped * WIDTH
    for tile in tl.range(begin, end, num_stages=STAGES):  # said here, all that it loads comes ahead of time
        right = tl.load(others + columns[None, :] * WIDTH + dims[:, None])
        low, size = tl.load(lows + skipped + columns), tl.load(sizes + skipped + columns)
        squared = tl.dot(left, right, low[None, :] - reach[:, None] * size[None, :])
        if BY_GROUP:
            theirs = tl.load(reference_ids + skipped + columns)
            squared = tl.where(mine[:, None] != theirs[None, :], squared, float("inf"))
        minima = tl.min(tl.reshape(squared, (ROWS, COLUMNS // GROUP, GROUP)), 2)
        groups = tile * (COLUMNS // GROUP) + tl.arange(0, COLUMNS // GROUP)
        place = out + rows[:, None].to(tl.int64) * num_groups + groups[None, :]
        tl.store(place, minima, mask=there[:, None] & (groups < num_groups)[None, :])
        others += COLUMNS * WIDTH
        skipped += COLUMNS


@triton.jit(do_not_specialize=_PER_CHUNK)
def _group_distances(
    queries, references, query_groups, reference_groups, chosen, out,
    own_row, num_queries, num_references, kept,
    DIM: tl.constexpr, WIDTH: tl.constexpr, GROUP: tl.constexpr, EXCLUSION: tl.constexpr,
):  # fmt: skip
    """Write the squared distances of a query to the members of one of its chosen groups, by direct subtraction."""
    place = tl.program_id(0).to(tl.int64) * kept + tl.program_id(1)
    columns = tl.load(chosen + place) * GROUP + tl.arange(0, GROUP)
    squared = _direct(
        queries, references, columns, query_groups, reference_groups, own_row, num_queries, num_references,
        DIM, WIDTH, EXCLUSION,
    )  # fmt: skip
    tl.store(out + place * GROUP + tl.arange(0, GROUP), squared)


@triton.jit(do_not_specialize=_PER_CHUNK)
def _look_further(
    queries, references, query_groups, reference_groups, minima, limits, certain, out,
    own_row, num_queries, num_references, num_groups, k,
    DIM: tl.constexpr, WIDTH: tl.constexpr, GROUP: tl.constexpr, EXCLUSION: tl.constexpr,
    SLOTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Look into all groups within the limit of a query that is not certain; no order among the keys it writes."""
    program = tl.program_id(0).to(tl.int64)
    done = tl.load(certain + program) != 0
    limit = tl.load(limits + program)
    best = none_yet(k, SLOTS)
    for first in range(0, tl.where(done, 0, num_groups), BLOCK):
        groups = first + tl.arange(0, BLOCK)
        bounds = tl.load(minima + program * num_groups + groups, mask=groups < num_groups, other=float("inf"))
        waiting = tl.where((bounds <= limit) & (bounds < float("inf")), groups, num_groups)
        group = tl.min(waiting, 0)
        while group < num_groups:
            columns = group * GROUP + tl.arange(0, GROUP)
            squared = _direct(
                queries, references, columns, query_groups, reference_groups, own_row, num_queries, num_references,
                DIM, WIDTH, EXCLUSION,
            )  # fmt: skip
            best = keep_nearest(best, make_keys(squared, columns, columns < num_references))
            waiting = tl.where(waiting == group, num_groups, waiting)
            group = tl.min(waiting, 0)
    slots = tl.arange(0, SLOTS)
    tl.store(out + program * k + slots, best, mask=slots < tl.where(done, 0, k))


@triton.jit
def _direct(
    queries, references, columns, query_groups, reference_groups, own_row, num_queries, num_references,
    DIM: tl.constexpr, WIDTH: tl.constexpr, EXCLUSION: tl.constexpr,
):  # fmt: skip
    """Return the squared distances of the program's query to some references, infinite to those it must not see."""
    cloud = (tl.program_id(0) // num_queries).to(tl.int64)
    row = tl.program_id(0) % num_queries
    query_groups = _groups_from(query_groups, cloud * num_queries, EXCLUSION)
    reference_groups = _groups_from(reference_groups, cloud * num_references, EXCLUSION)
    dims = tl.arange(0, WIDTH)
    query = tl.load(queries + tl.program_id(0).to(tl.int64) * DIM + dims, mask=dims < DIM, other=0.0)
    column_at = references + (cloud * num_references + columns[:, None]) * DIM + dims[None, :]
    near = tl.load(column_at, mask=(columns < num_references)[:, None] & (dims < DIM)[None, :], other=0.0)
    difference = near - query[None, :]
    seen = _allowed(row, columns, query_groups, reference_groups, own_row, num_queries, num_references, EXCLUSION)
    return tl.where(seen, tl.sum(difference * difference, 1), float("inf"))
