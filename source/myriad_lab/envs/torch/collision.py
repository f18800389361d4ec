"""Batched collision of point robots with the boxes of an arena."""

from __future__ import annotations

import torch

from myriad_lab.envs.arena import Arena

_FAR = 1e9
"""Coordinate of the padding boxes, beyond every arena [m]."""


class BoxCollider:
    """Moves squares of half-width ``radius`` among axis-aligned boxes: they stop at walls and slide along them.

    A move is made along x, then along y, and each part is stopped by the first box on its way, so that nothing tunnels
    through a wall, however thin. Every cell of a lookup grid holds the few boxes that a robot in it can meet within one
    step, hence the cost does not grow with the number of boxes.
    """

    def __init__(
        self,
        arena: Arena,
        radius: float,
        max_step: float,
        device: torch.device | str,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Build the lookup grid.

        Args:
            arena: Boxes and extent.
            radius: Radius of the robot [m].
            max_step: Longest move along x or y in one call of ``slide`` [m]; longer ones are cut.
            device: Where positions live.
            dtype: Of the positions.
        """
        x_min, x_max, y_min, y_max = arena.extent
        self.max_step = max_step
        self._columns = max(1, min(256, round((x_max - x_min) / max_step)))
        self._rows = max(1, min(256, round((y_max - y_min) / max_step)))
        cell_x, cell_y = (x_max - x_min) / self._columns, (y_max - y_min) / self._rows
        self._origin_x, self._origin_y = x_min, y_min
        self._per_x, self._per_y = 1.0 / cell_x, 1.0 / cell_y
        # Rounded outwards nowhere: the same float32 edges stop a robot and decide later whether it stands inside.
        bounds = arena.bounds(radius).to(dtype)
        low_x = x_min + torch.arange(self._columns, dtype=dtype) * cell_x
        low_y = y_min + torch.arange(self._rows, dtype=dtype) * cell_y
        # Twice the step: rounding in the cell index can never lose a box.
        near_x = (bounds[:, 0] < low_x[:, None] + cell_x + 2 * max_step) & (
            bounds[:, 1] > low_x[:, None] - 2 * max_step
        )
        near_y = (bounds[:, 2] < low_y[:, None] + cell_y + 2 * max_step) & (
            bounds[:, 3] > low_y[:, None] - 2 * max_step
        )
        near = (near_x[:, None, :] & near_y[None, :, :]).reshape(self._columns * self._rows, len(arena.boxes))
        self._slots = max(1, int(near.sum(1).max())) if len(arena.boxes) else 1
        padded = torch.cat([bounds, torch.full((1, 4), _FAR, dtype=dtype)])
        order = torch.where(near, torch.arange(len(arena.boxes)), len(arena.boxes)).sort(dim=1).values
        if order.shape[1] < self._slots:
            order = torch.full((len(near), self._slots), len(arena.boxes))
        # (4 * slots, cells): left edges of all slots, then right, bottom, top; robots lie along the fast axis, so that
        # every comparison below runs over contiguous memory.
        table = padded[order[:, : self._slots]].permute(2, 1, 0).reshape(4 * self._slots, len(near))
        self._table = table.contiguous().to(device)

    def slide(self, xy: torch.Tensor, move: torch.Tensor) -> torch.Tensor:
        """Return where the robots end that start at ``xy`` and want to move by ``move``, both (n, 2) [m]."""
        move = move.clamp(-self.max_step, self.max_step)
        x, y = xy[:, 0], xy[:, 1]
        column = ((x - self._origin_x) * self._per_x).clamp(0, self._columns - 1).long()
        row = ((y - self._origin_y) * self._per_y).clamp(0, self._rows - 1).long()
        edges = self._table.index_select(1, column * self._rows + row).view(4, self._slots, -1)
        left, right, bottom, top = edges.unbind(0)
        x = _stopped(x, move[:, 0], left, right, (bottom < y) & (top > y))
        y = _stopped(y, move[:, 1], bottom, top, (left < x) & (right > x))
        return torch.stack((x, y), dim=1)


def _stopped(
    place: torch.Tensor, move: torch.Tensor, low: torch.Tensor, high: torch.Tensor, in_way: torch.Tensor
) -> torch.Tensor:
    """Return ``place + move`` (n,), stopped at the nearest box ``[low, high]`` (b, n) of those in the way."""
    ceiling = torch.where(in_way & (low >= place), low, _FAR).amin(0)
    floor = torch.where(in_way & (high <= place), high, -_FAR).amax(0)
    return torch.minimum(torch.maximum(place + move, floor), ceiling)
