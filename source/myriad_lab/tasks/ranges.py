"""Ranges of the numbers in the configurations of tasks."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from myriad_lab.errors import ConfigurationError


def check_numbers(
    cfg: Any, *, counts: Iterable[str] = (), positive: Iterable[str] = (), not_negative: Iterable[str] = ()
) -> None:
    """Check fields of a task's configuration by name: counts of at least 1, and finite numbers.

    Raises:
        ConfigurationError: Naming the first one out of its range, and the range.
    """
    for names, low, expected in (
        (counts, 1, "a whole number of at least 1"),
        (positive, math.ulp(0.0), "a positive number"),
        (not_negative, 0.0, "a number of at least 0"),
    ):
        for name in names:
            value = getattr(cfg, name)
            if not low <= value < math.inf:
                raise ConfigurationError(f"env.{name}={value}; expected {expected}")
