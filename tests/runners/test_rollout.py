from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensordict import TensorDict

from myriad_lab.envs.contract import ActionSpec, EnvSpec, TermSpec, VecEnv
from myriad_lab.errors import CheckpointError, ConfigurationError
from myriad_lab.networks.population import PopulationActor, PopulationActorCfg
from myriad_lab.portfolio.recording import EpisodeRecord
from myriad_lab.runners.rollout import actor_policy, random_policy, rollout_episodes, zero_policy


class PredictableEnv(VecEnv):
    """Episode k of env e lasts ``1 + (3 e + k) % 5`` steps, pays 10 e + k a step, and is observed as (e, k, t)."""

    def __init__(self, num_envs: int = 8, goal: bool = True, endless: bool = False, diverging: int = -1) -> None:
        self.num_envs, self.num_actions, self.max_episode_length = num_envs, 2, 5
        self.device, self.cfg, self.provides_final_obs = "cpu", {}, False
        self.goal, self.endless, self.diverging = goal, endless, diverging
        terms = {"policy": (TermSpec("row", (3,)),), "features": (TermSpec("row", (3,)),)}
        action = ActionSpec(("x", "y"), "velocity", "m/s", (1.0, 1.0), (0.0, 0.0))
        self.spec = EnvSpec("Fake", terms, action, 0.1, 5)
        self.reset()

    def reset(self, env_ids: torch.Tensor | None = None) -> TensorDict:
        self.episode = torch.zeros(self.num_envs, dtype=torch.long)
        self.episode_length_buf = torch.zeros(self.num_envs, dtype=torch.long)
        return self.get_observations()

    def get_observations(self) -> TensorDict:
        rows = torch.stack([torch.arange(self.num_envs), self.episode, self.episode_length_buf], dim=1).float()
        return TensorDict({"policy": rows, "features": rows.clone()}, batch_size=[self.num_envs])

    def step(self, actions: torch.Tensor) -> tuple[TensorDict, torch.Tensor, torch.Tensor, dict[str, Any]]:
        assert actions.shape == (self.num_envs, 2)
        ids = torch.arange(self.num_envs)
        rewards = (10 * ids + self.episode).float()
        self.episode_length_buf += 1
        dones = self.episode_length_buf >= 1 + (3 * ids + self.episode) % 5
        if self.endless:
            dones[0] = False
        extras: dict[str, Any] = {"terminated": dones & False, "time_outs": dones, "log": {}}
        extras["diverged"] = dones & (ids == self.diverging)
        if self.goal:
            extras["success"] = self.episode % 2 == 0
        self.episode += dones
        self.episode_length_buf[dones] = 0
        return self.get_observations(), rewards, dones.long(), extras

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        return


def test_every_env_gives_its_first_episodes_and_no_more() -> None:
    env = PredictableEnv()
    record = rollout_episodes(env, zero_policy(env), num_policies=4, episodes_per_head=6)
    env_of, episode = np.meshgrid(np.arange(2), np.arange(3))  # two envs per head, three episodes each
    for head in range(4):
        e, k = 2 * head + env_of.ravel(), episode.ravel()
        lengths = 1 + (3 * e + k) % 5
        np.testing.assert_array_equal(record.lengths[head], lengths)
        np.testing.assert_array_equal(record.returns[head], lengths * (10 * e + k))
        np.testing.assert_array_equal(record.success[head], k % 2 == 0)
        for n in range(6):
            rows = record.features[head, n][record.valid[head, n]]
            expected = [(e[n], k[n], t) for t in range(lengths[n])]
            np.testing.assert_array_equal(rows, np.array(expected, dtype=np.float32))
    assert record.features.shape == (4, 6, 5, 3)


def test_surplus_episodes_are_dropped_by_order_not_by_speed() -> None:
    env = PredictableEnv()
    record = rollout_episodes(env, zero_policy(env), num_policies=2, episodes_per_head=5, recorded_per_head=2)
    assert record.returns.shape == (2, 5)
    np.testing.assert_array_equal(record.returns[1] / record.lengths[1], [40, 50, 60, 70, 41])
    assert record.features.shape[:2] == (2, 2)


