"""Returns and advantages against values computed by hand."""

from __future__ import annotations

import torch

from myriad_lab.functional.returns import gae, reward_to_go


def column(*values, dtype=torch.float64):
    return torch.tensor(values, dtype=dtype)[:, None]


def flags(length, *where):
    found = torch.zeros(length, 1, dtype=torch.bool)
    found[list(where)] = True
    return found


def test_reward_to_go():
    rewards = torch.tensor([[1.0, 0.0], [2.0, -1.0], [4.0, 5.0]])
    assert reward_to_go(rewards).tolist() == [[7.0, 4.0], [6.0, 4.0], [4.0, 5.0]]


def test_gae_by_hand():
    """gamma = lambda = 1/2, no end: deltas 1 + 2 - 2, 2 + 4 - 4, 4 + 8 - 8; decay 1/4."""
    values, after = column(2.0, 4.0, 8.0), column(4.0, 8.0, 16.0)
    none = flags(3)
    advantages, returns = gae(column(1.0, 2.0, 4.0), values, after, none, none, 0.5, 0.5)
    assert advantages[:, 0].tolist() == [1 + (2 + 4 / 4) / 4, 2 + 4 / 4, 4.0]
    assert returns[:, 0].tolist() == [3.75, 7.0, 12.0]


def test_gae_at_ends():
    """A true end drops the next value, a time-out keeps it; neither lets the next episode's advantage through."""
    rewards, values, after = column(1.0, 1.0, 1.0), column(0.0, 0.0, 0.0), column(10.0, 10.0, 10.0)
    lost, _ = gae(rewards, values, after, flags(3, 1), flags(3), 0.5, 1.0)
    assert lost[:, 0].tolist() == [6.5, 1.0, 6.0]
    kept, _ = gae(rewards, values, after, flags(3), flags(3, 1), 0.5, 1.0)
    assert kept[:, 0].tolist() == [9.0, 6.0, 6.0]


def test_gae_does_not_read_the_value_after_a_true_end():
    after = column(1.0, torch.nan)
    advantages, _ = gae(column(1.0, 1.0), column(0.0, 0.0), after, flags(2, 1), flags(2), 0.9, 0.9)
    assert torch.isfinite(advantages).all()


def test_gae_with_lambda_one_is_the_discounted_return():
    generator = torch.Generator().manual_seed(0)
    rewards, values, last = (torch.randn(*shape, generator=generator) for shape in ((9, 4), (9, 4), (4,)))
    after = torch.cat([values[1:], last[None]])
    ends = torch.rand(9, 4, generator=generator) < 0.2
    _, returns = gae(rewards, values, after, ends, torch.zeros_like(ends), 0.9, 1.0)
    following = last
    for step in range(8, -1, -1):
        following = rewards[step] + 0.9 * torch.where(ends[step], 0.0, following)
        torch.testing.assert_close(returns[step], following)
