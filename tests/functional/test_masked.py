"""Masked statistics and the surrogate, against their definitions."""

from __future__ import annotations

import pytest
import torch

from myriad_lab.functional.estimators import effective_sample_size
from myriad_lab.functional.knn import knn
from myriad_lab.functional.masked import masked_mean, masked_std, park_invalid, standardize
from myriad_lab.functional.surrogate import clipped_surrogate


@pytest.fixture
def mask() -> torch.Tensor:
    return torch.rand(5, 40, generator=torch.Generator().manual_seed(0)) > 0.3


def test_masked_statistics_are_those_of_the_selection(mask):
    values = torch.randn(5, 40, generator=torch.Generator().manual_seed(1)) * 3.0 + 7.0
    poisoned = torch.where(mask, values, torch.nan)
    torch.testing.assert_close(masked_mean(poisoned, mask), values[mask].mean())
    torch.testing.assert_close(masked_std(poisoned, mask), values[mask].std(correction=0))
    expected = torch.stack([row[keep].mean() for row, keep in zip(values, mask, strict=True)])
    torch.testing.assert_close(masked_mean(poisoned, mask, dim=1), expected)
    z = standardize(poisoned, mask)
    assert (z[~mask] == 0).all()
    torch.testing.assert_close(z[mask].std(correction=0), torch.tensor(1.0))
    assert masked_mean(poisoned, torch.zeros_like(mask)) == 0


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_parked_points_are_nobodys_neighbours(scale):
    g = torch.Generator().manual_seed(2)
    points = scale * torch.randn(60, 3, generator=g)
    mask = torch.rand(60, generator=g) > 0.5
    poisoned = torch.where(mask.unsqueeze(1), points, torch.nan)
    parked = park_invalid(poisoned, mask)
    assert torch.isfinite(parked).all()
    assert torch.equal(parked[mask], points[mask])
    k = 8
    with_parked, _ = knn(parked, parked, k, exclude="self")
    alone, _ = knn(points[mask], points[mask], k, exclude="self")
    torch.testing.assert_close(with_parked[mask], alone)
    assert torch.isfinite(park_invalid(poisoned, torch.zeros_like(mask))).all()


def test_surrogate_golden():
    old = torch.zeros(4)
    new = torch.log(torch.tensor([1.5, 1.5, 0.5, 9.9]))
    advantages = torch.tensor([1.0, -1.0, -2.0, 100.0])
    mask = torch.tensor([True, True, True, False])
    found = clipped_surrogate(new, old, advantages, mask, 0.2)
    torch.testing.assert_close(found.loss, torch.tensor(-(1.2 - 1.5 - 1.6) / 3))
    assert found.clip_fraction == 1.0
    ratio = torch.tensor([1.5, 1.5, 0.5])
    torch.testing.assert_close(effective_sample_size(found.log_sums), ratio.sum() ** 2 / (ratio**2).sum())
    torch.testing.assert_close(found.kl, (ratio - 1 - ratio.log()).mean())


def test_surrogate_gradient_at_the_behaviour_is_the_policy_gradient():
    log_prob = torch.zeros(3, requires_grad=True)
    advantages = torch.tensor([1.0, -2.0, 5.0])
    mask = torch.tensor([True, True, False])
    clipped_surrogate(log_prob, torch.zeros(3), advantages, mask, 0.2).loss.backward()
    torch.testing.assert_close(log_prob.grad, torch.tensor([-0.5, 1.0, 0.0]))
