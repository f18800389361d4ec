"""Uncertainty of small samples: bootstrap intervals, interquartile means, paired differences (arXiv 2108.13264)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch

from myriad_lab.errors import ConfigurationError

Values = Sequence[float] | np.ndarray | torch.Tensor


def iqm(values: Values) -> float:
    """Return the interquartile mean: the mean of the middle half, with a part of the border values where n % 4 > 0.

    Raises:
        ConfigurationError: No values, or values that are not finite.
    """
    return float(_iqm_rows(np.sort(_vector(values))[None])[0])


def bootstrap_interval(
    values: Values,
    confidence: float = 0.95,
    num_resamples: int = 10_000,
    seed: int = 0,
    statistic: Literal["mean", "iqm"] = "mean",
) -> tuple[float, float, float]:
    """Return the statistic with its percentile-bootstrap interval: (value, low, high).

    One value has no spread to measure, so its interval is the value itself.

    Args:
        values: One number for each independent run or episode.
        confidence: Share of the resampled statistics inside the interval, between 0 and 1.
        num_resamples: Number of resamples.
        seed: Seed of the resampling; the same seed gives the same interval.
        statistic: ``mean`` or ``iqm``.

    Raises:
        ConfigurationError: No values, values that are not finite, a confidence outside (0, 1), no resample.
    """
    data = _vector(values)
    if not 0.0 < confidence < 1.0:
        raise ConfigurationError(f"confidence={confidence} must be between 0 and 1, e.g. 0.95.")
    if num_resamples < 1:
        raise ConfigurationError(f"num_resamples={num_resamples} must be at least 1.")
    if statistic not in ("mean", "iqm"):
        raise ConfigurationError(f"statistic={statistic!r} is unknown; use 'mean' or 'iqm'.")
    generator = np.random.default_rng(seed)
    parts = []
    rows = max(1, 4_000_000 // len(data))  # Bounds the memory at 32 MB.
    for start in range(0, num_resamples, rows):
        drawn = generator.integers(len(data), size=(min(rows, num_resamples - start), len(data)))
        sample = data[drawn]
        parts.append(sample.mean(axis=1) if statistic == "mean" else _iqm_rows(np.sort(sample, axis=1)))
    tail = 0.5 * (1.0 - confidence)
    low, high = np.quantile(np.concatenate(parts), [tail, 1.0 - tail])
    value = float(data.mean()) if statistic == "mean" else iqm(data)
    return value, float(low), float(high)


def paired_difference(
    first: Values, second: Values, confidence: float = 0.95, num_resamples: int = 10_000, seed: int = 0
) -> tuple[float, float, float]:
    """Return the mean of ``first - second`` with its interval, the pairs (e.g. equal seeds) resampled together.

    Raises:
        ConfigurationError: Different numbers of values, or as in :func:`bootstrap_interval`.
    """
    left, right = _vector(first), _vector(second)
    if len(left) != len(right):
        raise ConfigurationError(f"paired samples must have equal length, got {len(left)} and {len(right)} values.")
    return bootstrap_interval(left - right, confidence, num_resamples, seed)


def _vector(values: Values) -> np.ndarray:
    plain = values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else values
    data = np.asarray(plain, dtype=np.float64).reshape(-1)
    if len(data) == 0:
        raise ConfigurationError("no values to summarise; expected at least one.")
    if not np.isfinite(data).all():
        raise ConfigurationError(f"values must be finite, got {data[~np.isfinite(data)][0]}; leave failed runs out.")
    return data


def _iqm_rows(rows: np.ndarray) -> np.ndarray:
    """Return the interquartile mean of each sorted row (r, n): ranks between n/4 and 3n/4, fractions counted."""
    count = rows.shape[1]
    ranks = np.arange(count)
    weights = np.clip(np.minimum(ranks + 1, 0.75 * count) - np.maximum(ranks, 0.25 * count), 0.0, None)
    return rows @ weights / weights.sum()
