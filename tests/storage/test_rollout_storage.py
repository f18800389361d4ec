from __future__ import annotations

import pytest
import torch

from myriad_lab.errors import ConfigurationError
from myriad_lab.storage.rollout import RolloutStorage

FIELDS = {"obs": ((2,), torch.float32), "valid": ((), torch.bool), "ids": ((), torch.int64)}


def filled(steps: int = 3, envs: int = 6, policies: int = 3) -> RolloutStorage:
    """Every entry says where it belongs: (time, env)."""
    storage = RolloutStorage(steps, envs, policies, FIELDS)
    for t in range(steps):
        env = torch.arange(envs)
        obs = torch.stack((torch.full((envs,), t), env), dim=1).float()
        storage.append({"obs": obs, "valid": env >= 0, "ids": 10 * t + env})
    return storage


def test_rows_of_a_policy_are_those_of_its_envs_by_time():
    storage = filled()
    assert storage.by_policy(storage["ids"])[1].tolist() == [2, 3, 12, 13, 22, 23]
    assert storage.by_policy(storage["obs"][1:])[2].tolist() == [[1, 4], [1, 5], [2, 4], [2, 5]]


def test_unwritten_memory_is_poison_before_and_after():
    storage = filled()
    assert storage.full
    storage.clear()
    assert storage["obs"].isnan().all()
    assert (storage["ids"] == -1).all()
    assert not storage.full


def test_wrong_writes_are_refused():
    storage = filled()
    row = {"obs": torch.zeros(6, 2), "valid": torch.ones(6, dtype=torch.bool), "ids": torch.zeros(6, dtype=torch.long)}
    with pytest.raises(ConfigurationError, match="3 steps already"):
        storage.append(row)
    storage.clear()
    with pytest.raises(ConfigurationError, match=r"obs has shape \(6, 3\)"):
        storage.append(row | {"obs": torch.zeros(6, 3)})
    with pytest.raises(ConfigurationError, match="'obs'"):
        storage.append({"ids": row["ids"]})
    with pytest.raises(ConfigurationError, match="num_policies=4 does not divide num_envs=6"):
        RolloutStorage(3, 6, 4, FIELDS)
