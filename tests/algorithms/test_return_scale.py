"""Statistics of returns against the same numbers computed by hand from the whole history."""

from __future__ import annotations

import math

import pytest
import torch

from myriad_lab.algorithms.return_scale import ReturnScale

GAMMA, NUM_ENVS = 0.9, 5


def history(steps: int) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    rows = []
    for _ in range(steps):
        rewards = torch.randn(NUM_ENVS, generator=generator) + 1.0
        dones, valid = (torch.rand(2, NUM_ENVS, generator=generator) < 0.1).unbind()
        rows.append((torch.where(valid, math.nan, rewards), dones, ~valid))
    return rows


@pytest.mark.parametrize("bound", [0.5, 1e6], ids=["the largest return decides", "the spread decides"])
def test_the_factor_is_that_of_all_returns_so_far(bound: float) -> None:
    scale = ReturnScale(NUM_ENVS, GAMMA, bound)
    running, seen = [0.0] * NUM_ENVS, []
    for rewards, dones, valid in history(200):
        scale.update(rewards, dones, valid)
        for env in range(NUM_ENVS):
            if not valid[env]:
                running[env] = 0.0
                continue
            running[env] = float(rewards[env]) + GAMMA * running[env]
            seen.append(running[env])
            running[env] = 0.0 if dones[env] else running[env]
    returns = torch.tensor(seen, dtype=torch.float64)
    expected = 1.0 / max(float(returns.std(correction=0)), float(returns.abs().max()) / bound)
    assert float(scale.factor) == pytest.approx(expected, rel=1e-5)


def test_the_factor_does_not_depend_on_the_unit_of_the_rewards_and_starts_at_one() -> None:
    small, large = (ReturnScale(NUM_ENVS, GAMMA, 5.0) for _ in range(2))
    zero = torch.zeros(NUM_ENVS)
    for scale in (small, large):
        scale.update(zero, zero.bool(), ~zero.bool())
        assert float(scale.factor) == 1.0
    for rewards, dones, valid in history(50):
        small.update(rewards, dones, valid)
        large.update(1000.0 * rewards, dones, valid)
    assert float(small.factor) == pytest.approx(1000.0 * float(large.factor), rel=1e-5)


def test_it_goes_on_from_its_state_and_the_factor_stays_where_it_is() -> None:
    first, second = (ReturnScale(NUM_ENVS, GAMMA, 5.0) for _ in range(2))
    place = first.factor.data_ptr()
    rows = history(40)
    for row in rows[:20]:
        first.update(*row)
    second.load_state_dict(first.state_dict())
    for scale in (first, second):
        for row in rows[20:]:
            scale.update(*row)
    assert torch.equal(first.factor, second.factor)
    assert first.factor.data_ptr() == place
