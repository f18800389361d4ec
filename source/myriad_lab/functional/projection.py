"""Projection of a shifted and scaled distribution of returns onto a fixed support (C51, arXiv 1707.06887, alg. 1)."""

from __future__ import annotations

import torch


def categorical_projection(
    probabilities: torch.Tensor, rewards: torch.Tensor, discounts: torch.Tensor, support: torch.Tensor
) -> torch.Tensor:
    """Project the distribution of ``reward + discount * Z`` onto ``support``; mass is preserved.

    Each shifted atom, clamped to the support, gives its mass to its two neighbours in proportion to their nearness:
    ``max(0, 1 - |z_i - (r + g z_j)| / dz)``, written as such. There is no scatter, so the sum is deterministic on every
    device, and atoms that fall exactly on a neighbour need no special case.

    Args:
        probabilities: Mass of the atoms of Z, (..., num_atoms), rows summing to 1.
        rewards: Rewards, (...).
        discounts: Discounts, 0 after a true end, (...).
        support: Evenly spaced atoms, ascending, (num_atoms,).

    Returns:
        Mass on ``support``, (..., num_atoms).
    """
    spacing = (support[-1] - support[0]) / (len(support) - 1)
    shifted = rewards.unsqueeze(-1) + discounts.unsqueeze(-1) * support
    position = (shifted.clamp(support[0], support[-1]) - support[0]) / spacing
    index = torch.arange(len(support), device=support.device, dtype=support.dtype)
    nearness = (1.0 - (position.unsqueeze(-2) - index.unsqueeze(-1)).abs()).clamp_min(0.0)
    return (nearness * probabilities.unsqueeze(-2)).sum(-1)
