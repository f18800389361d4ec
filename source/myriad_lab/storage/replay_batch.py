"""What a replay memory hands out: a minibatch of windows for the critics of every head."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch


@dataclass
class ReplayBatch:
    """Windows of one to n steps, ``(num_policies, batch, ...)``; row i is a minibatch for the critics of head i."""

    obs: dict[str, torch.Tensor]
    """Observation at the start of the window, group -> (num_policies, batch, size)."""
    actions: torch.Tensor
    """First action of the window, (num_policies, batch, num_actions)."""
    rewards: torch.Tensor
    """Sum of ``gamma^j r_j`` over the window, (num_policies, batch)."""
    next_obs: dict[str, torch.Tensor]
    """Observation after the window: the true last one where the episode ended, never a reset observation."""
    discounts: torch.Tensor
    """``gamma^k`` with k the effective length, 0 after a true end, (num_policies, batch)."""
    steps: torch.Tensor
    """Effective length k of the window, int64 (num_policies, batch)."""
    weights: torch.Tensor
    """1 for usable rows, 0 for rows whose step was invalid or whose final observation is gone."""
    env_ids: torch.Tensor
    """Env of each row, int64 (num_policies, batch), by which the head that holds it is known."""

    def copy_(self, other: ReplayBatch) -> None:
        """Take over the values of another batch of the same shapes, from whatever device."""
        for item in fields(self):
            mine, theirs = getattr(self, item.name), getattr(other, item.name)
            pairs = [(mine[key], theirs[key]) for key in mine] if isinstance(mine, dict) else [(mine, theirs)]
            for target, source in pairs:
                target.copy_(source)

    def map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> ReplayBatch:
        """Return a batch of ``function`` of every tensor."""
        out = {}
        for item in fields(self):
            value = getattr(self, item.name)
            is_groups = isinstance(value, dict)
            out[item.name] = {key: function(part) for key, part in value.items()} if is_groups else function(value)
        return ReplayBatch(**out)
