"""Pictures of a population, from recorded data alone; matplotlib's object interface, so no global state."""

from __future__ import annotations

import colorsys
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from myriad_lab.functional.statistics import bootstrap_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Rgb = tuple[float, float, float]
PALETTE = ("#3366cc", "#e8762c", "#2a9d5c", "#d1345b", "#8a4fc4", "#16a3b8", "#a8760f", "#e05fb0", "#6b8e23", "#5f6b7a")
"""Colours of up to ten heads; more get colours around the wheel."""
INK, FAINT, WALL = "#2b2f36", "#8b93a1", "#5b6472"
BINS = 200
"""Bins of the visitation maps along the longer edge."""


def head_colors(num_heads: int) -> list[Rgb]:
    """Return one colour per head, neighbours far apart on the wheel."""
    from matplotlib.colors import to_rgb

    if num_heads <= len(PALETTE):
        return [to_rgb(color) for color in PALETTE[:num_heads]]
    golden = 0.618033988749895
    return [colorsys.hls_to_rgb((i * golden) % 1.0, 0.42 + 0.14 * (i % 3 - 1), 0.7) for i in range(num_heads)]


def to_png(figure: Figure, dpi: int = 130) -> bytes:
    """Return the picture as a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, bbox_inches="tight", facecolor="white")
    return buffer.getvalue()


def draw_arena(
    axes: Axes, arena: Mapping[str, Any], goal: Sequence[float] | None = None, goal_radius: float = 0.0
) -> None:
    """Draw ground, walls, start and goal of an arena, ``Arena.to_dict()``, to scale [m]."""
    from matplotlib.patches import Circle, Rectangle

    x_min, x_max, y_min, y_max = arena["extent"]
    if arena.get("height_field"):
        heights = np.asarray(arena["height_field"])
        bounds = (x_min, x_max, y_min, y_max)
        axes.contour(heights, levels=8, extent=bounds, origin="lower", colors="#b9c0ca", linewidths=0.7, zorder=3)
    for box in arena["boxes"]:
        (x, y), (half_x, half_y) = box["center"], box["half_size"]
        axes.add_patch(
            Rectangle((x - half_x, y - half_y), 2 * half_x, 2 * half_y, facecolor=WALL, edgecolor="none", zorder=4)
        )
    axes.plot(*arena["start"], marker="o", markersize=6, markerfacecolor="white", markeredgecolor=INK, zorder=6)
    if goal is not None:
        axes.add_patch(Circle((goal[0], goal[1]), max(goal_radius, 0.0), fill=False, edgecolor="#c1121f", zorder=6))
        axes.plot(goal[0], goal[1], marker="*", markersize=12, color="#c1121f", markeredgecolor="white", zorder=7)
    axes.set_xlim(x_min, x_max)
    axes.set_ylim(y_min, y_max)
    axes.set_aspect("equal")


def visitation_map(
    visits: Sequence[np.ndarray],
    arena: Mapping[str, Any] | None,
    *,
    goal: Sequence[float] | None = None,
    goal_radius: float = 0.0,
    labels: tuple[str, str] = ("x [m]", "y [m]"),
    legend: bool = True,
) -> Figure:
    """Draw where all heads went: hue mixes the heads that visited a bin, strength is the logarithm of the visits.

    Args:
        visits: The first two features of each head, shape (rows, 2 or more) each.
        arena: ``Arena.to_dict()``, or ``None`` to fit the picture to the data.
        goal: Goal x, y [m].
        goal_radius: Distance that counts as there [m].
        labels: Axis labels.
        legend: Whether to name the colours, if there are at most 16 heads.
    """
    from matplotlib.figure import Figure

    extent = _extent(visits, arena)
    width, height = _figure_size(extent, 9.0)
    figure = Figure(figsize=(width + 1.2, height + 0.7))
    axes = figure.add_subplot()
    counts = np.stack([_histogram(rows, extent, BINS) for rows in visits])
    picture = _mix(counts, head_colors(len(visits)))
    axes.imshow(picture, extent=extent, origin="lower", interpolation="nearest", zorder=1)
    _frame(axes, arena, extent, goal, goal_radius)
    axes.set_xlabel(labels[0], color=INK)
    axes.set_ylabel(labels[1], color=INK)
    if legend and len(visits) <= 16:
        _legend(axes, len(visits))
    return figure


def head_maps(
    visits: Sequence[np.ndarray],
    arena: Mapping[str, Any] | None,
    *,
    heads: Sequence[int] | None = None,
    titles: Sequence[str] | None = None,
    goal: Sequence[float] | None = None,
    goal_radius: float = 0.0,
) -> Figure:
    """Draw one small map per head, each in the colour of the head; grey is where the others went.

    Args:
        visits: Features of each head, shape (rows, 2 or more) each.
        arena: ``Arena.to_dict()`` or ``None``.
        heads: Heads to draw; all by default.
        titles: One per drawn head.
        goal: Goal x, y [m].
        goal_radius: Distance that counts as there [m].
    """
    from matplotlib.figure import Figure

    heads = list(range(len(visits))) if heads is None else list(heads)
    extent = _extent(visits, arena)
    columns = min(len(heads), 4)
    rows = -(-len(heads) // columns)
    width, height = _figure_size(extent, 12.0 / max(columns, 2))
    figure = Figure(figsize=(columns * width, rows * (height + 0.3)))
    colors = head_colors(len(visits))
    bins = max(40, BINS // 2)
    counts = np.stack([_histogram(points, extent, bins) for points in visits])
    for place, head in enumerate(heads):
        axes = figure.add_subplot(rows, columns, place + 1)
        others = counts.sum(axis=0) - counts[head]
        axes.imshow(_mix(others[None], [(0.55, 0.58, 0.62)], 0.30), extent=extent, origin="lower", zorder=1)
        axes.imshow(_mix(counts[head][None], [colors[head]]), extent=extent, origin="lower", zorder=2)
        _frame(axes, arena, extent, goal, goal_radius)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_title(titles[place] if titles else f"head {head}", fontsize=9, color=INK, loc="left", pad=3)
    figure.subplots_adjust(wspace=0.06, hspace=0.22)
    return figure


def learning_curves(
    runs: Sequence[Sequence[Mapping[str, Any]]], keys: Mapping[str, str], axis: str = "env_steps"
) -> Figure | None:
    """Draw one panel per metric; several runs become a mean with a bootstrap 95 % band over seeds.

    Args:
        runs: Lines of ``metrics.jsonl`` of each run, one run per seed.
        keys: Metric -> title of its panel; metrics without a number in any run are left out.
        axis: Metric of the horizontal axis.

    Returns:
        The picture, or ``None`` if there is nothing to draw.
    """
    from matplotlib.figure import Figure

    curves = {key: [curve for run in runs if len((curve := read_curve(run, key, axis))[0])] for key in keys}
    drawn = [key for key in keys if curves[key]]
    if not drawn:
        return None
    columns = min(3, len(drawn))
    rows = -(-len(drawn) // columns)
    figure = Figure(figsize=(4.3 * columns, 2.7 * rows))
    for place, key in enumerate(drawn):
        axes = figure.add_subplot(rows, columns, place + 1)
        _curve_panel(axes, curves[key])
        axes.set_title(keys[key], fontsize=10, color=INK, loc="left")
        if place + columns >= len(drawn):
            axes.set_xlabel({"env_steps": "env steps", "wall_time": "wall-clock [s]"}.get(axis, axis), color=INK)
    figure.tight_layout()
    return figure


def read_curve(run: Sequence[Mapping[str, Any]], key: str, axis: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the points of a metric that are finite numbers, shape (points,) each."""
    points = [(row.get(axis), row.get(key)) for row in run]
    kept = [(x, y) for x, y in points if isinstance(x, int | float) and isinstance(y, int | float) and np.isfinite(y)]
    values = np.array(kept, dtype=np.float64).reshape(-1, 2)
    return values[:, 0], values[:, 1]


