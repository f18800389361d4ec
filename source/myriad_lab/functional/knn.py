"""Exact k-nearest-neighbour search over pooled particles.

Four methods: a KD-tree in double precision on the CPU in few dimensions (:mod:`.knn_tree`); on a GPU kernels that
never write the distances between all points (:mod:`.knn_triton`) or, for many points in up to three dimensions, do not
look at most of them (:mod:`.knn_boxes`); tiles of one matmul with a selection and a re-ranking by direct subtraction
everywhere else (:mod:`.knn_dense`). The first three are exact to the rounding of one subtraction. So is the dense
search on a CPU, where the rows in which it cannot rule out a rounding error are searched again with the tree. On a GPU
it reads nothing back: there it can confuse a neighbour with another one where their squared distances differ by less
than about ``2 d eps R^2``, with R the radius of the centred data; float64 shrinks ``eps``.
"""

from __future__ import annotations

import importlib.util
from typing import Literal

import torch

from myriad_lab.errors import ConfigurationError
from myriad_lab.functional.knn_curve import MAX_DIM as BOXES_MAX_DIM
from myriad_lab.functional.knn_dense import Exclusion, dense_search
from myriad_lab.functional.knn_tree import (
    separate,
    spread_of,
    tree_search,
    tree_search_groups,
    tree_search_self,
)

Exclude = Literal["none", "self", "group"]
Method = Literal["auto", "tree", "dense", "fused", "boxes"]
KERNELS_MAX_K, FUSED_MAX_DIM = 64, 128
"""Most neighbours that the kernels for a GPU take, and most features of those that look at all references."""
BOXES_MIN_PAIRS = 1 << 30
"""Pairs of a query and a reference (32,768 squared) from which on sorting pays. A guess: it was not timed on a GPU."""


