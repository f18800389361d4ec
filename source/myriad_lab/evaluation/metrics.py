"""Numbers from recorded episodes: success, return, length and coverage, per head and for the portfolio."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from myriad_lab.errors import ConfigurationError
from myriad_lab.functional.coverage import coverage as share_of_reachable
from myriad_lab.functional.coverage import visited_cells
from myriad_lab.functional.statistics import bootstrap_interval
from myriad_lab.portfolio.recording import EpisodeRecord

Interval = dict[str, float | int]
"""``mean``, ``low``, ``high`` (bootstrap, 95 %) and ``n``, the number of values."""


def interval(values: Sequence[float] | np.ndarray, seed: int = 0) -> Interval:
    """Return mean and bootstrap 95 % interval of values, any shape."""
    flat = np.asarray(values, dtype=np.float64).reshape(-1)
    mean, low, high = bootstrap_interval(flat, num_resamples=2000, seed=seed)
    return {"mean": float(mean), "low": float(low), "high": float(high), "n": int(flat.size)}


def episode_metrics(record: EpisodeRecord, seed: int = 0) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return success, return and length with intervals over episodes, for the portfolio and for each head.

    ``success`` is ``None`` for tasks without a goal; ``diverged`` is the share of episodes that physics cut off.
    """
    columns = {"return": record.returns, "length": record.lengths}
    if record.success is not None:
        columns["success"] = record.success.astype(np.float64)
    portfolio: dict[str, Any] = {name: interval(values, seed) for name, values in columns.items()}
    portfolio["diverged"] = float(record.diverged.mean())
    heads: list[dict[str, Any]] = [
        {name: interval(values[head], seed) for name, values in columns.items()}
        | {"diverged": float(record.diverged[head].mean())}
        for head in range(record.num_policies)
    ]
    for row in (portfolio, *heads):
        row.setdefault("success", None)
    return portfolio, heads


def coverage(visits: Sequence[np.ndarray], extent: Sequence[float], reachable: np.ndarray) -> tuple[float, list[float]]:
    """Return the share of the reachable cells that all heads together, and each head alone, visited.

    Args:
        visits: Positions of each head [m], shape (rows, 2 or more) each.
        extent: x_min, x_max, y_min, y_max [m].
        reachable: Cells that a flood fill from the start reaches, bool (cells, cells), x first.

    Raises:
        ConfigurationError: If no cell is reachable or the grid is not square.
    """
    if reachable.ndim != 2 or reachable.shape[0] != reachable.shape[1] or not reachable.any():
        raise ConfigurationError(f"reachable {reachable.shape} with {reachable.sum()} cells; expected a square grid")
    grids = torch.stack([visited_cells(torch.from_numpy(rows), extent, len(reachable)) for rows in visits])
    mask = torch.from_numpy(reachable)
    return float(share_of_reachable(grids.any(dim=0), mask)), share_of_reachable(grids, mask).tolist()


def choose_best_head(heads: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the best head by success, then return, where the task has them, else by coverage, else by entropy.

    Raises:
        ConfigurationError: If the heads have none of these.
    """
    for name in ("success", "return", "coverage", "entropy"):
        values = [_value(head.get(name)) for head in heads]
        # A metric that is the same for all heads cannot choose between them.
        if any(value is None for value in values) or (len(set(values)) == 1 and len(heads) > 1 and name != "entropy"):
            continue
        ties = [_value(head.get("return")) or 0.0 for head in heads]
        best = max(range(len(heads)), key=lambda i: (values[i], ties[i]))
        return {"head": best, "metric": name, "value": values[best]}
    if any(head.get("return") is not None for head in heads):
        return {"head": 0, "metric": "return", "value": _value(heads[0]["return"])}
    raise ConfigurationError("the heads have neither success, return, coverage nor entropy to choose by")


def held_out_best(record: EpisodeRecord, seed: int = 0) -> dict[str, Any]:
    """Choose the best head on every other episode and measure it on the rest, so that the choice does not flatter it.

    Returns:
        ``head``, and its ``return`` and ``success`` with intervals over the episodes it was not chosen by.
    """
    returns, success = record.returns, record.success
    if record.num_episodes < 2:
        raise ConfigurationError(f"{record.num_episodes} episode per head; two at least are needed to hold one out")
    chosen_by = returns[:, ::2].mean(axis=1)
    order = (success[:, ::2].mean(axis=1), chosen_by) if success is not None else (chosen_by, chosen_by)
    head = max(range(record.num_policies), key=lambda i: (order[0][i], order[1][i]))
    result: dict[str, Any] = {"head": head, "return": interval(returns[head, 1::2], seed), "success": None}
    if success is not None:
        result["success"] = interval(success[head, 1::2], seed)
    return result


def _value(entry: Any) -> float | None:
    return entry["mean"] if isinstance(entry, Mapping) else entry
