"""Ratios of env steps, critic updates and policy updates, counted by hand."""

from __future__ import annotations

import pytest

from myriad_lab.algorithms.update_counts import UpdateCounts


def test_steps_after_the_warmup_earn_updates() -> None:
    counts = UpdateCounts(value_updates_per_step=0.5, policy_delay=3, warmup_steps=4)
    earned = []
    for _ in range(10):
        counts.steps += 1
        earned.append(counts.earned_value_updates())
    assert earned == [0, 0, 0, 0, 0, 1, 1, 2, 2, 3]
    assert [counts.due_policy_updates(n) for n in range(8)] == [0, 0, 0, 1, 1, 1, 2, 2]


@pytest.mark.parametrize("rate", [0.3, 0.5, 1.0, 1.5, 7.0])
def test_paid_steps_undo_what_steps_earn(rate: float) -> None:
    counts = UpdateCounts(rate, policy_delay=2, warmup_steps=5)
    for updates in range(50):
        counts.steps = counts.paid_steps(updates)
        assert counts.earned_value_updates() <= updates
        counts.steps += 1
        assert counts.earned_value_updates() >= updates


def test_the_critic_warmup_earns_no_policy_update() -> None:
    counts = UpdateCounts(1.0, policy_delay=2, warmup_steps=0, critic_warmup=10)
    assert [counts.due_policy_updates(n) for n in (0, 10, 11, 12, 14)] == [0, 0, 0, 1, 2]
    counts.value_updates = 12
    assert counts.policy_update_is_due()
    counts.policy_updates = 1
    assert not counts.policy_update_is_due()


def test_a_second_warmup_forgets_what_is_owed() -> None:
    counts = UpdateCounts(2.0, policy_delay=2, warmup_steps=8)
    counts.steps, counts.value_updates, counts.policy_updates = 20, 10, 3
    counts.warm_up_again()
    counts.steps += 8
    assert counts.earned_value_updates() == 10
    assert counts.due_policy_updates(10) == 3
    counts.steps += 1
    assert counts.earned_value_updates() == 12
    assert counts.due_policy_updates(12) == 4


def test_a_state_goes_on_with_the_same_ratios_and_makes_up_for_nothing_with_others() -> None:
    counts = UpdateCounts(1.0, policy_delay=2, warmup_steps=4)
    counts.steps, counts.value_updates, counts.policy_updates = 24, 20, 10
    same, other = UpdateCounts(1.0, 2, 4), UpdateCounts(5.0, 4, 4)
    same.load_state_dict(counts.state_dict())
    assert same.state_dict() == counts.state_dict()
    other.load_state_dict(counts.state_dict())
    assert (other.earned_value_updates(), other.due_policy_updates(20)) == (20, 10)
    other.steps += 1
    assert (other.earned_value_updates(), other.due_policy_updates(24)) == (25, 11)
