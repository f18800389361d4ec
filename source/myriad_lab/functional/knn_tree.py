"""KD-tree search on the CPU (``scipy.spatial.KDTree``), the fast way in few dimensions.

Batches and group exclusions are put into one extra coordinate: points that may not see each other lie further apart
along it than any two points of the data, points that may lie at the very same value, which adds exactly zero to
their distance.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

FIRST_PADDING = 8
"""Neighbours asked for beyond ``k`` on the first try where a group is excluded."""
MAX_PADDED = 64
"""Neighbours asked for on the last try before the search by halves takes over."""


def build_tree(points: np.ndarray) -> Any:
    """Build the tree over points (n, d); the rule and the leaf sizes are the fastest of those measured for the use."""
    from scipy.spatial import KDTree

    return KDTree(points, balanced_tree=False, leafsize=16 if points.shape[1] <= 3 else 32)


def query_tree(tree: Any, points: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return distances and indices (n, k) with as many threads as torch may use; infinite and ``n`` where absent."""
    distances, indices = tree.query(points, k=np.arange(1, k + 1), workers=torch.get_num_threads())
    return distances, indices


def tree_search(queries: np.ndarray, references: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the ``k`` nearest references of each query: distances and indices (n, k)."""
    return query_tree(build_tree(references), queries, k)


def tree_search_self(points: np.ndarray, k: int, rows: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return the ``k`` nearest *other* points of each point (or of the points ``rows``): distances, indices (n, k)."""
    tree = build_tree(points)
    # Leaf order keeps the visited nodes in the cache: 5 to 15 % faster at 65,536 points.
    order = tree.indices if rows is None else rows
    distances, indices = query_tree(tree, points[order], k + 1)
    if (indices[:, 0] == order).all():
        distances, indices = distances[:, 1:], indices[:, 1:]
    else:  # Duplicates: the point itself may stand anywhere, or be absent behind k + 1 copies of it.
        own = indices == order[:, None]
        own[~own.any(axis=1), -1] = True
        distances, indices = distances[~own].reshape(-1, k), indices[~own].reshape(-1, k)
    if rows is not None:
        return distances, indices
    return _unsort(distances, order), _unsort(indices, order)


def tree_search_groups(
    queries: np.ndarray, references: np.ndarray, k: int, query_groups: np.ndarray, reference_groups: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the ``k`` nearest references of another group than the query's: distances and indices (n, k).

    First some neighbours more than ``k`` are asked for; the first ``k`` foreign ones of a row are exact, since
    neighbours come in ascending order. Rows that met fewer ask for more, and at last go to :func:`_search_by_halves`.
    """
    num_queries, num_references = len(queries), len(references)
    distances, indices = np.empty((num_queries, k)), np.empty((num_queries, k), dtype=np.int64)
    tree = build_tree(references)
    rows = np.arange(num_queries)
    asked = min(num_references, k + FIRST_PADDING)
    while len(rows):
        near, who = query_tree(tree, queries[rows], asked)
        foreign = reference_groups[who] != query_groups[rows, None]
        rank = foreign.cumsum(axis=1)
        enough = rank[:, -1] >= k
        chosen = (foreign & (rank <= k))[enough]
        distances[rows[enough]] = near[enough][chosen].reshape(-1, k)
        indices[rows[enough]] = who[enough][chosen].reshape(-1, k)
        rows = rows[~enough]
        if asked >= min(num_references, max(MAX_PADDED, 2 * k)):
            break
        asked = min(num_references, asked * 3)
    if len(rows):
        distances[rows], indices[rows] = _search_by_halves(
            queries[rows], references, k, query_groups[rows], reference_groups
        )
    return distances, indices


def separate(points: np.ndarray, labels: np.ndarray, spread: float) -> np.ndarray:
    """Append ``labels * spread`` as one more coordinate to points (n, d)."""
    return np.concatenate([points, (labels * spread)[:, None]], axis=1)


def spread_of(*clouds: np.ndarray) -> float:
    """Return a length larger than the distance of any two of the given points, each cloud (n, d)."""
    low = np.min([cloud.min(axis=0) for cloud in clouds], axis=0)
    high = np.max([cloud.max(axis=0) for cloud in clouds], axis=0)
    return 2.0 * float(np.linalg.norm(high - low)) + 1.0


def _search_by_halves(
    queries: np.ndarray, references: np.ndarray, k: int, query_groups: np.ndarray, reference_groups: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Search all other groups exactly, however many neighbours the own group would have supplied.

    The complement of a group is split by the binary digits of its number: the groups that share the digits above digit
    ``b`` and differ in it, for every ``b``. One tree per digit holds these sets, kept apart by the extra coordinate, so
    the cost grows with the logarithm of the number of groups.
    """
    names, numbers = np.unique(np.concatenate([reference_groups, query_groups]), return_inverse=True)
    reference_numbers, query_numbers = numbers[: len(references)], numbers[len(references) :]
    spread = spread_of(queries, references)
    distances = np.full((len(queries), k), np.inf)
    indices = np.zeros((len(queries), k), dtype=np.int64)
    for digit in range(max(1, (len(names) - 1).bit_length())):
        tree = build_tree(separate(references, reference_numbers >> digit, spread))
        siblings = (query_numbers >> digit) ^ 1
        near, who = query_tree(tree, separate(queries, siblings, spread), min(k, len(references)))
        near[near >= 0.5 * spread] = np.inf  # Points of another set stand in where the right one is too small.
        near, who = np.concatenate([distances, near], axis=1), np.concatenate([indices, who], axis=1)
        best = np.argsort(near, axis=1, kind="stable")[:, :k]
        distances, indices = np.take_along_axis(near, best, axis=1), np.take_along_axis(who, best, axis=1)
    return distances, indices


def _unsort(values: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Undo ``values = result[order]``."""
    result = np.empty_like(values)
    result[order] = values
    return result
