"""Statistics over the valid entries of a tensor; no shape depends on the data, so no device has to be waited for."""

from __future__ import annotations

import torch

from myriad_lab.functional.collective import ALONE, Collective


def masked_mean(
    values: torch.Tensor, mask: torch.Tensor, dim: int | None = None, ranks: Collective = ALONE
) -> torch.Tensor:
    """Return the mean of ``values`` where ``mask``; 0 where nothing is valid. Values elsewhere may be NaN.

    Args:
        values: Any shape.
        mask: Bool, same shape.
        dim: Axis to reduce, all axes by default.
        ranks: Whose values are averaged over, along ``dim`` too.
    """
    kept = torch.where(mask, values, 0.0)
    if dim is None:
        return ranks.sum(kept.sum()) / ranks.sum(mask.sum()).clamp_min(1)
    return ranks.sum(kept.sum(dim)) / ranks.sum(mask.sum(dim)).clamp_min(1)


def masked_std(values: torch.Tensor, mask: torch.Tensor, ranks: Collective = ALONE) -> torch.Tensor:
    """Return the standard deviation (not bias-corrected) of ``values`` where ``mask``, on all ranks, a scalar."""
    return masked_mean((values - masked_mean(values, mask, ranks=ranks)).square(), mask, ranks=ranks).sqrt()


def standardize(values: torch.Tensor, mask: torch.Tensor, eps: float = 1e-8, ranks: Collective = ALONE) -> torch.Tensor:
    """Return ``values`` with zero mean and unit variance over the entries of all ranks where ``mask``; 0 elsewhere."""
    centred = torch.where(mask, values - masked_mean(values, mask, ranks=ranks), 0.0)
    return centred / (masked_mean(centred.square(), mask, ranks=ranks).sqrt() + eps)


def park_invalid(points: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Move invalid points so far away that none can be among the nearest neighbours of a valid one.

    Dropping them would need their number on the host. They are spread along the first axis beyond the valid points, at
    distances of one diameter from the valid set and of a thousandth of it from one another.

    Args:
        points: Points, shape (n, d); invalid rows may hold anything.
        mask: Valid rows, bool (n,).

    Returns:
        Points, shape (n, d); those that are valid unchanged.
    """
    kept = torch.where(mask.unsqueeze(1), points, torch.inf)
    low = kept.amin(0)
    high = torch.where(mask.unsqueeze(1), points, -torch.inf).amax(0)
    # With no valid point at all the box is empty; any finite box will do.
    low, high = torch.nan_to_num(low, posinf=0.0), torch.nan_to_num(high, neginf=0.0)
    diameter = (high - low).norm().clamp_min(1.0)
    rank = torch.cumsum(~mask, 0).to(points.dtype)
    parked = high.expand_as(points).clone()
    parked[:, 0] += diameter * (1.0 + 1e-3 * rank)
    return torch.where(mask.unsqueeze(1), points, parked)