def band_over_runs(
    curves: Sequence[tuple[np.ndarray, np.ndarray]], points: int = 80
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return a common axis, and mean, low and high of the curves on it, where all of them are defined."""
    start, stop = max(x[0] for x, _ in curves), min(x[-1] for x, _ in curves)
    grid = np.linspace(start, stop, points)
    values = np.stack([np.interp(grid, x, y) for x, y in curves], axis=1)
    bands = np.array([bootstrap_interval(column, num_resamples=500) for column in values], dtype=np.float64)
    return grid, bands[:, 0], bands[:, 1], bands[:, 2]


def _curve_panel(axes: Axes, curves: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
    color = PALETTE[0]
    if len(curves) == 1:
        x, y = curves[0]
        smooth = _smooth(y)
        axes.plot(x, y, color=color, alpha=0.25 if len(y) > 30 else 0.0, linewidth=0.8)
        axes.plot(x, smooth, color=color, linewidth=1.8, marker="o" if len(y) == 1 else None)
    else:
        for x, y in curves:
            axes.plot(x, _smooth(y), color=color, alpha=0.25, linewidth=0.7)
        grid, mean, low, high = band_over_runs([(x, _smooth(y)) for x, y in curves])
        axes.fill_between(grid, low, high, color=color, alpha=0.18, linewidth=0)
        axes.plot(grid, mean, color=color, linewidth=1.8)
    _clean(axes)
    axes.grid(axis="y", color="#e6e9ee", linewidth=0.8)
    axes.ticklabel_format(axis="x", style="sci", scilimits=(-3, 4), useMathText=True)
    axes.set_axisbelow(True)


def _smooth(values: np.ndarray) -> np.ndarray:
    """Return a centred moving average over about a thirtieth of the curve; short curves stay as they are."""
    half = len(values) // 60
    if half == 0:
        return values
    sums = np.concatenate(([0.0], np.cumsum(values)))
    index = np.arange(len(values))
    low, high = np.maximum(index - half, 0), np.minimum(index + half + 1, len(values))
    return (sums[high] - sums[low]) / (high - low)


def _mix(counts: np.ndarray, colors: Sequence[Rgb], strength: float = 1.0) -> np.ndarray:
    """Return an RGBA picture (y, x, 4) of visit counts (heads, x, y)."""
    total = counts.sum(axis=0)
    share = counts / np.maximum(total, 1)
    picture = np.zeros((*total.shape, 4))
    picture[..., :3] = np.einsum("hxy,hc->xyc", share, np.asarray(colors))
    top = np.log1p(np.quantile(total[total > 0], 0.98)) if (total > 0).any() else 1.0
    # Even a single visit must be seen on white.
    alpha = 0.25 + 0.75 * np.minimum(np.log1p(total) / max(top, 1e-9), 1.0)
    picture[..., 3] = np.where(total > 0, alpha * strength, 0.0)
    return picture.transpose(1, 0, 2)


def _histogram(rows: np.ndarray, extent: Sequence[float], bins: int) -> np.ndarray:
    x_min, x_max, y_min, y_max = extent
    longer = max(x_max - x_min, y_max - y_min)
    shape = [max(1, round(bins * (x_max - x_min) / longer)), max(1, round(bins * (y_max - y_min) / longer))]
    edges = [(x_min, x_max), (y_min, y_max)]
    return np.histogram2d(rows[:, 0], rows[:, 1], bins=shape, range=edges)[0]


def _extent(visits: Sequence[np.ndarray], arena: Mapping[str, Any] | None) -> tuple[float, float, float, float]:
    if arena is not None:
        x_min, x_max, y_min, y_max = arena["extent"]
        return x_min, x_max, y_min, y_max
    points = np.concatenate([rows[:, :2] for rows in visits])
    low, high = points.min(axis=0), points.max(axis=0)
    margin = 0.05 * np.maximum(high - low, 1e-3)
    return float(low[0] - margin[0]), float(high[0] + margin[0]), float(low[1] - margin[1]), float(high[1] + margin[1])


def _figure_size(extent: Sequence[float], width: float) -> tuple[float, float]:
    ratio = (extent[3] - extent[2]) / (extent[1] - extent[0])
    return width, width * min(max(ratio, 0.3), 1.3)


def _frame(
    axes: Axes, arena: Mapping[str, Any] | None, extent: Sequence[float], goal: Sequence[float] | None, radius: float
) -> None:
    if arena is not None:
        draw_arena(axes, arena, goal, radius)
    else:
        axes.set_xlim(extent[0], extent[1])
        axes.set_ylim(extent[2], extent[3])
        axes.set_aspect("auto")
    _clean(axes)


def _clean(axes: Axes) -> None:
    axes.tick_params(colors=FAINT, labelsize=8, length=3)
    for spine in axes.spines.values():
        spine.set_color("#c9ced6")


def _legend(axes: Axes, num_heads: int) -> None:
    from matplotlib.patches import Patch

    patches = [Patch(facecolor=color, label=f"head {i}") for i, color in enumerate(head_colors(num_heads))]
    beside = {"loc": "upper left", "bbox_to_anchor": (1.01, 1.0)}
    axes.legend(handles=patches, frameon=False, fontsize=8, labelcolor=INK, **beside)
