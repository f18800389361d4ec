"""Exact k-nearest-neighbour search on a GPU without a distance matrix, in three Triton kernels.

1. ``_group_minima``: tiles of squared distances on the tensor cores. Of each :data:`GROUP` consecutive references only
   the smallest entry leaves the chip, and ``torch.topk`` takes the groups with the smallest ones. Each of the ``k``
   nearest references lies in a group whose minimum is among the ``k`` smallest.
2. ``_group_distances``: the distances to all members of these groups, by direct subtraction in float32.
3. ``_search_again``: where the k-th distance does not lie below every group left out by more than the rounding error of
   the first kernel, all references are searched by direct subtraction. The other queries do nothing there, so the host
   never has to know which they are.
"""

# Arguments of kernels are pointers, numbers, and in capitals constants of the compiler.
# ruff: noqa: ANN001, ANN202, N803

from __future__ import annotations

import math
from typing import Any, Literal

import torch
import triton
import triton.language as tl

GROUP = 32
"""References per group."""
SPARE = 8
"""Groups looked into beyond ``k``."""
MAX_HELD = 1 << 29
"""Group minima, or distances to members of groups, held at once (2 GiB); more queries are searched in chunks."""

Precision = Literal["ieee", "tf32"]
_NONE, _OWN_ROW, _BY_GROUP = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
_PRODUCT_ERROR = {"ieee": 2.0**-24, "tf32": 2.0**-9}
"""Largest relative error of one product; tf32 cuts both factors to 10 bits."""
_ROWS, _COLUMNS, _TILES = 64, 128, 8
"""Queries and references of a tile, and tiles for which a program keeps its queries."""
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
    precision: Precision | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the ``k`` nearest references of each query.

    Args:
        queries: Features, float32 (n, d), d up to 128.
        references: Features, float32 (m, d), on the same device.
        k: Number of neighbours, up to 64.
        own_row: Query i does not see reference i.
        query_groups: Integers (n,); a query does not see the references of its group.
        reference_groups: Integers (m,).
        precision: Of the products of the first kernel; chosen by d where ``None``.

    Returns:
        Distances (n, k), ascending, infinite where fewer than ``k`` references are allowed; indices, int64 (n, k).
    """
    num_queries, dim = queries.shape
    if num_queries == 0:
        return queries.new_empty(0, k), torch.empty(0, k, dtype=torch.int64, device=queries.device)
    queries, references = queries.contiguous(), references.contiguous()
    # Few features mean neighbours that are close for the size of the cloud, and little work for the tensor cores.
    precision = precision or ("ieee" if dim <= 16 else "tf32")
    if query_groups is not None and reference_groups is not None:
        query_groups, reference_groups = query_groups.contiguous(), reference_groups.contiguous()
    held = max(math.ceil(len(references) / GROUP), (k + SPARE) * GROUP)
    chunk = max(_ROWS, MAX_HELD // held)
    found = []
    for start in range(0, num_queries, chunk):
        rows = slice(start, min(start + chunk, num_queries))
        groups = None if query_groups is None else (query_groups[rows], reference_groups)
        found.append(_search(queries[rows], references, k, start if own_row else None, groups, precision))
    distances, indices = (torch.cat(parts) for parts in zip(*found, strict=True))
    return distances, indices


def _search(
    queries: torch.Tensor,
    references: torch.Tensor,
    k: int,
    own_row: int | None,
    groups: tuple[torch.Tensor, torch.Tensor | None] | None,
    precision: Precision,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Search for one chunk of queries, of which the first is reference ``own_row`` where that is not ``None``."""
    num_queries, dim = queries.shape
    num_references = len(references)
    num_groups = math.ceil(num_references / GROUP)
    kept = min(k + SPARE, num_groups)
    exclusion = _BY_GROUP if groups is not None else _NONE if own_row is None else _OWN_ROW
    seen = groups or (queries, references)  # a pointer that is not read, where there are no groups
    shape: dict[str, Any] = {
        "DIM": dim,
        "WIDTH": max(16, triton.next_power_of_2(dim)),
        "EXCLUSION": exclusion.value,
    }
    sizes = (own_row or 0, num_queries, num_references)

    centre = references.mean(0)
    left, right = (queries - centre).contiguous(), (references - centre).contiguous()
    squares, norms = left.square().sum(1), right.square().sum(1)
    minima = queries.new_empty(num_queries, num_groups)
    grid = (triton.cdiv(num_queries, _ROWS), triton.cdiv(num_references, _COLUMNS * _TILES))
    tile: dict[str, Any] = {"ROWS": _ROWS, "COLUMNS": _COLUMNS, "TILES": _TILES, "PRECISION": precision}
    tile["num_stages"] = _num_stages(shape["WIDTH"])
    grouped: dict[str, Any] = {**shape, "GROUP": GROUP}
    _group_minima[grid](left, right, norms, *seen, minima, *sizes, num_groups, **grouped, **tile)

    nearest = minima.topk(kept, largest=False, sorted=False)
    members = queries.new_empty(num_queries, kept, GROUP)
    _group_distances[(num_queries, kept)](queries, references, *seen, nearest.indices, members, *sizes, kept, **grouped)
    best = members.flatten(1).topk(k, largest=False, sorted=False)
    indices = nearest.indices.gather(1, best.indices // GROUP) * GROUP + best.indices % GROUP
    indices = indices.where(torch.isfinite(best.values), 0)

    largest = norms.max()
    rounding = (dim + 8) * 2.0**-24 * (largest + 2.0 * (squares * largest).sqrt() + squares)
    error = rounding + 2.0 * _PRODUCT_ERROR[precision] * (squares * largest).sqrt()
    reach = nearest.values.amax(1) + squares - error
    kth = best.values.amax(1)
    certain = (kth < reach) | (kth == 0.0) if kept < num_groups else torch.ones_like(kth, dtype=torch.bool)
    squared = best.values.contiguous()
    slots = {"SLOTS": triton.next_power_of_2(k), "BLOCK": _BLOCK}
    flags = certain.to(torch.int32)
    _search_again[(num_queries,)](queries, references, *seen, flags, squared, indices, *sizes, k, **shape, **slots)
    squared, order = squared.sort(dim=1, stable=True)
    return squared.sqrt(), indices.gather(1, order)


def _num_stages(width: int) -> int:
    """Return how many tiles of references are on their way at once: as many as fit into the memory on the chip."""
    return 2 if width > 64 else 3


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


@triton.jit
def _group_minima(
    queries, references, norms, query_groups, reference_groups, out,
    own_row, num_queries, num_references, num_groups,
    DIM: tl.constexpr, WIDTH: tl.constexpr, GROUP: tl.constexpr, EXCLUSION: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, TILES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write ``min |r|^2 - 2 q.r`` over each group of references that the query may see."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    dims = tl.arange(0, WIDTH)
    row_at = queries + rows[:, None].to(tl.int64) * DIM + dims[None, :]
    left = tl.load(row_at, mask=(rows < num_queries)[:, None] & (dims < DIM)[None, :], other=0.0)
    for tile in range(TILES):
        first = (tl.program_id(1) * TILES + tile) * COLUMNS
        columns = first + tl.arange(0, COLUMNS)
        column_at = references + columns[None, :].to(tl.int64) * DIM + dims[:, None]
        right = tl.load(column_at, mask=(columns < num_references)[None, :] & (dims < DIM)[:, None], other=0.0)
        norm = tl.load(norms + columns, mask=columns < num_references, other=0.0)
        squared = norm[None, :] - 2.0 * tl.dot(left, right, input_precision=PRECISION)
        seen = _allowed(
            rows[:, None], columns[None, :], query_groups, reference_groups, own_row, num_queries, num_references,
            EXCLUSION,
        )  # fmt: skip
        squared = tl.where(seen, squared, float("inf"))
        minima = tl.min(tl.reshape(squared, (ROWS, COLUMNS // GROUP, GROUP)), 2)
        groups = first // GROUP + tl.arange(0, COLUMNS // GROUP)
        there = (rows < num_queries)[:, None] & (groups < num_groups)[None, :]
        tl.store(out + rows[:, None].to(tl.int64) * num_groups + groups[None, :], minima, mask=there)


@triton.jit
def _group_distances(
    queries, references, query_groups, reference_groups, chosen, out,
    own_row, num_queries, num_references, kept,
    DIM: tl.constexpr, WIDTH: tl.constexpr, GROUP: tl.constexpr, EXCLUSION: tl.constexpr,
):  # fmt: skip
    """Write the squared distances of a query to the members of one of its chosen groups, by direct subtraction."""
    row = tl.program_id(0)
    place = row.to(tl.int64) * kept + tl.program_id(1)
    columns = tl.load(chosen + place) * GROUP + tl.arange(0, GROUP)
    squared = _direct(
        queries, references, row, columns, query_groups, reference_groups, own_row, num_queries, num_references,
        DIM, WIDTH, EXCLUSION,
    )  # fmt: skip
    tl.store(out + place * GROUP + tl.arange(0, GROUP), squared)


@triton.jit
def _search_again(
    queries, references, query_groups, reference_groups, certain, out, out_indices,
    own_row, num_queries, num_references, k,
    DIM: tl.constexpr, WIDTH: tl.constexpr, EXCLUSION: tl.constexpr,
    SLOTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Search all references for a query that is not certain of its neighbours; no order among those it writes."""
    row = tl.program_id(0)
    done = tl.load(certain + row)
    slots, lanes = tl.arange(0, SLOTS), tl.arange(0, BLOCK)
    best = tl.where(slots < k, float("inf"), -1.0)  # squares below 0 are never the worst of the best
    who = tl.zeros((SLOTS,), tl.int64)
    for first in range(0, tl.where(done != 0, 0, num_references), BLOCK):
        squared = _direct(
            queries, references, row, first + lanes, query_groups, reference_groups, own_row, num_queries,
            num_references, DIM, WIDTH, EXCLUSION,
        )  # fmt: skip
        nearest = tl.min(squared, 0)
        while nearest < tl.max(best, 0):
            lane, slot = tl.argmin(squared, 0), tl.argmax(best, 0)
            best = tl.where(slots == slot, nearest, best)
            who = tl.where(slots == slot, (first + lane).to(tl.int64), who)
            squared = tl.where(lanes == lane, float("inf"), squared)
            nearest = tl.min(squared, 0)
    place = row.to(tl.int64) * k + slots
    wanted = slots < tl.where(done != 0, 0, k)
    tl.store(out + place, best, mask=wanted)
    tl.store(out_indices + place, who, mask=wanted)


@triton.jit
def _direct(
    queries, references, row, columns, query_groups, reference_groups, own_row, num_queries, num_references,
    DIM: tl.constexpr, WIDTH: tl.constexpr, EXCLUSION: tl.constexpr,
):  # fmt: skip
    """Return the squared distances of a query to some references, infinite to those it must not see."""
    dims = tl.arange(0, WIDTH)
    query = tl.load(queries + row.to(tl.int64) * DIM + dims, mask=dims < DIM, other=0.0)
    column_at = references + columns[:, None].to(tl.int64) * DIM + dims[None, :]
    near = tl.load(column_at, mask=(columns < num_references)[:, None] & (dims < DIM)[None, :], other=0.0)
    difference = near - query[None, :]
    seen = _allowed(row, columns, query_groups, reference_groups, own_row, num_queries, num_references, EXCLUSION)
    return tl.where(seen, tl.sum(difference * difference, 1), float("inf"))
