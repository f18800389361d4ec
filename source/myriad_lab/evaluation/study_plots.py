"""Learning curves of a study, with intervals over seeds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from myriad_lab.evaluation.study import StudyCfg
from myriad_lab.functional.statistics import bootstrap_interval

AXES = {"env_steps": "env steps", "wall_time": "wall-clock [s]"}
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999933")
"""Colours that people with colour blindness can tell apart (Okabe and Ito), in the order of the variants."""
_DASHES = ("solid", "dashed", "dotted", "dashdot")
_MAX_INSIDE = 6
"""Entries of a legend inside the last panel; a longer one stands below."""


def curve_band(
    curves: Sequence[Sequence[Mapping[str, float]]],
    axis: str,
    key: str,
    num_points: int = 50,
    offsets: Sequence[float] | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray] | None:
    """Return grid, mean, low and high of several curves on their common range.

    Args:
        curves: One per seed, each a list of points.
        axis: Key of the horizontal axis.
        key: Key of the value.
        num_points: Points of the grid.
        offsets: Added to the horizontal axis of each curve, e.g. the cost of pre-training.

    Returns:
        Four arrays ``(num_points,)``, or ``None`` where the curves share no range.
    """
    shifts = offsets if offsets is not None else [0.0] * len(curves)
    tracks = []
    for curve, shift in zip(curves, shifts, strict=True):
        points = [(p[axis] + shift, p[key]) for p in curve if p.get(key) is not None and p.get(axis) is not None]
        if points:
            tracks.append(np.asarray(sorted(points), dtype=float))
    if not tracks:
        return None
    low, high = max(t[0, 0] for t in tracks), min(t[-1, 0] for t in tracks)
    if not low <= high:
        return None
    grid = np.linspace(low, high, num_points)
    values = np.stack([np.interp(grid, t[:, 0], t[:, 1]) for t in tracks])
    band = np.asarray([bootstrap_interval(column, num_resamples=1000) for column in values.T], dtype=float)
    return grid, band[:, 0], band[:, 1], band[:, 2]


def plot_curves(study: StudyCfg, results: Iterable[Mapping[str, Any]], folder: Path) -> list[str]:
    """Draw one figure per curve and axis, twice where pre-training has a cost to include; return the file names."""
    done = [r for r in results if r["status"] == "done" and r.get("curve") and not r.get("is_prerequisite")]
    pretrained = any(r.get("pretrain", {}).get("env_steps") for r in done)
    names = []
    for key, label in study.curves.items():
        for axis in study.curve_axes:
            for included in (False, True) if pretrained else (False,):
                name = f"{_slug(key)}_{axis}{'_with_pretraining' if included else ''}.png"
                if _figure(study, done, key, label, axis, included, folder / name):
                    names.append(name)
    return names


def _figure(
    study: StudyCfg,
    results: Sequence[Mapping[str, Any]],
    key: str,
    label: str,
    axis: str,
    included: bool,
    path: Path,
) -> bool:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    cases = [case for case in study.cases if any(r["case"] == case for r in results)]
    if not cases:
        return False
    figure = Figure(figsize=(1.0 + 5.0 * len(cases), 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    tasks = {study.cases[case].flags.get("task") for case in cases}  # returns of different ones are no neighbours
    panels = figure.subplots(1, len(cases), squeeze=False, sharey=len(tasks) == 1)[0]
    drawn = False
    for panel, case in zip(panels, cases, strict=True):
        for number, (name, variant) in enumerate(study.variants.items()):
            cells = [r for r in results if (r["variant"], r["case"]) == (name, case)]
            offsets = [r.get("pretrain", {}).get(axis, 0.0) if included else 0.0 for r in cells]
            band = curve_band([r["curve"] for r in cells], axis, key, offsets=offsets)
            if band is None:
                continue
            grid, mean, low, high = band
            colour, dashes = line_style(number)
            panel.plot(
                grid,
                mean,
                color=colour,
                linestyle=dashes,
                label=f"{variant.label or name} ({len(cells)})",
                linewidth=1.6,
                marker="o",
                markevery=[0, -1],
                markersize=3,
            )
            panel.fill_between(grid, low, high, color=colour, alpha=0.2, linewidth=0)
            drawn = True
        panel.set_title(study.cases[case].label or case or study.title, fontsize=10)
        panel.set_xlabel(AXES[axis] + (", pre-training included" if included else ""))
        panel.grid(alpha=0.3)
    if drawn:
        panels[0].set_ylabel(label)
        handles = {
            text: line for panel in panels for line, text in zip(*panel.get_legend_handles_labels(), strict=True)
        }
        look = {"fontsize": 8, "title": "variant (seeds)", "title_fontsize": 8, "handlelength": 3.5}
        if len(handles) <= _MAX_INSIDE:
            panels[-1].legend(handles.values(), handles.keys(), **look)
        else:
            columns = len(cases)
            figure.set_figheight(4.5 + 0.18 * math.ceil(len(handles) / columns))
            figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=columns, **look)
        figure.savefig(path, dpi=130)
    return drawn


def line_style(number: int) -> tuple[str, str]:
    """Return colour and dashes of the variant of this number; 32 of them differ."""
    return COLOURS[number % len(COLOURS)], _DASHES[number // len(COLOURS) % len(_DASHES)]


def _slug(key: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in key).strip("_").lower()
