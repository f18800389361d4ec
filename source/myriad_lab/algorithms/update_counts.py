"""The ratios of env steps, critic updates and policy updates, held by counting."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class UpdateCounts:
    """Counts env steps and updates, and says how many updates they entitle to (PQL, arXiv 2307.12983).

    An env step is here one of all envs together, whatever their number.

    Args:
        value_updates_per_step: Critic updates per env step of all envs.
        policy_delay: Critic updates per policy update.
        warmup_steps: Env steps before the first critic update.
        critic_warmup: Critic updates before the first policy update.
    """

    def __init__(
        self, value_updates_per_step: float, policy_delay: int, warmup_steps: int, critic_warmup: int = 0
    ) -> None:
        self.value_updates_per_step, self.policy_delay = value_updates_per_step, policy_delay
        self.warmup_steps, self.critic_warmup = warmup_steps, critic_warmup
        self.steps, self.value_updates, self.policy_updates = 0, 0, 0
        # env steps that earn no critic update, and critic updates that earn no policy update
        self.idle_steps, self.idle_updates = float(warmup_steps), critic_warmup

    def earned_value_updates(self) -> int:
        """Return how many critic updates the observed steps entitle to, from the start."""
        return int(max(0, self.steps - self.idle_steps) * self.value_updates_per_step + 1e-9)

    def paid_steps(self, value_updates: int) -> int:
        """Return the env step up to which ``value_updates`` critic updates are those earned."""
        return int(self.idle_steps + value_updates / self.value_updates_per_step + 1e-9)

    def policy_update_is_due(self) -> bool:
        """Return whether the critic updates done entitle to one more policy update."""
        return self.due_policy_updates(self.value_updates) > self.policy_updates

    def due_policy_updates(self, value_updates: int) -> int:
        """Return how many policy updates ``value_updates`` critic updates entitle to, from the start."""
        return max(0, value_updates - self.idle_updates) // self.policy_delay

    def warm_up_again(self) -> None:
        """Collect ``warmup_steps`` before updates are earned again; those still owed are forgotten."""
        paid = self.idle_updates + self.policy_updates * self.policy_delay
        self._count_from(self.steps + self.warmup_steps, max(self.value_updates, paid))

    def state_dict(self) -> dict[str, Any]:
        """Return the counts and the ratios they were made with."""
        return {
            "counters": [self.steps, self.value_updates, self.policy_updates, self.idle_updates],
            "idle_steps": self.idle_steps,
            "ratios": self._ratios(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned; where the ratios are others, nothing of the past is made up for."""
        self.steps, self.value_updates, self.policy_updates, self.idle_updates = (int(x) for x in state["counters"])
        self.idle_steps = float(state["idle_steps"])
        if state["ratios"] != self._ratios():
            rate, delay, _ = state["ratios"]
            paid = self.idle_updates + self.policy_updates * delay if self.policy_updates else self.critic_warmup
            since = max(self.steps, self.idle_steps + self.value_updates / rate)
            self._count_from(since, max(self.value_updates, paid))

    def _ratios(self) -> list[Any]:
        return [self.value_updates_per_step, self.policy_delay, self.critic_warmup]

    def _count_from(self, step: float, value_update: int) -> None:
        """Let what comes after an env step earn critic updates, and after a critic update policy updates."""
        self.idle_steps = step - self.value_updates / self.value_updates_per_step
        self.idle_updates = value_update - self.policy_updates * self.policy_delay
