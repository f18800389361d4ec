"""Coverage: which cells of a grid over the arena were visited, and what share of the reachable ones that is."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from myriad_lab.errors import ConfigurationError

CELLS = 50
"""Cells along x and along y."""


def visited_cells(points: torch.Tensor, extent: Sequence[float], cells: int = CELLS) -> torch.Tensor:
    """Return the cells that hold at least one point, bool (cells, cells), indexed ``[ix, iy]``.

    Points outside the extent, and points that are not finite, visit nothing. No host synchronisation.

    Args:
        points: World positions x, y [m] in the first two entries, shape (..., d), d >= 2.
        extent: x_min, x_max, y_min, y_max [m].
        cells: Cells along each axis.

    Raises:
        ConfigurationError: An extent or shape that does not fit.
    """
    if len(extent) != 4 or not (extent[1] > extent[0] and extent[3] > extent[2]) or cells < 1:
        raise ConfigurationError(f"extent {tuple(extent)} is not x_min, x_max, y_min, y_max, or cells={cells} < 1.")
    if points.shape[-1] < 2:
        raise ConfigurationError(f"points must hold x and y in their last axis, got the shape {tuple(points.shape)}.")
    # One axis at a time: numbers reach a device as arguments, a tensor of them would have to be copied there.
    x, y = points[..., 0].reshape(-1), points[..., 1].reshape(-1)
    share = torch.stack([(x - extent[0]) / (extent[1] - extent[0]), (y - extent[2]) / (extent[3] - extent[2])], dim=-1)
    inside = ((share >= 0.0) & (share <= 1.0)).all(dim=-1)
    cell = (torch.nan_to_num(share).clamp(0.0, 1.0) * cells).long().clamp(max=cells - 1)
    index = torch.where(inside, cell[:, 0] * cells + cell[:, 1], cells * cells)
    visited = torch.zeros(cells * cells + 1, dtype=torch.bool, device=points.device)
    return visited.index_fill(0, index, True)[:-1].view(cells, cells)


def coverage(visited: torch.Tensor, reachable: torch.Tensor) -> torch.Tensor:
    """Return the share of the reachable cells that was visited, a scalar in [0, 1].

    Args:
        visited: Bool (..., cells, cells); leading axes, e.g. one map for each policy, are kept.
        reachable: Bool (cells, cells).

    Raises:
        ConfigurationError: Maps of different size.
    """
    if visited.shape[-2:] != reachable.shape:
        raise ConfigurationError(f"visited {tuple(visited.shape)} and reachable {tuple(reachable.shape)} do not match.")
    return (visited & reachable).sum(dim=(-2, -1)) / reachable.sum().clamp_min(1)
