"""Extensions observe a runner through callbacks instead of branching inside it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from myriad_lab.algorithms.algorithm import Step
from myriad_lab.monitor.nan_guard import NanGuard


class Callback:
    """Base class; override what is needed, state stays in the object. Called in the order of the list."""

    def on_start(self, runner: Any) -> None:
        """Run once at the start of ``learn``, before the first env step."""

    def on_step(self, runner: Any, step: Step) -> None:
        """Run after each env step."""

    def on_iteration(self, runner: Any, metrics: dict[str, float]) -> None:
        """Run after each iteration; entries added to ``metrics`` are logged."""

    def on_checkpoint(self, runner: Any, path: Path) -> None:
        """Run after a bundle was written to ``path``."""

    def on_stop(self, runner: Any) -> None:
        """Run once at the end of ``learn``, also after an error."""


class CallbackList(Callback):
    """Several callbacks as one."""

    def __init__(self, callbacks: Iterable[Callback] = ()) -> None:
        self.callbacks = list(callbacks)

    def on_start(self, runner: Any) -> None:
        """Forward."""
        for callback in self.callbacks:
            callback.on_start(runner)

    def on_step(self, runner: Any, step: Step) -> None:
        """Forward."""
        for callback in self.callbacks:
            callback.on_step(runner, step)

    def on_iteration(self, runner: Any, metrics: dict[str, float]) -> None:
        """Forward."""
        for callback in self.callbacks:
            callback.on_iteration(runner, metrics)

    def on_checkpoint(self, runner: Any, path: Path) -> None:
        """Forward."""
        for callback in self.callbacks:
            callback.on_checkpoint(runner, path)

    def on_stop(self, runner: Any) -> None:
        """Forward."""
        for callback in self.callbacks:
            callback.on_stop(runner)


class NanGuardCallback(Callback):
    """Stops the run at the first value that is not finite; ``interval`` spaces the checks out, in env steps."""

    def __init__(self, interval: int = 1) -> None:
        self.interval = interval
        self._guard: NanGuard | None = None
        self._steps = 0

    def on_start(self, runner: Any) -> None:
        """Learn the names of the observation terms."""
        self._guard = NanGuard(runner.env.spec.observations, runner.env.num_envs, runner.num_policies)

    def on_step(self, runner: Any, step: Step) -> None:
        """Check one env step.

        Raises:
            NanGuardError: If a valid row holds NaN or infinity.
        """
        self._steps += 1
        if self._guard is not None and self._steps % self.interval == 0:
            self._guard.envs_per_policy = runner.env.num_envs // runner.num_policies  # heads may have been dropped
            observations = {name: step.next_obs[name] for name in step.next_obs.keys()}  # noqa: SIM118
            self._guard.check(step.actions, step.rewards, observations, step.valid)
