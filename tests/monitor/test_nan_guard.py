from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from myriad_lab.envs.contract import TermSpec
from myriad_lab.monitor.nan_guard import NanGuard, NanGuardError

TERMS = {"policy": (TermSpec("base_height", (1,), "m"), TermSpec("joint_vel", (3,), "rad/s"))}


@pytest.fixture
def step() -> dict:
    return {
        "actions": torch.zeros(8, 2),
        "rewards": torch.zeros(8),
        "observations": {"policy": torch.zeros(8, 4), "features": torch.zeros(8, 2)},
        "valid": torch.ones(8, dtype=torch.bool),
    }


@pytest.fixture
def guard() -> NanGuard:
    return NanGuard(TERMS, num_envs=8, num_policies=4)


def test_finite_steps_pass(guard, step):
    guard.check(**step)


def test_a_step_waits_for_the_device_once(guard, step):
    class Reads(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.count += func is torch.ops.aten._local_scalar_dense.default
            return func(*args, **(kwargs or {}))

    with Reads() as reads:
        guard.check(**step)
    assert reads.count == 1


def test_message_names_term_unit_entry_envs_policies_and_mend(guard, step):
    step["observations"]["policy"][5, 2] = float("nan")
    step["observations"]["policy"][6, 3] = float("inf")
    with pytest.raises(NanGuardError) as error:
        guard.check(**step)
    text = str(error.value)
    for part in ("'policy'", "'joint_vel' [rad/s] entries 1, 2", "env ids 5, 6", "policy ids 2, 3", "What to do"):
        assert part in text
    assert "base_height" not in text


def test_actions_rewards_and_unknown_groups_are_checked(guard, step):
    step["rewards"][0] = float("inf")
    with pytest.raises(NanGuardError, match="rewards; 1 of 8 envs, env ids 0, policy ids 0"):
        guard.check(**step)
    step["actions"][:] = float("nan")
    with pytest.raises(NanGuardError, match=r"actions;.*learning rate"):
        guard.check(**step)
    step["actions"][:], step["rewards"][:] = 0.0, 0.0
    step["observations"]["features"][7, 1] = float("nan")
    with pytest.raises(NanGuardError, match=r"'features', columns 1"):
        guard.check(**step)


def test_rows_of_diverged_envs_are_not_looked_at(guard, step):
    step["observations"]["policy"][5] = float("nan")
    step["valid"][5] = False
    guard.check(**step)


def test_long_lists_are_cut_short(step):
    guard = NanGuard(TERMS, num_envs=100, num_policies=1)
    broken = {"actions": torch.full((100, 2), float("nan")), "rewards": torch.zeros(100), "observations": {}}
    with pytest.raises(NanGuardError, match=r"7, \.\.\. \(100 in all\)"):
        guard.check(**broken, valid=torch.ones(100, dtype=torch.bool))
