"""Returns and advantages. Time runs along the first axis.

A true end (``terminated``) cuts the future off; a time limit (``time_outs``) only ends the recording: the value of the
true last observation stands for what would have come. Neither lets anything of the next episode through.
"""

from __future__ import annotations

import torch


def reward_to_go(rewards: torch.Tensor) -> torch.Tensor:
    """Return the undiscounted sum of the rewards from each step to the last one, shape as ``rewards`` (time, ...)."""
    # step by step: torch refuses a cumulative sum on a GPU where runs are to be repeatable
    sums = rewards.to(torch.float64, copy=True)
    for step in range(len(rewards) - 2, -1, -1):
        sums[step] += sums[step + 1]
    return sums.to(rewards.dtype)


def gae(
    rewards: torch.Tensor,
    values: torch.Tensor,
    next_values: torch.Tensor,
    terminated: torch.Tensor,
    time_outs: torch.Tensor,
    gamma: float,
    gae_lambda: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return generalised advantage estimates (Schulman et al., arXiv 1506.02438, eq. 16) and returns.

    Args:
        rewards: Shape (time, num_envs).
        values: Values of the observations before the steps, same shape.
        next_values: Values of the observations after the steps, same shape; of the *true last* observation on rows
            that end by the time limit. Rows with ``terminated`` are not read.
        terminated: True ends, bool, same shape.
        time_outs: Ends by the time limit, bool, same shape.
        gamma: Discount per step.
        gae_lambda: Decay of the estimate.

    Returns:
        Advantages, and returns = advantages + values, shape (time, num_envs) each.
    """
    deltas = rewards + gamma * torch.where(terminated, 0.0, next_values) - values
    decay = gamma * gae_lambda * (~(terminated | time_outs)).to(rewards.dtype)
    advantages = torch.empty_like(rewards)
    following = torch.zeros_like(rewards[0])
    for step in range(len(rewards) - 1, -1, -1):
        following = deltas[step] + decay[step] * following
        advantages[step] = following
    return advantages, advantages + values
