"""The place robots move in, described once as boxes or a height field and spawned by every backend."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from myriad_lab.envs.constants import constant
from myriad_lab.errors import ConfigurationError

_TOUCH = 1e-9
"""Overlap below which two shapes only touch [m]."""


@dataclass(frozen=True)
class Box:
    """An axis-aligned wall or block that stands on the ground and that no robot can enter."""

    center: tuple[float, float]
    """Centre x, y [m]."""
    half_size: tuple[float, float]
    """Half the edge along x, y [m]."""
    height: float
    """Height above the ground [m]."""


@dataclass(frozen=True)
class HeightField:
    """Ground heights on a regular grid of nodes over the extent of the arena; robots walk on it."""

    heights: tuple[tuple[float, ...], ...]
    """Heights [m], ``heights[row][column]``: rows along y from ``y_min`` to ``y_max``, columns along x; all >= 0."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows (along y) and columns (along x)."""
        return len(self.heights), len(self.heights[0])


@dataclass(frozen=True)
class Arena:
    """A rectangle of ground with walls, one start point, and the maps that follow from them.

    Every cell map is indexed ``[ix, iy]``, x first, over ``extent``. A robot is a square of half-width ``radius``
    (``robot_radius`` where none is given), so that maps, collisions and goals agree on what is free.
    """

    name: str
    """Name, e.g. ``maze``."""
    extent: tuple[float, float, float, float]
    """x_min, x_max, y_min, y_max [m]."""
    boxes: tuple[Box, ...] = ()
    """Walls and blocks."""
    height_field: HeightField | None = None
    """Ground heights; ``None`` means flat ground at height 0."""
    start: tuple[float, float] = (0.0, 0.0)
    """Where every robot starts an episode, x, y [m]."""
    robot_radius: float = 0.0
    """Radius of the robot seen from above for which the maps are reckoned [m]."""

    def __post_init__(self) -> None:
        x_min, x_max, y_min, y_max = self.extent
        if not (x_max > x_min and y_max > y_min):
            raise ConfigurationError(f"Arena {self.name!r}: extent {self.extent} is not x_min, x_max, y_min, y_max.")

    @property
    def half_extent(self) -> tuple[float, float]:
        """Half the edges of the extent along x, y [m]."""
        x_min, x_max, y_min, y_max = self.extent
        return (x_max - x_min) / 2, (y_max - y_min) / 2

    @property
    def middle(self) -> tuple[float, float]:
        """Centre of the extent, x, y [m]."""
        x_min, x_max, y_min, y_max = self.extent
        return (x_max + x_min) / 2, (y_max + y_min) / 2

    def bounds(self, radius: float | None = None) -> torch.Tensor:
        """Return left, right, bottom, top of every box grown by the robot [m], float64, shape (num_boxes, 4)."""
        radius = self.robot_radius if radius is None else radius
        rows = [
            (
                box.center[0] - box.half_size[0] - radius,
                box.center[0] + box.half_size[0] + radius,
                box.center[1] - box.half_size[1] - radius,
                box.center[1] + box.half_size[1] + radius,
            )
            for box in self.boxes
        ]
        return torch.tensor(rows, dtype=torch.float64).reshape(len(rows), 4)

    def is_free(self, xy: torch.Tensor, radius: float | None = None) -> torch.Tensor:
        """Return where a robot fits: inside the extent and in no box.

        Args:
            xy: Positions [m], shape (..., 2).
            radius: Radius of the robot [m]; ``robot_radius`` by default.

        Returns:
            Bool, shape (...,).
        """
        points = xy.to(torch.float64).unsqueeze(-2)
        left, right, bottom, top = self.bounds(radius).to(xy.device).unbind(1)
        x, y = points[..., 0], points[..., 1]
        inside = (x > left + _TOUCH) & (x < right - _TOUCH) & (y > bottom + _TOUCH) & (y < top - _TOUCH)
        x_min, x_max, y_min, y_max = self.extent
        in_extent = (x >= x_min) & (x <= x_max) & (y >= y_min) & (y <= y_max)
        return in_extent.squeeze(-1) & ~inside.any(-1)

    def height_at(self, xy: torch.Tensor) -> torch.Tensor:
        """Return the ground height [m] under the positions ``xy`` (..., 2), bilinear between nodes, shape (...,)."""
        if self.height_field is None:
            return torch.zeros_like(xy[..., 0])
        heights = constant(self.height_field.heights, xy.device).to(xy.dtype)
        rows, columns = heights.shape
        x_min, x_max, y_min, y_max = self.extent
        u = ((xy[..., 0] - x_min) / (x_max - x_min)).clamp(0, 1) * (columns - 1)
        v = ((xy[..., 1] - y_min) / (y_max - y_min)).clamp(0, 1) * (rows - 1)
        column, row = u.long().clamp(max=columns - 2), v.long().clamp(max=rows - 2)
        fu, fv = u - column, v - row
        low = heights[row, column] * (1 - fu) + heights[row, column + 1] * fu
        high = heights[row + 1, column] * (1 - fu) + heights[row + 1, column + 1] * fu
        return low * (1 - fv) + high * fv

    def cell_centers(self, cells: int = 50) -> torch.Tensor:
        """Return the centres of the ``cells x cells`` cells over the extent [m], float64, shape (cells, cells, 2)."""
        x_min, x_max, y_min, y_max = self.extent
        middle = (torch.arange(cells, dtype=torch.float64) + 0.5) / cells
        x, y = x_min + middle * (x_max - x_min), y_min + middle * (y_max - y_min)
        return torch.stack(torch.meshgrid(x, y, indexing="ij"), dim=-1)

    def cell_of(self, xy: torch.Tensor, cells: int = 50) -> torch.Tensor:
        """Return the cell ``ix, iy`` of each position [m], long (..., 2); outside positions go to the border cells."""
        x_min, x_max, y_min, y_max = self.extent
        low = constant((x_min, y_min), xy.device, xy.dtype)
        span = constant((x_max - x_min, y_max - y_min), xy.device, xy.dtype)
        return ((xy - low) / span * cells).floor().clamp(0, cells - 1).long()

    def occupancy(self, cells: int = 50, radius: float | None = None) -> torch.Tensor:
        """Return the cells whose centre no robot can stand on, bool (cells, cells)."""
        return ~self.is_free(self.cell_centers(cells), radius)

    def reachable(self, cells: int = 50, radius: float | None = None) -> torch.Tensor:
        """Return the free cells that a flood fill from the start reaches, bool (cells, cells)."""
        return torch.isfinite(self.geodesic(cells, radius))

    def geodesic(self, cells: int = 50, radius: float | None = None) -> torch.Tensor:
        """Return the length of the shortest 8-connected path from the start to each cell centre.

        A step is allowed where the segment between the centres crosses no grown box, so that walls thinner than a cell
        count; a diagonal step only where both ways round the corner are free. Dijkstra's algorithm.

        Returns:
            Distances [m], infinite on cells out of reach, float64, shape (cells, cells).

        Raises:
            ConfigurationError: The start is inside a box or outside the extent.
        """
        import numpy as np
        from scipy.sparse import coo_matrix
        from scipy.sparse.csgraph import dijkstra

        start = torch.tensor(self.start, dtype=torch.float64)
        if not bool(self.is_free(start, radius)):
            raise ConfigurationError(
                f"Arena {self.name!r}: the start {self.start} is not free for a robot of radius "
                f"{self.robot_radius if radius is None else radius} m; move the start or the boxes."
            )
        rows, columns, lengths = self._edges(cells, radius)
        graph = coo_matrix((lengths, (rows, columns)), shape=(cells * cells, cells * cells)).tocsr()
        free = (~self.occupancy(cells, radius)).flatten()
        to_start = (self.cell_centers(cells).reshape(-1, 2) - start).norm(dim=1)
        source = int(torch.where(free, to_start, torch.inf).argmin())
        distances = dijkstra(graph, directed=False, indices=source)
        return torch.from_numpy(np.ascontiguousarray(distances)).reshape(cells, cells)

    def far_goal(self, percentile: float = 80.0, radius: float | None = None, cells: int = 50) -> tuple[float, float]:
        """Return the centre x, y [m] of the reachable cell at that percentile of geodesic distance from the start."""
        distances = self.geodesic(cells, radius)
        finite = distances[torch.isfinite(distances)]
        wanted = torch.quantile(finite, percentile / 100.0)
        gap = (distances - wanted).abs()
        index = int(gap.flatten().argmin())
        x, y = self.cell_centers(cells).reshape(-1, 2)[index].tolist()
        return _tidy(x), _tidy(y)

    def scaled(self, factor: float, height_factor: float | None = None) -> Arena:
        """Return the same map ``factor`` times as large; heights too, unless ``height_factor`` says otherwise."""
        up = factor if height_factor is None else height_factor

        def pair(values: tuple[float, float]) -> tuple[float, float]:
            return _tidy(values[0] * factor), _tidy(values[1] * factor)

        boxes = tuple(Box(pair(box.center), pair(box.half_size), _tidy(box.height * up)) for box in self.boxes)
        field = self.height_field
        if field is not None:
            field = HeightField(tuple(tuple(h * up for h in row) for row in field.heights))
        x_min, x_max, y_min, y_max = (_tidy(value * factor) for value in self.extent)
        radius = _tidy(self.robot_radius * factor)
        return Arena(self.name, (x_min, x_max, y_min, y_max), boxes, field, pair(self.start), radius)

    def to_dict(self) -> dict[str, Any]:
        """Return the arena as plain JSON-able containers."""
        return {
            "name": self.name,
            "extent": list(self.extent),
            "boxes": [
                {"center": list(box.center), "half_size": list(box.half_size), "height": box.height}
                for box in self.boxes
            ],
            "height_field": None if self.height_field is None else [list(row) for row in self.height_field.heights],
            "start": list(self.start),
            "robot_radius": self.robot_radius,
        }

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Arena:
        """Rebuild an arena from ``to_dict``.

        Raises:
            ConfigurationError: A key is missing or a value does not have the shape that ``to_dict`` writes.
        """
        try:
            boxes = tuple(
                Box(
                    (float(b["center"][0]), float(b["center"][1])),
                    (float(b["half_size"][0]), float(b["half_size"][1])),
                    float(b["height"]),
                )
                for b in data["boxes"]
            )
            field = data["height_field"]
            x_min, x_max, y_min, y_max = (float(value) for value in data["extent"])
            start_x, start_y = (float(value) for value in data["start"])
            return Arena(
                name=str(data["name"]),
                extent=(x_min, x_max, y_min, y_max),
                boxes=boxes,
                height_field=None if field is None else HeightField(tuple(tuple(map(float, row)) for row in field)),
                start=(start_x, start_y),
                robot_radius=float(data["robot_radius"]),
            )
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise ConfigurationError(
                f"Not the description of an arena ({error!r}); expected Arena.to_dict()."
            ) from error

    def _edges(self, cells: int, radius: float | None) -> tuple[Any, Any, Any]:
        """Return the allowed steps between cells as numpy arrays: from, to (flat cell indices), length [m]."""
        centers = self.cell_centers(cells)
        free = ~self.occupancy(cells, radius)
        bounds = self.bounds(radius)
        along_x = free[:-1] & free[1:] & _open(centers[:-1], centers[1:], bounds)
        along_y = free[:, :-1] & free[:, 1:] & _open(centers[:, :-1], centers[:, 1:], bounds)
        square = along_x[:, :-1] & along_x[:, 1:] & along_y[:-1] & along_y[1:]
        index = torch.arange(cells * cells).reshape(cells, cells)
        dx, dy = (2 * half / cells for half in self.half_extent)
        steps = (
            (index[:-1][along_x], index[1:][along_x], dx),
            (index[:, :-1][along_y], index[:, 1:][along_y], dy),
            (index[:-1, :-1][square], index[1:, 1:][square], (dx**2 + dy**2) ** 0.5),
            (index[1:, :-1][square], index[:-1, 1:][square], (dx**2 + dy**2) ** 0.5),
        )
        rows = torch.cat([step[0] for step in steps]).numpy()
        columns = torch.cat([step[1] for step in steps]).numpy()
        lengths = torch.cat([torch.full((len(step[0]),), step[2], dtype=torch.float64) for step in steps]).numpy()
        return rows, columns, lengths


def _tidy(value: float) -> float:
    """Drop the rounding dust of a product, so that messages and manifests show 4.8 and not 4.800000000000001."""
    return round(value, 9)


def _open(begin: torch.Tensor, end: torch.Tensor, bounds: torch.Tensor) -> torch.Tensor:
    """Return where the axis-aligned segments ``begin`` to ``end`` (..., 2) cross no box of ``bounds`` (b, 4)."""
    left, right, bottom, top = bounds.unbind(1)
    low, high = torch.minimum(begin, end).unsqueeze(-2), torch.maximum(begin, end).unsqueeze(-2)
    crossed = (low[..., 0] < right - _TOUCH) & (high[..., 0] > left + _TOUCH)
    crossed &= (low[..., 1] < top - _TOUCH) & (high[..., 1] > bottom + _TOUCH)
    return ~crossed.any(-1)
