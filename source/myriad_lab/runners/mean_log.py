"""Means of scalars over an iteration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


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
