"""The categorical projection keeps mass and, inside the support, the mean."""

from __future__ import annotations

import pytest
import torch

from myriad_lab.functional.projection import categorical_projection

SUPPORT = torch.linspace(-2.0, 2.0, 5)


def project(probabilities, reward, discount):
    return categorical_projection(torch.tensor(probabilities), torch.tensor(reward), torch.tensor(discount), SUPPORT)


@pytest.mark.parametrize(
    ("probabilities", "reward", "discount", "expected"),
    [
        ([0.0, 0.0, 1.0, 0.0, 0.0], 0.0, 1.0, [0.0, 0.0, 1.0, 0.0, 0.0]),  # Identity.
        ([0.1, 0.2, 0.3, 0.4, 0.0], 1.0, 1.0, [0.0, 0.1, 0.2, 0.3, 0.4]),  # A shift by one whole atom.
        ([0.0, 0.0, 1.0, 0.0, 0.0], 0.25, 1.0, [0.0, 0.0, 0.75, 0.25, 0.0]),  # Shared between two neighbours.
        ([0.5, 0.0, 0.0, 0.0, 0.5], 0.0, 0.25, [0.0, 0.25, 0.5, 0.25, 0.0]),  # Shrunk: atoms at -0.5 and 0.5.
        ([0.2, 0.2, 0.2, 0.2, 0.2], 1.5, 0.0, [0.0, 0.0, 0.0, 0.5, 0.5]),  # A true end: the reward alone.
        ([0.2, 0.2, 0.2, 0.2, 0.2], 9.0, 1.0, [0.0, 0.0, 0.0, 0.0, 1.0]),  # Above the support.
        ([0.2, 0.2, 0.2, 0.2, 0.2], -9.0, 1.0, [1.0, 0.0, 0.0, 0.0, 0.0]),  # Below it.
    ],
)
def test_golden(probabilities, reward, discount, expected):
    torch.testing.assert_close(project(probabilities, reward, discount), torch.tensor(expected))


def test_mass_and_mean():
    generator = torch.Generator().manual_seed(0)
    support = torch.linspace(-10.0, 10.0, 51)
    probabilities = torch.rand(3, 64, 51, generator=generator).softmax(-1)
    rewards = torch.randn(3, 64, generator=generator)
    discounts = 0.8 * torch.rand(3, 64, generator=generator)
    found = categorical_projection(probabilities, rewards, discounts, support)
    torch.testing.assert_close(found.sum(-1), torch.ones(3, 64))
    assert (found >= 0).all()
    torch.testing.assert_close((found * support).sum(-1), rewards + discounts * (probabilities * support).sum(-1))


def test_nan_stays_in_its_row():
    probabilities = torch.full((2, 5), 0.2)
    found = categorical_projection(probabilities, torch.tensor([torch.nan, 0.0]), torch.ones(2), SUPPORT)
    assert found[0].isnan().any()
    torch.testing.assert_close(found[1], probabilities[1])
