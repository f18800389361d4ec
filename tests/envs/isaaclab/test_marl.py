"""The multi-agent adapter over an env of Isaac Lab whose every row can be predicted."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from myriad_lab.envs.isaaclab.cfg import IsaacLabCfg
from myriad_lab.envs.isaaclab.marl import IsaacLabMultiAgentEnv
from myriad_lab.errors import ConfigurationError

AGENTS = {"cart": (2, 1), "pole": (3, 2)}
"""Agent -> sizes of its observation and of its action."""


class Box:
    """A space of rows of numbers."""

    def __init__(self, size: int) -> None:
        self.size = size


class FakeMarlEnv:
    """Observations are (env id, step, ...) of the agent; episodes of env ``e`` take ``lengths[e]`` steps."""

    def __init__(self, lengths: list[int]) -> None:
        self.num_envs, self.device, self.max_episode_length = len(lengths), "cpu", max(lengths)
        self.cfg = SimpleNamespace(possible_agents=list(AGENTS), compute_final_obs=True, state_space=-1)
        self.action_spaces: dict[str, Any] = {name: Box(size) for name, (_, size) in AGENTS.items()}
        self.lengths = torch.tensor(lengths)
        self.episode_length_buf = torch.zeros(self.num_envs, dtype=torch.long)
        self.reset_buf = torch.zeros(self.num_envs, dtype=torch.bool)
        self.extras: dict[str, dict[str, Any]] = {name: {} for name in AGENTS}
        self.scene = SimpleNamespace(write_data_to_sim=lambda: None)
        self.sim = SimpleNamespace(forward=lambda: None)
        self.broken: dict[int, str] = {}
        """Env -> what is NaN: ``obs``, ``reward``, or ``forever`` (after a reset, too)."""
        self.only_pole_falls = False
        self.asked_in_viewer: list[int] = []
        self.actions: dict[str, torch.Tensor] = {}
        self.restarted: list[int] = []

    @property
    def unwrapped(self) -> FakeMarlEnv:
        return self

    def _compute_observations(self) -> dict[str, torch.Tensor]:
        obs = {}
        for name, (size, _) in AGENTS.items():
            rows = torch.zeros(self.num_envs, size)
            rows[:, 0], rows[:, 1] = torch.arange(self.num_envs), self.episode_length_buf
            obs[name] = rows
        for env, what in self.broken.items():
            if what == "forever" or (what == "obs" and self.episode_length_buf[env] > 0):
                obs["pole"][env] = torch.nan
        return obs

    def _reset_idx(self, rows: torch.Tensor) -> None:
        self.restarted += rows.tolist()
        self.episode_length_buf[rows.long()] = 0

    def reset(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        self._reset_idx(torch.arange(self.num_envs))
        return self._compute_observations(), self.extras

    def step(self, actions: dict[str, torch.Tensor]) -> tuple[Any, ...]:
        self.actions = actions
        self.restarted.clear()
        self.episode_length_buf += 1
        ended = self.episode_length_buf >= self.lengths
        fallen = {"cart": torch.zeros_like(ended), "pole": torch.full_like(ended, self.only_pole_falls)}
        time_outs = dict.fromkeys(AGENTS, ended)
        rewards = {name: torch.arange(self.num_envs) + 100.0 * i for i, name in enumerate(AGENTS)}
        for env in (env for env, what in self.broken.items() if what == "reward"):
            rewards["pole"][env] = torch.nan
        self.reset_buf = ended.clone()
        if ended.any():
            for name, rows in self._compute_observations().items():
                self.extras[name]["final_obs"] = rows
            self._reset_idx(ended.nonzero().flatten())
        for env in self.asked_in_viewer:
            for name in AGENTS:
                fallen[name][env] = True
            self._reset_idx(torch.tensor([env]))
        return self._compute_observations(), rewards, fallen, time_outs, self.extras


@pytest.fixture(autouse=True)
def gymnasium(monkeypatch: pytest.MonkeyPatch) -> None:
    """Isaac Lab brings the real one, which only says here how many numbers an action has."""
    spaces = SimpleNamespace(Box=Box, flatdim=lambda space: space.size)
    monkeypatch.setitem(sys.modules, "gymnasium", SimpleNamespace(spaces=spaces))


def wrap(inner: FakeMarlEnv) -> IsaacLabMultiAgentEnv:
    return IsaacLabMultiAgentEnv(inner, task_id="Fake", cfg=IsaacLabCfg(action_bound=2.0))


def still(env: IsaacLabMultiAgentEnv) -> torch.Tensor:
    return torch.zeros(env.num_envs, env.num_agents, env.num_actions)


def test_each_agent_gets_its_own_columns():
    inner = FakeMarlEnv([2, 9])
    env = wrap(inner)
    assert (env.num_agents, env.num_actions, env.action_sizes, env.obs_sizes) == (2, 2, (1, 2), (2, 3))
    actions = torch.tensor([[[0.1, 9.0], [0.2, 0.3]], [[-0.1, 9.0], [-3.0, 0.0]]])
    obs, rewards, dones, extras = env.step(actions)
    assert inner.actions["cart"].flatten().tolist() == pytest.approx([0.2, -0.2])
    assert inner.actions["pole"].flatten().tolist() == pytest.approx([0.4, 0.6, -2.0, 0.0])
    assert rewards.tolist() == [[0.0, 100.0], [1.0, 101.0]]
    assert obs["policy"][1].tolist() == [[1.0, 1.0, 0.0], [1.0, 1.0, 0.0]]
    assert obs["critic"][1].tolist() == [1.0, 1.0, 1.0, 1.0, 0.0]
    assert not dones.any()
    assert not extras["diverged"].any()
    obs, _, dones, extras = env.step(still(env))
    assert dones.tolist() == [1, 0]
    assert extras["time_outs"].tolist() == [True, False]
    assert obs["policy"][0, 0].tolist() == [0.0, 0.0, 0.0]
    assert extras["final_obs"]["policy"][0, 0].tolist() == [0.0, 2.0, 0.0]
    assert extras["final_obs"]["critic"][0].tolist() == [0.0, 2.0, 0.0, 2.0, 0.0]


def test_an_episode_goes_on_while_one_agent_does():
    inner = FakeMarlEnv([9, 9])
    inner.only_pole_falls = True
    _, _, dones, extras = wrap(inner).step(torch.zeros(2, 2, 2))
    assert not dones.any()
    assert not extras["terminated"].any()


@pytest.mark.parametrize("what", ["obs", "reward"])
def test_a_row_that_is_not_finite_starts_anew(what: str):
    inner = FakeMarlEnv([9, 9, 9])
    env = wrap(inner)
    env.step(still(env))
    inner.broken[1] = what
    obs, rewards, dones, extras = env.step(still(env))
    assert inner.restarted == [1]
    assert dones.tolist() == [0, 1, 0]
    assert extras["diverged"].tolist() == extras["time_outs"].tolist() == [False, True, False]
    assert not extras["terminated"].any()
    assert obs["policy"][:, 0, 1].tolist() == [2.0, 0.0, 2.0]
    assert rewards[1].tolist() == [0.0, 0.0]
    assert bool(torch.isfinite(obs["policy"]).all())


def test_a_row_that_ends_with_a_broken_reward_is_restarted_once():
    inner = FakeMarlEnv([2, 9])
    env = wrap(inner)
    env.step(still(env))
    inner.broken[0] = "reward"
    _, _, dones, extras = env.step(still(env))
    assert inner.restarted == [0]
    assert (dones.tolist(), extras["diverged"].tolist()) == ([1, 0], [True, False])


def test_an_end_asked_for_in_the_viewer_is_no_end_of_the_task():
    inner = FakeMarlEnv([9, 9])
    env = wrap(inner)
    inner.asked_in_viewer = [0]
    _, _, dones, extras = env.step(still(env))
    assert inner.restarted == [0]
    assert (dones.tolist(), extras["diverged"].tolist()) == ([1, 0], [True, False])
    assert not extras["terminated"].any()


def test_what_stays_broken_is_told():
    inner = FakeMarlEnv([9, 9])
    env = wrap(inner)
    inner.broken[1] = "forever"
    with pytest.raises(FloatingPointError, match="Fake: observations are not finite, after a reset too"):
        env.step(still(env))


def test_choices_are_refused():
    inner = FakeMarlEnv([9])
    inner.action_spaces["cart"] = "Discrete(3)"
    with pytest.raises(ConfigurationError, match=r"the actions are Discrete\(3\); expected rows of numbers"):
        wrap(inner)


def test_wrong_actions_are_refused():
    env = wrap(FakeMarlEnv([9, 9]))
    with pytest.raises(ValueError, match=r"shape \(2, 2\), not \(2, 2, 2\)"):
        env.step(torch.zeros(2, 2))
    with pytest.raises(ValueError, match="not a finite number"):
        env.step(still(env) + torch.nan)
