"""What every algorithm offers to a runner."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from tensordict import TensorDict


@dataclass
class Step:
    """What one env step told the algorithm; every tensor is on the algorithm's device."""

    obs: TensorDict
    """Observation before the action, groups ``(num_envs, size)``."""
    actions: torch.Tensor
    """Actions in [-1, 1], shape (num_envs, num_actions)."""
    rewards: torch.Tensor
    """Rewards, shape (num_envs,)."""
    terminated: torch.Tensor
    """True ends, bool (num_envs,)."""
    time_outs: torch.Tensor
    """Ends by the time limit, bool (num_envs,)."""
    next_obs: TensorDict
    """Observation after the action; after a reset, the first one of the new episode."""
    final_obs: TensorDict | None
    """True last observation, valid on rows that ended; ``None`` where the env cannot give it."""
    valid: torch.Tensor
    """Rows that may enter a buffer (physics did not diverge), bool (num_envs,)."""


class Algorithm(Protocol):
    """Acts, observes and updates; knows no env, no logger and no path."""

    def act(self, obs: TensorDict) -> torch.Tensor:
        """Return exploratory actions in [-1, 1], shape (num_envs, num_actions)."""
        ...

    def observe(self, step: Step) -> None:
        """Store one env step."""
        ...

    def update(self) -> dict[str, torch.Tensor]:
        """Learn from what was stored; returns scalar tensors, with no host synchronisation."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return networks, optimisers, counters and generators."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        ...