def knn(
    queries: torch.Tensor,
    references: torch.Tensor,
    k: int,
    *,
    query_groups: torch.Tensor | None = None,
    reference_groups: torch.Tensor | None = None,
    exclude: Exclude = "none",
    method: Method = "auto",
    chunk: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the ``k`` nearest references of each query, exactly, in ascending order.

    Args:
        queries: Features, shape (n, d), float32 or float64.
        references: Features, shape (m, d), same type and device.
        k: Number of neighbours, at most the number of references a query may see.
        query_groups: Integer group of each query, shape (n,); only for ``exclude="group"``.
        reference_groups: Integer group of each reference, shape (m,); only for ``exclude="group"``.
        exclude: ``none``; ``self``: query i is reference i and does not see itself; ``group``: a query does not see
            the references of its own group, e.g. of its own trajectory.
        method: ``tree`` (CPU only), ``dense``, ``fused`` (CUDA only, float32, k up to 64, d up to 128), ``boxes`` (as
            ``fused``, d up to 3), or ``auto``: on a CPU by a rule fitted to measurements, on a GPU ``fused`` where it
            can be, and ``boxes`` beyond :data:`BOXES_MIN_PAIRS`.
        chunk: Queries per tile of the dense method; ``None`` chooses.

    Returns:
        Distances in the unit of the features, shape (n, k), and reference indices, long (n, k).

    Raises:
        ConfigurationError: Shapes, types or devices that do not fit each other, or the method; ``k`` below 1 or above
            the number of allowed references; features that are not finite. The last check, and the count of foreign
            groups, would read values back from a GPU: there features that are not finite turn every distance into NaN,
            and a missing neighbour has an infinite distance.
    """
    _check_shapes(queries, references, k, exclude, query_groups, reference_groups)
    queries, references = queries.detach(), references.detach()
    if exclude != "group":
        query_groups = reference_groups = None
    groups = (query_groups, reference_groups)
    if queries.device.type == "cpu":
        _check_values(queries, references)
        if _use_tree(method, len(references), references.shape[1], k + _largest_group(*groups, k)):
            return _tree(queries, references, k, query_groups, reference_groups, exclude)
    kernels = _choose_kernels(method, queries[None], references[None], k)
    if kernels is not None:
        near, who = _search_on_gpu(kernels, queries[None], references[None], k, exclude == "self", *groups)
        return near[0], who[0]
    exclusion = Exclusion(own_row=exclude == "self")
    if query_groups is not None and reference_groups is not None:
        exclusion = Exclusion.by_group(query_groups, reference_groups, queries.dtype)
    found = dense_search(queries[None], references[None], k, exclusion, chunk)
    distances, indices = found.distances[0], found.indices[0]
    if queries.device.type != "cpu":
        return distances + _poison(queries, references), indices
    uncertain = torch.nonzero(~found.certain[0]).squeeze(-1)
    if uncertain.numel():
        again = _tree(queries, references, k, query_groups, reference_groups, exclude, rows=uncertain)
        distances[uncertain], indices[uncertain] = again
    return distances, indices


def knn_within(points: torch.Tensor, k: int, *, method: Method = "auto") -> tuple[torch.Tensor, torch.Tensor]:
    """Return the ``k`` nearest other points within each cloud of a batch, with no loop over the clouds.

    Args:
        points: Shape (b, n, d), float32 or float64.
        k: Number of neighbours, at most n - 1.
        method: As in :func:`knn`.

    Returns:
        Distances, shape (b, n, k), and indices within the cloud, long (b, n, k).

    Raises:
        ConfigurationError: As in :func:`knn`.
    """
    if points.ndim != 3:
        raise ConfigurationError(f"clouds must have the shape (b, n, d), got {tuple(points.shape)}.")
    _check_shapes(points[0], points[0], k, "self", None, None)
    points = points.detach()
    on_cpu = points.device.type == "cpu"
    if on_cpu:
        _check_values(points, points)
        if _use_tree(method, points.shape[1], points.shape[2], k):
            return _tree_within(points, k)
    kernels = _choose_kernels(method, points, points, k)
    if kernels is not None:
        return _search_on_gpu(kernels, points, points, k, True)
    found = dense_search(points, points, k, Exclusion(own_row=True))
    if not on_cpu:
        return found.distances + _poison(points, points), found.indices
    uncertain = torch.nonzero(~found.certain.flatten()).squeeze(-1)
    if uncertain.numel():
        again = _tree_within(points, k, rows=uncertain)
        found.distances.flatten(0, 1)[uncertain], found.indices.flatten(0, 1)[uncertain] = again
    return found.distances, found.indices


def group_sizes(groups: torch.Tensor, reference_groups: torch.Tensor | None = None) -> torch.Tensor:
    """Return how many references share the group of each entry of ``groups`` (n,), with no host synchronisation."""
    ordered = (groups if reference_groups is None else reference_groups).sort().values
    groups = groups.contiguous()
    return torch.searchsorted(ordered, groups, right=True) - torch.searchsorted(ordered, groups)


def _use_tree(method: Method, num_references: int, dim: int, looked_at: int) -> bool:
    """Say whether to search with the tree on a CPU, which has to look at that many of the nearest references.

    Fitted to normal clouds and random walks of 4,096, 16,384 and 65,536 points, k = 5 and 50: the tree is the faster
    one up to 6, 8 and 8 dimensions for k = 5, up to 5, 6 and 7 for k = 50 (of walks a dimension or two further).
    ``myriad benchmark knn`` shows both sides of it. No clock decides, so that a run can be repeated to the bit.
    """
    return method == "tree" or (method == "auto" and looked_at * 5**dim <= 120 * num_references)


def _choose_kernels(
    method: Method, queries: torch.Tensor, references: torch.Tensor, k: int
) -> Literal["fused", "boxes"] | None:
    """Say which kernels for a GPU search the clouds (b, n, d) and (b, m, d), if any.

    Raises:
        ConfigurationError: If some are asked for and cannot.
    """
    if method == "tree" and queries.device.type != "cpu":
        raise ConfigurationError(f"method='tree' is for the CPU, the points are on {queries.device}; take 'auto'.")
    if method in ("tree", "dense"):
        return None
    batch, num_queries, dim = queries.shape
    # Triton comes with torch for CUDA; on systems that it has no build for, the dense search remains.
    there = importlib.util.find_spec("triton") is not None
    fits = there and queries.is_cuda and queries.dtype == torch.float32 and k <= KERNELS_MAX_K
    max_dim = BOXES_MAX_DIM if method == "boxes" else FUSED_MAX_DIM
    if not (fits and dim <= max_dim):
        if method == "auto":
            return None
        raise ConfigurationError(
            f"method={method!r} is for float32 on CUDA with Triton, k up to {KERNELS_MAX_K} and d up to {max_dim}; "
            f"got {queries.dtype} on {queries.device}, k = {k}, d = {dim}{'' if there else ', no Triton'}. "
            "Take method='auto'."
        )
    if method != "auto":
        return method
    many = batch * num_queries * references.shape[1] >= BOXES_MIN_PAIRS
    return "boxes" if many and dim <= BOXES_MAX_DIM else "fused"


def _search_on_gpu(
    kernels: Literal["fused", "boxes"],
    queries: torch.Tensor,
    references: torch.Tensor,
    k: int,
    own_row: bool,
    query_groups: torch.Tensor | None = None,
    reference_groups: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Search clouds (b, n, d) and (b, m, d) with the kernels for a GPU; groups (n,) and (m,) are for a single one."""
    if kernels == "boxes":
        from myriad_lab.functional.knn_boxes import box_search as search
    else:
        from myriad_lab.functional.knn_triton import fused_search as search
    # NaN would leave every query in doubt, and the kernels would look at everything for nothing.
    clean = torch.nan_to_num(references, nan=0.0, posinf=0.0, neginf=0.0)
    views = ((tensor.data_ptr(), tensor.shape, tensor.stride()) for tensor in (queries, references))
    among_themselves = next(views) == next(views)
    asking = clean if among_themselves else torch.nan_to_num(queries, nan=0.0, posinf=0.0, neginf=0.0)
    groups = [None if ids is None else ids[None] for ids in (query_groups, reference_groups)]
    with torch.cuda.device_of(queries):  # Triton launches on the current one
        distances, indices = search(
            asking, clean, k, own_row=own_row, query_groups=groups[0], reference_groups=groups[1]
        )
    return distances + _poison(queries, references), indices


def _tree(
    queries: torch.Tensor,
    references: torch.Tensor,
    k: int,
    query_groups: torch.Tensor | None,
    reference_groups: torch.Tensor | None,
    exclude: Exclude,
    rows: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Search with the KD-tree, for all queries or for ``rows`` of them."""
    targets = references.double().numpy()
    if exclude == "self":
        found = tree_search_self(targets, k, None if rows is None else rows.numpy())
    else:
        selected = (queries if rows is None else queries[rows]).double().numpy()
        if exclude == "none":
            found = tree_search(selected, targets, k)
        else:
            assert query_groups is not None
            assert reference_groups is not None
            own = query_groups if rows is None else query_groups[rows]
            found = tree_search_groups(selected, targets, k, own.numpy(), reference_groups.numpy())
    return torch.from_numpy(found[0]).to(queries.dtype), torch.from_numpy(found[1])


def _tree_within(points: torch.Tensor, k: int, rows: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Search all clouds with one tree, in which the cloud's number is one more coordinate."""
    batch, num_points, _ = points.shape
    flat = points.flatten(0, 1).double().numpy()
    labels = torch.arange(batch).repeat_interleave(num_points).numpy()
    joined = separate(flat, labels, spread_of(flat)) if batch > 1 else flat
    distances, indices = tree_search_self(joined, k, None if rows is None else rows.numpy())
    near, who = torch.from_numpy(distances).to(points.dtype), torch.from_numpy(indices) % num_points
    return (near, who) if rows is not None else (near.view(batch, -1, k), who.view(batch, -1, k))


def _poison(*tensors: torch.Tensor) -> torch.Tensor:
    """Return zero, or NaN if any feature is not finite, without reading a value back."""
    return sum((tensor.sum() * 0.0 for tensor in tensors), torch.zeros((), device=tensors[0].device))


def _check_shapes(
    queries: torch.Tensor,
    references: torch.Tensor,
    k: int,
    exclude: str,
    query_groups: torch.Tensor | None,
    reference_groups: torch.Tensor | None,
) -> None:
    """Refuse what does not fit together."""
    if queries.ndim != 2 or references.ndim != 2 or queries.shape[1] != references.shape[1] or queries.shape[1] == 0:
        raise ConfigurationError(
            f"queries (n, d) and references (m, d) must share d > 0, got {tuple(queries.shape)} and "
            f"{tuple(references.shape)}."
        )
    if queries.dtype != references.dtype or queries.dtype not in (torch.float32, torch.float64):
        raise ConfigurationError(
            f"features must both be float32 or both float64, got {queries.dtype} and {references.dtype}; cast them."
        )
    if exclude not in ("none", "self", "group"):
        raise ConfigurationError(f"exclude must be 'none', 'self' or 'group', got {exclude!r}.")
    if exclude == "self" and len(queries) != len(references):
        raise ConfigurationError(
            f"exclude='self' needs query i to be reference i, got {len(queries)} queries and {len(references)} "
            "references; use exclude='group' for a subset."
        )
    for name, groups, rows in (("query", query_groups, queries), ("reference", reference_groups, references)):
        if exclude == "group" and (groups is None or groups.shape != rows.shape[:1]):
            shape = None if groups is None else tuple(groups.shape)
            raise ConfigurationError(f"{name}_groups must have the shape {tuple(rows.shape[:1])}, got {shape}.")
    allowed = len(references) - (exclude == "self")
    if not 1 <= k <= allowed:
        raise ConfigurationError(
            f"k = {k} neighbours asked for, but a particle has {allowed} others to choose from "
            f"({len(references)} particles); expected 1 <= k <= {allowed}. Lower k or collect more particles."
        )


def _check_values(queries: torch.Tensor, references: torch.Tensor) -> None:
    """Refuse features that are not finite, naming the first one."""
    for name, features in (("queries", queries), ("references", references)):
        if not torch.isfinite(features).all():
            first = torch.nonzero(~torch.isfinite(features))[0].tolist()
            raise ConfigurationError(
                f"{name} hold {features[tuple(first)].item()} at index {first}; features must be finite. Mask diverged "
                "trajectories before the neighbour search."
            )


def _largest_group(query_groups: torch.Tensor | None, reference_groups: torch.Tensor | None, k: int) -> int:
    """Return the size of the largest group; refuse one so large that fewer than ``k`` foreign references are left."""
    if query_groups is None or reference_groups is None or len(query_groups) == 0:
        return 0
    largest = int(group_sizes(query_groups, reference_groups).max())
    if len(reference_groups) - largest < k:
        raise ConfigurationError(
            f"k = {k} neighbours asked for, but a particle has {len(reference_groups) - largest} outside its own group "
            f"of {largest} (of {len(reference_groups)} particles). Lower k or collect more trajectories."
        )
    return largest
