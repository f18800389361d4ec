"""Scalars of an iteration on their way to the host."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch


class MeanLog:
    """Means of scalars that are not all there at every step; tensors stay on their device until ``read``."""

    def __init__(self) -> None:
        self._sums: dict[str, Any] = {}
        self._counts: dict[str, int] = {}

    def add(self, scalars: Mapping[str, Any]) -> None:
        """Take some scalars, numbers or tensors of one element."""
        for key, value in scalars.items():
            self._sums[key] = self._sums.get(key, 0.0) + value
            self._counts[key] = self._counts.get(key, 0) + 1

    def read(self) -> dict[str, float]:
        """Return the means of what was taken."""
        return {key: float(value) / self._counts[key] for key, value in self._sums.items()}


def to_floats(tensors: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """Bring all metrics to the host at once."""
    if not tensors:
        return {}
    device = next(iter(tensors.values())).device
    values = torch.stack([value.detach().to(device, torch.float32) for value in tensors.values()]).tolist()
    return dict(zip(tensors, values, strict=True))
