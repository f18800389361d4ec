"""Exact k-nearest-neighbour search on a GPU without a distance matrix, in three Triton kernels.

1. ``_group_minima``: tiles of squared distances on the tensor cores, each less what rounding may have added to it. Of
   each :data:`GROUP` consecutive references only the smallest of these lower bounds leaves the chip, and ``torch.topk``
   takes the groups with the smallest ones.
2. ``_group_distances``: the distances to all members of these groups, by direct subtraction in float32.
3. ``_search_again``: where the k-th distance does not lie below the bounds of all groups left out, all references are
   searched by direct subtraction. The other queries do nothing there, so the host never has to know which they are.
"""

# Arguments of kernels are pointers, numbers, and in capitals constants of the compiler.
# ruff: noqa: ANN001, ANN202, N803

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
import triton
import triton.language as tl

from myriad_lab.functional.knn_keys import keep_nearest, make_keys, none_yet, pack, unpack

GROUP = 32
"""References per group."""
SPARE = 8
"""Groups looked into beyond ``k``."""
MAX_HELD = 1 << 29
"""Group minima, or distances to members of groups, held at once (2 GiB); more queries are searched in chunks."""

Precision = Literal["ieee", "tf32x3"]
_NONE, _OWN_ROW, _BY_GROUP = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
_PER_CHUNK = ("own_row", "num_queries")
"""Arguments that change from one part of the queries to the next, for which nothing is compiled anew."""
_PRODUCT_ERROR = {"ieee": 2.0**-24, "tf32x3": 2.0**-18}
"""Largest relative error of one product. tf32x3 splits both factors into a part of 10 bits and the next 10, and leaves
out the product of the second parts: at most 2^-20 each for that and for the two rests. Plain tf32, 2^-9, would leave
the particles of robots that hardly move in doubt, and the third kernel with all the work."""
_ROWS, _TILES = 64, 8
"""Queries of a tile, and tiles of references for which a program keeps them, at least."""
_MAX_PROGRAMS = 65_535
"""The second and the third axis of a grid hold no more."""
_BLOCK = 128
"""References read at once by the third kernel."""


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
    # Few features mean neighbours that are close for the size of the cloud, and little work for the tensor cores.
    precision: Precision = "ieee" if dim <= 16 else "tf32x3"
    clouds = _Clouds.of(references, reference_groups)
    found = torch.empty(batch, num_queries, k, dtype=torch.int64, device=queries.device)
    held = max(math.ceil(clouds.size / GROUP), (k + SPARE) * GROUP)
    rows_at_once = max(_ROWS, MAX_HELD // held)
    at_once = min(_MAX_PROGRAMS, max(1, MAX_HELD // (held * max(1, num_queries))))
    for cloud in range(0, batch, at_once):
        some, part = slice(cloud, cloud + at_once), clouds.part(slice(cloud, cloud + at_once))
        for start in range(0, num_queries, rows_at_once):
            rows = slice(start, start + rows_at_once)
            groups = None if query_groups is None else query_groups[some, rows].contiguous()
            first = start if own_row else None
            found[some, rows] = _search(queries[some, rows].contiguous(), part, k, first, groups, precision)
    return unpack(found)


@dataclass
class _Clouds:
    """The references, and what all queries need of them."""

    points: torch.Tensor
    """As given, (b, m, d)."""
    centre: torch.Tensor
    """Of each cloud, (b, 1, d)."""
    centred: torch.Tensor
    """Less the centre, (b, m, d)."""
    norms: torch.Tensor
    """Squared norms of the centred points, (b, m)."""
    groups: torch.Tensor | None
    """Group of each reference, (b, m)."""

    @classmethod
    def of(cls, points: torch.Tensor, groups: torch.Tensor | None) -> _Clouds:
        """Prepare the references."""
        # of some points, by feature: any centre will do, and this one is not drawn to a few that are far away
        some = points[:, :: max(1, points.shape[1] // 1024)].sort(1).values
        centre = some[:, some.shape[1] // 2].unsqueeze(1)
        centred = (points - centre).contiguous()
        norms = centred.square().sum(2)
        groups = None if groups is None else groups.contiguous()
        return cls(points.contiguous(), centre, centred, norms, groups)

    @property
    def size(self) -> int:
        """Number of references of a cloud."""
        return self.points.shape[1]

    def part(self, some: slice) -> _Clouds:
        """Return some of the clouds."""
        groups = None if self.groups is None else self.groups[some]
        return _Clouds(self.points[some], self.centre[some], self.centred[some], self.norms[some], groups)


def _search(
    queries: torch.Tensor,
    clouds: _Clouds,
    k: int,
    own_row: int | None,
    query_groups: torch.Tensor | None,
    precision: Precision,
) -> torch.Tensor:
    """Return the keys of the neighbours of some queries; the first is reference ``own_row`` where that is given."""
    batch, num_queries, dim = queries.shape
    num_groups = math.ceil(clouds.size / GROUP)
    kept = min(k + SPARE, num_groups)
    exclusion = _BY_GROUP if query_groups is not None else _NONE if own_row is None else _OWN_ROW
    # Pointers that are not read, where there are no groups.
    seen = (queries, clouds.points) if query_groups is None else (query_groups, clouds.groups)
    shape: dict[str, Any] = {
        "DIM": dim,
        "WIDTH": max(16, triton.next_power_of_2(dim)),
        "EXCLUSION": exclusion.value,
    }
    sizes = (own_row or 0, num_queries, clouds.size)

    left = queries - clouds.centre
    lengths = left.square().sum(2).sqrt()
    # Sums of products, centring and the bound itself round; tensor cores may round each sum twice as far.
    rounding = ((2 if precision == "tf32x3" else 1) * dim + 12) * 2.0**-24
    errors = (rounding, 2.0 * (rounding + _PRODUCT_ERROR[precision]))
    minima = queries.new_empty(batch, num_queries, num_groups)
    # A small cloud is done by one program for each tile of queries, which loops no further than it has to.
    columns, stages = _columns_and_stages(shape["WIDTH"])
    tiles = max(_TILES, triton.cdiv(clouds.size, columns * _MAX_PROGRAMS))
    tiles = min(tiles, triton.cdiv(clouds.size, columns))
    grid = (triton.cdiv(num_queries, _ROWS), triton.cdiv(clouds.size, columns * tiles), batch)
    tile: dict[str, Any] = {"ROWS": _ROWS, "COLUMNS": columns, "TILES": tiles, "PRECISION": precision}
    tile["num_stages"] = stages
    grouped: dict[str, Any] = {**shape, "GROUP": GROUP}
    tensors: list[Any] = [left, lengths, clouds.centred, clouds.norms, *seen, minima]
    numbers: list[Any] = [*errors, *sizes, num_groups]
    _group_minima[grid](*tensors, *numbers, **grouped, **tile)

    nearest = minima.topk(kept, largest=False, sorted=False)
    members = queries.new_empty(batch, num_queries, kept, GROUP)
    _group_distances[(batch * num_queries, kept)](
        queries, clouds.points, *seen, nearest.indices, members, *sizes, kept, **grouped
    )
    best = members.flatten(2).topk(k, largest=False, sorted=False)
    indices = nearest.indices.gather(2, best.indices // GROUP) * GROUP + best.indices % GROUP

    bound, kth = nearest.values.amax(2), best.values.amax(2)
    certain = (kth < bound + (1.0 - rounding) * lengths.square()) | (kth == 0.0)
    # Of two infinite ones the second tells that the groups left out have no member that the query may see.
    certain |= torch.isposinf(kth) & torch.isposinf(bound)
    if kept == num_groups:
        certain = torch.ones_like(certain)
    keys = pack(best.values, indices)
    slots = {"SLOTS": triton.next_power_of_2(k), "BLOCK": _BLOCK}
    flags = certain.to(torch.int32)
    _search_again[(batch * num_queries,)](queries, clouds.points, *seen, flags, keys, *sizes, k, **shape, **slots)
    return keys


def _columns_and_stages(width: int) -> tuple[int, int]:
    """Return the references of a tile, and how many tiles are on their way at once: what fits on the chip."""
    # two programs at once on a multiprocessor, so that one loads while the other computes
    return {128: (32, 2), 64: (64, 3)}.get(width, (128, 3))


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
    queries, lengths, references, norms, query_groups, reference_groups, out,
    own_error, cross_error, own_row, num_queries, num_references, num_groups,
    DIM: tl.constexpr, WIDTH: tl.constexpr, GROUP: tl.constexpr, EXCLUSION: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, TILES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write ``min |r|^2 - 2 q.r``, less its error, over each group of references that the query may see.

    The error is at most ``own_error |r|^2 + cross_error |q| |r|``, beside that of ``|q|^2``, which is not in there.
    """
    cloud = tl.program_id(2).to(tl.int64)
    queries += cloud * num_queries * DIM
    lengths += cloud * num_queries
    references += cloud * num_references * DIM
    norms += cloud * num_references
    out += cloud * num_queries * num_groups
    query_groups = _groups_from(query_groups, cloud * num_queries, EXCLUSION)
    reference_groups = _groups_from(reference_groups, cloud * num_references, EXCLUSION)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    dims = tl.arange(0, WIDTH)
    row_at = queries + rows[:, None].to(tl.int64) * DIM + dims[None, :]
    left = tl.load(row_at, mask=(rows < num_queries)[:, None] & (dims < DIM)[None, :], other=0.0)
    length = cross_error * tl.load(lengths + rows, mask=rows < num_queries, other=0.0)
    for tile in range(TILES):
        first = (tl.program_id(1) * TILES + tile) * COLUMNS
        columns = first + tl.arange(0, COLUMNS)
        column_at = references + columns[None, :].to(tl.int64) * DIM + dims[:, None]
        right = tl.load(column_at, mask=(columns < num_references)[None, :] & (dims < DIM)[:, None], other=0.0)
        norm = tl.load(norms + columns, mask=columns < num_references, other=0.0)
        bound = (norm * (1.0 - own_error))[None, :] - length[:, None] * tl.sqrt(norm)[None, :]
        squared = bound - 2.0 * tl.dot(left, right, input_precision=PRECISION)
        squared = tl.where(squared == squared, squared, float("-inf"))  # a square was too large: may be anywhere
        seen = _allowed(
            rows[:, None], columns[None, :], query_groups, reference_groups, own_row, num_queries, num_references,
            EXCLUSION,
        )  # fmt: skip
        squared = tl.where(seen, squared, float("inf"))
        minima = tl.min(tl.reshape(squared, (ROWS, COLUMNS // GROUP, GROUP)), 2)
        groups = first // GROUP + tl.arange(0, COLUMNS // GROUP)
        there = (rows < num_queries)[:, None] & (groups < num_groups)[None, :]
        tl.store(out + rows[:, None].to(tl.int64) * num_groups + groups[None, :], minima, mask=there)


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
def _search_again(
    queries, references, query_groups, reference_groups, certain, out,
    own_row, num_queries, num_references, k,
    DIM: tl.constexpr, WIDTH: tl.constexpr, EXCLUSION: tl.constexpr,
    SLOTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Search all references for a query that is not certain of its neighbours; no order among the keys it writes."""
    program = tl.program_id(0).to(tl.int64)
    done = tl.load(certain + program)
    best = none_yet(k, SLOTS)
    for first in range(0, tl.where(done != 0, 0, num_references), BLOCK):
        columns = first + tl.arange(0, BLOCK)
        squared = _direct(
            queries, references, columns, query_groups, reference_groups, own_row, num_queries, num_references,
            DIM, WIDTH, EXCLUSION,
        )  # fmt: skip
        best = keep_nearest(best, make_keys(squared, columns, columns < num_references))
    slots = tl.arange(0, SLOTS)
    tl.store(out + program * k + slots, best, mask=slots < tl.where(done != 0, 0, k))


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