def test_diverged_episodes_are_marked_and_no_success() -> None:
    env = PredictableEnv(diverging=1)
    record = rollout_episodes(env, zero_policy(env), num_policies=1, episodes_per_head=8)
    np.testing.assert_array_equal(record.diverged[0], np.arange(8) == 1)
    np.testing.assert_array_equal(record.success[0], np.arange(8) != 1)


def test_task_without_goal_has_no_success() -> None:
    env = PredictableEnv(goal=False)
    record = rollout_episodes(env, zero_policy(env), 1, 8, features=None, num_obs_rows=0)
    assert record.success is None
    assert record.features is None
    assert record.policy_obs is None
    with pytest.raises(CheckpointError, match="holds no features"):
        record.visits()


def test_sampled_observations_know_their_head() -> None:
    env = PredictableEnv()
    record = rollout_episodes(env, zero_policy(env), num_policies=4, episodes_per_head=4, num_obs_rows=30)
    assert 20 < len(record.policy_obs) <= 30
    np.testing.assert_array_equal(record.policy_obs[:, 0] // 2, record.policy_heads)
    assert set(record.policy_heads) == {0, 1, 2, 3}


def test_actor_acts_with_the_head_of_each_env() -> None:
    env = PredictableEnv()
    actor = PopulationActor(3, 2, 4, PopulationActorCfg(trunk=[8], adapter_dim=4))
    seen: list[torch.Tensor] = []

    def watched(obs: TensorDict) -> torch.Tensor:
        seen.append(actor_policy(actor)(obs))
        return seen[-1]

    rollout_episodes(env, watched, num_policies=4, episodes_per_head=2)
    obs = env.reset()["policy"]
    torch.testing.assert_close(seen[0], torch.cat([actor.single(i)(obs[2 * i : 2 * i + 2]) for i in range(4)]))
    noisy = actor_policy(actor, deterministic=False, generator=torch.Generator().manual_seed(0))(env.reset())
    assert not torch.equal(noisy, seen[0])


def test_random_policy_is_uniform_and_repeatable() -> None:
    env = PredictableEnv(num_envs=2048)
    actions = random_policy(env, seed=3)(env.reset())
    assert torch.equal(actions, random_policy(env, seed=3)(env.reset()))
    assert not torch.equal(actions, random_policy(env, seed=4)(env.reset()))
    assert actions.abs().max() <= 1.0
    assert actions.mean().abs() < 0.05
    assert abs(actions.std().item() - 3**-0.5) < 0.02


def test_bad_input_is_refused() -> None:
    env = PredictableEnv()
    with pytest.raises(ConfigurationError, match="num_policies=3 does not divide num_envs=8"):
        rollout_episodes(env, zero_policy(env), 3)
    with pytest.raises(ConfigurationError, match="episodes_per_head=0"):
        rollout_episodes(env, zero_policy(env), 2, 0)
    with pytest.raises(ConfigurationError, match="no observation group 'root'"):
        rollout_episodes(env, zero_policy(env), 2, 2, features="root")
    endless = PredictableEnv(endless=True)
    with pytest.raises(ConfigurationError, match="does not end its episodes"):
        rollout_episodes(endless, zero_policy(endless), 2, 4)


def test_record_round_trip(tmp_path: Path) -> None:
    env = PredictableEnv()
    record = rollout_episodes(env, zero_policy(env), 2, 4, info={"task": "Fake", "seed": 1})
    record.save(tmp_path / "recordings" / "episodes.npz")
    loaded = EpisodeRecord.load(tmp_path / "recordings" / "episodes.npz")
    assert loaded.info == {"task": "Fake", "seed": 1}
    for name in ("returns", "lengths", "diverged", "success", "features", "valid", "policy_obs", "policy_heads"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(record, name))
    few = loaded.visits(max_per_head=3)
    assert [len(rows) for rows in few] == [3, 3]
    assert all((row == loaded.visits()[0]).all(axis=1).any() for row in few[0])
    data = (tmp_path / "recordings" / "episodes.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match=r"cut\.npz is damaged"):
        EpisodeRecord.load(tmp_path / "cut.npz")
    with pytest.raises(CheckpointError, match=r"none\.npz is missing"):
        EpisodeRecord.load(tmp_path / "none.npz")
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    with pytest.raises(CheckpointError, match="no recording of episodes"):
        EpisodeRecord.load(tmp_path / "other.npz")
