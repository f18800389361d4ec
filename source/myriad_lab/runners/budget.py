"""Budgets: callbacks that end a run once it has used its time or its samples."""

from __future__ import annotations

from typing import Any

from myriad_lab.errors import ConfigurationError
from myriad_lab.runners.callbacks import Callback


class WallClockBudget(Callback):
    """Stop after ``max_seconds`` of training, summed over its iterations since the start of training (resumed or not).

    Args:
        max_seconds: Wall-clock time the run may train [s].

    Raises:
        ConfigurationError: Where the budget is not positive.
    """

    def __init__(self, max_seconds: float) -> None:
        if not max_seconds > 0:
            raise ConfigurationError(f"max_seconds={max_seconds} must be positive: give the seconds a run may take.")
        self.max_seconds = max_seconds

    def on_iteration(self, runner: Any, metrics: dict[str, float]) -> None:
        """Ask the runner to stop once the time is used."""
        if runner.wall_time >= self.max_seconds:
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
