"""A task that any learner solves: the action must be the observation."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDict

from myriad_lab.envs.contract import ActionSpec, EnvSpec, TermSpec, VecEnv


class IdentityEnv(VecEnv):
    """Reward 1 - |action - obs|^2, a new uniform observation each step, episodes end by the time limit alone."""

    def __init__(self, num_envs: int = 32, episode_steps: int = 8, num_actions: int = 2, seed: int = 0) -> None:
        self.num_envs, self.num_actions, self.max_episode_length = num_envs, num_actions, episode_steps
        self.device = "cpu"
        self.cfg: dict[str, Any] = {}
        self.provides_final_obs = True
        terms = {name: (TermSpec("target", (num_actions,)),) for name in ("policy", "critic", "features")}
        names = tuple(f"a{i}" for i in range(num_actions))
        action = ActionSpec(names, "velocity", "m/s", (1.0,) * num_actions, (0.0,) * num_actions)
        self.spec = EnvSpec("Identity", terms, action, 0.1, episode_steps)
        self.generator = torch.Generator().manual_seed(seed)
        self.episode_length_buf = torch.zeros(num_envs, dtype=torch.long)
        self.last_actions = torch.zeros(num_envs, num_actions)
        self.next_diverged = torch.zeros(num_envs, dtype=torch.bool)
        self._draw()

    def _draw(self) -> None:
        self.target = torch.rand(self.num_envs, self.num_actions, generator=self.generator) * 1.6 - 0.8

    def reset(self, env_ids: torch.Tensor | None = None) -> TensorDict:
        self.episode_length_buf[slice(None) if env_ids is None else env_ids] = 0
        return self.get_observations()

    def get_observations(self) -> TensorDict:
        groups = {name: self.target.clone() for name in ("policy", "critic", "features")}
        return TensorDict(groups, batch_size=[self.num_envs])

    def step(self, actions: torch.Tensor) -> tuple[TensorDict, torch.Tensor, torch.Tensor, dict]:
        self.last_actions = actions.clone()
        rewards = 1.0 - (actions - self.target).square().sum(1)
        self.episode_length_buf += 1
        time_outs = (self.episode_length_buf >= self.max_episode_length) | self.next_diverged
        self.episode_length_buf[time_outs] = 0
        self._draw()
        log = {"Metrics/distance": (1.0 - rewards).mean()} if time_outs.any() else {}
        extras = {
            "terminated": torch.zeros_like(time_outs),
            "time_outs": time_outs,
            "diverged": self.next_diverged,
            "success": rewards > 0.5,
            "final_obs": self.get_observations(),
            "log": log,
        }
        return self.get_observations(), rewards, time_outs.long(), extras

    def state_dict(self) -> dict[str, Any]:
        return {
            "target": self.target.clone(),
            "length": self.episode_length_buf.clone(),
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.target, self.episode_length_buf = state["target"].clone(), state["length"].clone()
        self.generator.set_state(state["generator"])
