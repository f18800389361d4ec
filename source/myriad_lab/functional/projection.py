"""Projection of a shifted and scaled distribution of returns onto a fixed support (C51, arXiv 1707.06887, alg. 1)."""

from __future__ import annotations

import torch


def categorical_projection(
    probabilities: torch.Tensor, rewards: torch.Tensor, discounts: torch.Tensor, support: torch.Tensor
) -> torch.Tensor:
    """Project the distribution of ``reward + discount * Z`` onto ``support``; mass is preserved.

    Each shifted atom, clamped to the support, gives its mass to its two neighbours in proportion to their nearness. An
    atom that falls exactly on another one gives all to it and nothing to the next: no special case. The sums are
    scattered along one axis, for which PyTorch has a deterministic form on every device.

    Args:
        probabilities: Mass of the atoms of Z, (..., num_atoms), rows summing to 1.
        rewards: Rewards, (...).
        discounts: Discounts, 0 after a true end, (...).
        support: Evenly spaced atoms, ascending, (num_atoms,).

    Returns:
        Mass on ``support``, (..., num_atoms).
    """
    num_atoms = len(support)
    spacing = (support[-1] - support[0]) / (num_atoms - 1)
    shifted = rewards.unsqueeze(-1) + discounts.unsqueeze(-1) * support
    position = (shifted.clamp(support[0], support[-1]) - support[0]) / spacing
    # the last atom counts as the upper neighbour of the one before it; rounding may put it a little further
    lower = position.floor().clamp(0, num_atoms - 2).nan_to_num(0.0)  # a NaN stays in its row
    upper_mass = (position - lower).clamp_max(1.0) * probabilities
    first = torch.arange(0, probabilities.numel(), num_atoms, device=support.device).view(*rewards.shape, 1)
    index = (lower.to(torch.int64) + first).flatten()
    mass = torch.zeros_like(probabilities, memory_format=torch.contiguous_format).flatten()
    mass = mass.scatter_add(0, index, (probabilities - upper_mass).flatten())
    return mass.scatter_add(0, index + 1, upper_mass.flatten()).view_as(probabilities)
