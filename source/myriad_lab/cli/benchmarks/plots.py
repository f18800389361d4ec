"""Plots of recorded lines: time against size, the measured one beside floor and peer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from myriad_lab.cli.benchmarks.line import BenchmarkLine
from myriad_lab.evaluation.plots import PALETTE
from myriad_lab.portfolio.atomic import write_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_STYLES = {"measured_s": ("-", "o"), "floor_s": (":", None), "peer_s": ("--", "x")}
"""Field -> line style and marker."""


def plot(content: Mapping[str, Any], folder: Path) -> list[Path]:
    """Draw one figure per benchmark, with a panel for each kind of work, and return the files.

    Args:
        content: What ``record.read_record`` returns.
        folder: Where the pictures go, ``BENCHMARK_DEVICE.png``.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from myriad_lab.evaluation.plots import to_png

    by_benchmark: dict[str, list[BenchmarkLine]] = {}
    for result in content["results"]:
        by_benchmark.setdefault(result["benchmark"], []).extend(line for line in result["lines"] if line.x)
    paths = []
    for benchmark, lines in by_benchmark.items():
        panels = _panels(lines)
        if not panels:
            continue
        figure = Figure(figsize=(5.2 * len(panels), 4.6), layout="constrained")
        FigureCanvasAgg(figure)
        for axes, (title, series) in zip(
            figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
        ):
            _draw(axes, title, series)
        machine = content["machine"]
        where = machine["cpu"] if content["device"] == "cpu" else machine["gpu"]
        figure.suptitle(f"{benchmark} on {where}, torch {machine['torch']}", fontsize=10)
        path = folder / f"{benchmark}_{content['device'].partition(':')[0]}.png"
        write_bytes(path, to_png(figure, dpi=100))
        paths.append(path)
    return paths


def _panels(lines: Sequence[BenchmarkLine]) -> dict[str, dict[str, list[BenchmarkLine]]]:
    """Group lines by what stands before the comma of their name, and within by the rest of it."""
    panels: dict[str, dict[str, list[BenchmarkLine]]] = {}
    for line in lines:
        title, _, series = line.name.partition(", ")
        panels.setdefault(title, {}).setdefault(series or title, []).append(line)
    return panels


def _draw(axes: Axes, title: str, series: Mapping[str, Sequence[BenchmarkLine]]) -> None:
    from matplotlib.lines import Line2D

    drawn: dict[str, Any] = {}
    for number, (name, lines) in enumerate(series.items()):
        ordered = sorted(lines, key=lambda line: line.x or 0.0)
        for field, (style, marker) in _STYLES.items():
            points = [(line.x, 1000 * seconds) for line in ordered if (seconds := getattr(line, field)) is not None]
            if not points:
                continue
            colour = PALETTE[number % len(PALETTE)]
            # floor and peer of one size alone would be dots nobody can tell apart from the measurement
            shown = marker or ("_" if len(points) == 1 else None)
            axes.plot(*zip(*points, strict=True), style, marker=shown, markersize=4, color=colour, linewidth=1.3)
            drawn[field.removesuffix("_s")] = style, marker
        axes.plot([], [], color=PALETTE[number % len(PALETTE)], label=name)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    if high < 10.0 * low:  # or hardly a tick would have a label
        axes.set_ylim(low / 2.0, 2.0 * high)
    sizes = sorted({line.x for lines in series.values() for line in lines if line.x})
    axes.set_xticks(sizes, [f"{size:g}" for size in sizes], fontsize=8)
    for formatted in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        formatted(_short)
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(next(iter(series.values()))[0].x_name)
    axes.set_ylabel("time [ms]")
    axes.grid(alpha=0.3)
    kinds = [
        Line2D([], [], color="black", linestyle=style, marker=marker, markersize=4, label=name)
        for name, (style, marker) in drawn.items()
    ]
    handles = [*axes.get_legend_handles_labels()[0], *kinds]
    axes.legend(handles=handles, fontsize=7)


def _short(value: float, _: float) -> str:
    """Return the label of a tick [ms]: plain numbers, and between powers of ten those that find room."""
    text = f"{value:g}"
    return text if text.strip("0.")[:1] in ("1", "2", "5") else ""
