"""Returns, advantages and bootstrap windows. Time runs along the first axis.

A true end (``terminated``) cuts the future off; a time limit (``time_outs``) only ends the recording: the value of the
true last observation stands for what would have come. Neither lets anything of the next episode through.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


def reward_to_go(rewards: torch.Tensor) -> torch.Tensor:
    """Return the undiscounted sum of the rewards from each step to the last one, shape as ``rewards`` (time, ...)."""
    return rewards.flip(0).cumsum(0).flip(0)


def discounted_returns(
    rewards: torch.Tensor, ends: torch.Tensor, gamma: float, bootstrap: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the discounted sum of the rewards from each step to the end of its episode.

    Args:
        rewards: Shape (time, ...).
        ends: Steps that end an episode, bool, shape of ``rewards``.
        gamma: Discount per step.
        bootstrap: Value after the last step, shape (...); 0 where ``None``.
    """
    returns = torch.empty_like(rewards)
    following = torch.zeros_like(rewards[0]) if bootstrap is None else bootstrap
    for step in range(len(rewards) - 1, -1, -1):
        following = rewards[step] + gamma * torch.where(ends[step], 0.0, following)
        returns[step] = following
    return returns


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


@dataclass
class NStepWindow:
    """What an n-step target needs: ``target = returns + discounts * value(observation after step last)``."""

    returns: torch.Tensor
    """Discounted rewards of the window, shape (...)."""
    discounts: torch.Tensor
    """``gamma`` to the true length of the window, 0 after a true end, shape (...)."""
    last: torch.Tensor
    """Last step of the window, long (...): bootstrap from the observation after it, which is the true last
    observation of the episode (``final_obs``) where the window stopped at a time limit."""


def n_step_targets(
    rewards: torch.Tensor,
    terminated: torch.Tensor,
    time_outs: torch.Tensor,
    gamma: float,
    available: torch.Tensor | None = None,
) -> NStepWindow:
    """Return n-step windows that stop at the first end, with their true length and discount.

    Args:
        rewards: Rewards of n successive steps, shape (n, ...).
        terminated: True ends, bool, same shape.
        time_outs: Ends by the time limit, bool, same shape.
        gamma: Discount per step.
        available: Number of recorded steps, from 1 to n, shape (...), e.g. at the head of a ring; n where ``None``.
    """
    steps = torch.arange(len(rewards), device=rewards.device).view(-1, *([1] * (rewards.ndim - 1)))
    ended_before = torch.cat([torch.zeros_like(terminated[:1]), (terminated | time_outs)[:-1]]).cumsum(0) > 0
    inside = ~ended_before
    if available is not None:
        inside &= steps < available
    last = inside.sum(0) - 1
    powers = gamma ** steps.to(rewards.dtype)
    returns = torch.where(inside, powers * rewards, 0.0).sum(0)
    ended = torch.gather(terminated, 0, last.unsqueeze(0)).squeeze(0)
    discounts = torch.where(ended, 0.0, gamma ** (last + 1).to(rewards.dtype))
    return NStepWindow(returns, discounts, last)
