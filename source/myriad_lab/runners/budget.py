"""Budgets: callbacks that end a run once it has used its time or its samples."""

from __future__ import annotations

import time
from typing import Any

from myriad_lab.errors import ConfigurationError
from myriad_lab.runners.callbacks import Callback


class WallClockBudget(Callback):
    """Stop after ``max_seconds`` of wall-clock, counted from ``on_start``; the iteration in progress is finished.

    Args:
        max_seconds: Time the run may take [s].

    Raises:
        ConfigurationError: Where the budget is not positive.
    """

    def __init__(self, max_seconds: float) -> None:
        if not max_seconds > 0:
            raise ConfigurationError(f"max_seconds={max_seconds} must be positive: give the seconds a run may take.")
        self.max_seconds = max_seconds
        self._deadline = float("inf")

    def on_start(self, runner: Any) -> None:
        """Start the clock."""
        self._deadline = time.monotonic() + self.max_seconds

    def on_iteration(self, runner: Any, metrics: dict[str, float]) -> None:
        """Ask the runner to stop once the time is used."""
        if time.monotonic() >= self._deadline:
            runner.request_stop()


class EnvStepBudget(Callback):
    """Stop after ``max_env_steps`` env steps, summed over all envs since the start of training (resumed or not).

    Args:
        max_env_steps: Env steps the run may take.

    Raises:
        ConfigurationError: Where the budget is not positive.
    """

    def __init__(self, max_env_steps: int) -> None:
        if not max_env_steps > 0:
            raise ConfigurationError(
                f"max_env_steps={max_env_steps} must be positive: give the env steps a run may take."
            )
        self.max_env_steps = max_env_steps

    def on_iteration(self, runner: Any, metrics: dict[str, float]) -> None:
        """Ask the runner to stop once the samples are used."""
        if runner.env_steps >= self.max_env_steps:
            runner.request_stop()
