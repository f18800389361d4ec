"""Uncertainty of small samples: bootstrap intervals (arXiv 2108.13264)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from myriad_lab.errors import ConfigurationError

Values = Sequence[float] | np.ndarray | torch.Tensor


def bootstrap_interval(
    values: Values,
    confidence: float = 0.95,
    num_resamples: int = 10_000,
    seed: int = 0,
) -> tuple[float, float, float]:
    """Return the mean with its percentile-bootstrap interval: (mean, low, high).

    One value has no spread to measure, so its interval is the value itself.

    Args:
        values: One number for each independent run or episode.
        confidence: Share of the resampled means inside the interval, between 0 and 1.
        num_resamples: Number of resamples.
        seed: Seed of the resampling; the same seed gives the same interval.

    Raises:
        ConfigurationError: No values, values that are not finite, a confidence outside (0, 1), no resample.
    """
    data = _vector(values)
    if not 0.0 < confidence < 1.0:
        raise ConfigurationError(f"confidence={confidence} must be between 0 and 1, e.g. 0.95.")
    if num_resamples < 1:
        raise ConfigurationError(f"num_resamples={num_resamples} must be at least 1.")
    generator = np.random.default_rng(seed)
    parts = []
    rows = max(1, 4_000_000 // len(data))  # Bounds the memory at 32 MB.
    for start in range(0, num_resamples, rows):
        drawn = generator.integers(len(data), size=(min(rows, num_resamples - start), len(data)))
        parts.append(data[drawn].mean(axis=1))
    tail = 0.5 * (1.0 - confidence)
    low, high = np.quantile(np.concatenate(parts), [tail, 1.0 - tail])
    return float(data.mean()), float(low), float(high)


def _vector(values: Values) -> np.ndarray:
    plain = values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else values
    data = np.asarray(plain, dtype=np.float64).reshape(-1)
    if len(data) == 0:
        raise ConfigurationError("no values to summarise; expected at least one.")
    if not np.isfinite(data).all():
        raise ConfigurationError(f"values must be finite, got {data[~np.isfinite(data)][0]}; leave failed runs out.")
    return data
