"""Exact k-nearest-neighbour search on a GPU in up to three dimensions, in one Triton kernel over a tree of boxes.

The references are sorted along a space-filling curve (:mod:`.knn_curve`), and each query looks into the nearest boxes
first, until no box is nearer than its k-th neighbour. For k = 5 these are some 4 boxes in the plane and 10 in space,
however many references there are, spread evenly or in clusters with others far away, so that the search scales as
``n (k + log m)``. Only a query that is as far from many references as from its k-th neighbour looks at all of those.
The distance of a box is rounded as those of its points are and never above them, so the result is that of an exhaustive
search by direct subtraction.
"""

# Arguments of kernels are pointers, numbers, and in capitals constants of the compiler.
# ruff: noqa: ANN001, ANN202, N803

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from myriad_lab.functional.knn_curve import FAN, boxes, curve_keys
from myriad_lab.functional.knn_keys import ABSENT, index_of, keep_nearest, make_keys, nearer, none_yet, unpack


def box_search(
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
        queries: Features, float32 (b, n, d), d up to 3, all finite.
        references: Features, float32 (b, m, d), on the same device, all finite.
        k: Number of neighbours, up to 64.
        own_row: Query i is reference i and does not see itself.
        query_groups: Integers (b, n); a query does not see the references of its group.
        reference_groups: Integers (b, m).

    Returns:
        Distances, ascending, infinite where fewer than ``k`` references are allowed, and indices, int64; both
        (b, n, k).
    """
    batch, num_queries, dim = queries.shape
    num_references = references.shape[1]
    found = torch.empty(batch, num_queries, k, dtype=torch.int64, device=queries.device)
    if found.numel() == 0:
        return unpack(found)
    names = curve_keys(references, references).argsort(dim=1)
    # Neighbouring programs read the same boxes if their queries are neighbours.
    order = names if own_row or queries is references else curve_keys(queries, references).argsort(dim=1)
    points = references.gather(1, names.unsqueeze(-1).expand(-1, -1, dim)).mT.contiguous()
    levels = boxes(points)
    # Pointers that are not read, where there are no groups.
    mine, theirs, group_levels = names, names, [names] * len(levels)
    if query_groups is not None and reference_groups is not None:
        mine, theirs = query_groups.contiguous(), reference_groups.gather(1, names)
        group_levels = boxes(theirs.unsqueeze(1))
    constants: dict[str, Any] = {
        "DIM": dim,
        "FAN": FAN,
        "TOP": max(FAN, triton.next_power_of_2(levels[-1].shape[-1])),
        "SLOTS": triton.next_power_of_2(k),
        "OWN_ROW": own_row,
        "GROUPED": query_groups is not None,
        "num_warps": 1,
    }
    tensors: list[Any] = [queries.contiguous(), order, mine, points, names, theirs, *levels, *group_levels, found]
    sizes: list[Any] = [num_queries, num_references, *(level.shape[-1] for level in levels), k]
    _search_boxes[(batch * num_queries,)](*tensors, *sizes, **constants)
    return unpack(found)


@triton.jit
def _box_keys(query, mine, bounds, groups, numbers, first, count, DIM: tl.constexpr, GROUPED: tl.constexpr):
    """Return the distances of a query to boxes as keys, with the boxes' places in ``numbers`` as indices."""
    at = first + numbers
    there = at < count
    squared = tl.zeros(numbers.shape, tl.float32)
    for dim in tl.static_range(DIM):
        coordinate = tl.load(query + dim)
        low = tl.load(bounds + dim * count + at, mask=there, other=0.0)
        high = tl.load(bounds + (DIM + dim) * count + at, mask=there, other=0.0)
        gap = tl.maximum(tl.maximum(low - coordinate, coordinate - high), 0.0)
        squared += gap * gap
    if GROUPED:  # a box full of the query's own group is none
        least = tl.load(groups + at, mask=there, other=0)
        largest = tl.load(groups + count + at, mask=there, other=0)
        there = there & ((least != mine) | (largest != mine))
    return make_keys(squared, numbers, there)


@triton.jit
def _point_keys(
    query, row, mine, points, names, groups, at, count, DIM: tl.constexpr, OWN_ROW: tl.constexpr, GROUPED: tl.constexpr
):
    """Return the distances of a query to points as keys, with the numbers of the references as indices."""
    there = at < count
    squared = tl.zeros(at.shape, tl.float32)
    for dim in tl.static_range(DIM):
        gap = tl.load(points + dim * count + at, mask=there, other=0.0) - tl.load(query + dim)
        squared += gap * gap
    who = tl.load(names + at, mask=there, other=0)
    if OWN_ROW:
        there = there & (who != row)
    if GROUPED:
        there = there & (tl.load(groups + at, mask=there, other=0) != mine)
    return make_keys(squared, who, there)


@triton.jit
def _search_boxes(
    queries, order, query_groups, points, names, groups,
    leaf_bounds, node_bounds, top_bounds, leaf_groups, node_groups, top_groups, out,
    num_queries, num_references, num_leaves, num_nodes, num_tops, k,
    DIM: tl.constexpr, FAN: tl.constexpr, TOP: tl.constexpr, SLOTS: tl.constexpr,
    OWN_ROW: tl.constexpr, GROUPED: tl.constexpr,
):  # fmt: skip
    """Write the keys of the nearest references of one query, in no order."""
    program = tl.program_id(0)
    cloud = (program // num_queries).to(tl.int64)
    row = tl.load(order + program)
    query = queries + (cloud * num_queries + row) * DIM
    points += cloud * num_references * DIM
    names += cloud * num_references
    leaf_bounds += cloud * num_leaves * 2 * DIM
    node_bounds += cloud * num_nodes * 2 * DIM
    top_bounds += cloud * num_tops * 2 * DIM
    mine = row
    if GROUPED:
        mine = tl.load(query_groups + cloud * num_queries + row)
        groups += cloud * num_references
        leaf_groups += cloud * num_leaves * 2
        node_groups += cloud * num_nodes * 2
        top_groups += cloud * num_tops * 2

    lanes = tl.arange(0, FAN)
    best = none_yet(k, SLOTS)
    worst = tl.max(best, 0)
    tops = _box_keys(query, mine, top_bounds, top_groups, tl.arange(0, TOP), 0, num_tops, DIM, GROUPED)
    top = tl.min(tops, 0)
    while nearer(top, worst):
        tops = tl.where(tops == top, ABSENT, tops)
        first_node = index_of(top) * FAN
        nodes = _box_keys(query, mine, node_bounds, node_groups, lanes, first_node, num_nodes, DIM, GROUPED)
        node = tl.min(nodes, 0)
        while nearer(node, worst):
            nodes = tl.where(nodes == node, ABSENT, nodes)
            first_leaf = (first_node + index_of(node)) * FAN
            leaves = _box_keys(query, mine, leaf_bounds, leaf_groups, lanes, first_leaf, num_leaves, DIM, GROUPED)
            leaf = tl.min(leaves, 0)
            while nearer(leaf, worst):
                leaves = tl.where(leaves == leaf, ABSENT, leaves)
                at = (first_leaf + index_of(leaf)) * FAN + lanes
                keys = _point_keys(
                    query, row, mine, points, names, groups, at, num_references, DIM, OWN_ROW, GROUPED
                )  # fmt: skip
                best = keep_nearest(best, keys)
                worst = tl.max(best, 0)
                leaf = tl.min(leaves, 0)
            node = tl.min(nodes, 0)
        top = tl.min(tops, 0)
    slots = tl.arange(0, SLOTS)
    place = (cloud * num_queries + row) * k
    tl.store(out + place + slots, best, mask=slots < k)
