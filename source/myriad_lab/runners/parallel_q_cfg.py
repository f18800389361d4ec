"""Settings of the loop around parallel Q-learning."""

from __future__ import annotations

from dataclasses import dataclass, field

from myriad_lab.errors import ConfigurationError, nearest

MODES = ("interleaved", "parallel")


@dataclass
class ParallelQRunnerCfg:
    """Settings of the loop around PQL."""

    mode: str = "interleaved"
    """``interleaved`` (one process, repeatable) or ``parallel`` (collector, value and policy learner at once)."""
    num_steps_per_iteration: int = 100
    """Env steps of all envs per iteration: the interval of logs, callbacks and checkpoints."""
    max_lead: int = 8
    """Env steps the collector, and policy updates the value learner, may run ahead in parallel mode."""
    value_device: str | None = None
    """Device of the value learner in parallel mode; the collector's by default."""
    policy_device: str | None = None
    """Device of the policy learner in parallel mode; the collector's by default."""
    learner_threads: int = 1
    """CPU threads of each learner process; in interleaved mode those of the updates, at least."""
    save_interval: int = 50
    """Iterations between checkpoints, 0 for one at the end alone."""
    keep_checkpoints: int = 3
    """Checkpoints kept, beside the best one."""
    save_replay: bool = False
    """Whether checkpoints hold the replay memory; without it, a resumed run first collects ``warmup_steps`` again."""
    nan_guard_interval: int = 1
    """Env steps between two checks for values that are not finite; 0 switches them off."""
    best_metric: str = "Train/mean_reward"
    """Logged metric, larger is better, that decides which checkpoint is ``best``."""
    halving_iterations: list[int] = field(default_factory=list)
    """Successive halving: after each of these iterations the better half of the heads goes on with all envs, once every
    head has finished an episode."""

    @property
    def process_threads(self) -> int:
        """CPU threads of the learner processes, which are two in parallel mode."""
        return 2 * self.learner_threads if self.mode == "parallel" else 0

    def validate(self) -> None:
        """Raise ``ConfigurationError`` where a value is out of range."""
        if self.mode not in MODES:
            raise ConfigurationError(f"mode={self.mode!r} is unknown. {nearest(self.mode, MODES)}")
        for name in ("value_device", "policy_device"):
            if self.mode == "interleaved" and getattr(self, name) is not None:
                raise ConfigurationError(
                    f"{name}={getattr(self, name)!r} belongs to mode=parallel; in mode=interleaved all happens on the "
                    "device of the run: leave it out, or choose that mode."
                )
        least = dict.fromkeys(("num_steps_per_iteration", "max_lead", "learner_threads", "keep_checkpoints"), 1)
        for name, lowest in (least | {"save_interval": 0, "nan_guard_interval": 0}).items():
            if getattr(self, name) < lowest:
                raise ConfigurationError(f"{name}={getattr(self, name)} must be at least {lowest}.")
        if self.learner_threads > 1024:
            raise ConfigurationError(
                f"learner_threads={self.learner_threads} must be at most 1024; more than there are cores gain nothing."
            )
        ascending = sorted({max(1, iteration) for iteration in self.halving_iterations})
        if self.halving_iterations != ascending:
            raise ConfigurationError(
                f"halving_iterations={self.halving_iterations} must be ascending iterations of at least 1, e.g. "
                f"{ascending}."
            )

    def check_ranks(self) -> None:
        """Raise ``ConfigurationError`` where a setting is not for several ranks."""
        only = (
            ("mode", "interleaved", "each rank collects and learns in turns"),
            ("save_replay", False, "each rank has a replay memory of its own"),
            ("halving_iterations", [], "heads stay on their rank"),
        )
        for name, value, why in only:
            if getattr(self, name) != value:
                raise ConfigurationError(
                    f"--distributed has no agent.runner.{name}={getattr(self, name)}: {why}; set it to {value}"
                )
