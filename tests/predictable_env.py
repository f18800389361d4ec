"""An env whose observation IS (env id, step, episode), so that every row of a buffer can be predicted.

Put to use as::

    from predictable_env import PredictableEnv
    env = PredictableEnv(num_envs=8)

Env ``e`` plays episodes of ``lengths[e]`` steps. The observation after step ``s`` of episode ``k`` is ``(e, s, k)``,
the final one of an episode ``(e, lengths[e], k)``, the first one of the next ``(e, 0, k + 1)``. The reward for reaching
step ``s`` is ``reward_of(e, s, k)``. Even episodes end terminated, odd ones by time-out; diverged ones end by time-out
too, on the steps (counted from 1) listed in ``diverge_at``.
"""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDict

from myriad_lab.envs.contract import ActionSpec, EnvSpec, TermSpec, VecEnv


class PredictableEnv(VecEnv):
    def __init__(
        self,
        num_envs: int = 8,
        num_actions: int = 2,
        lengths: list[int] | None = None,
        final_obs: bool = True,
        diverge_at: tuple[tuple[int, int], ...] = (),
        device: str = "cpu",
    ) -> None:
        """``diverge_at`` holds pairs (global step counted from 1, env id)."""
        self.num_envs, self.num_actions = num_envs, num_actions
        self.device = torch.device(device)
        lengths = lengths or [3 + env % 4 for env in range(num_envs)]
        self.lengths = torch.tensor(lengths, device=self.device)
        self.max_episode_length = max(lengths)
        self.episode_length_buf = torch.zeros(num_envs, dtype=torch.long, device=self.device)
        self.episode_buf = torch.zeros(num_envs, dtype=torch.long, device=self.device)
        self.global_step = 0
        self.cfg = {"lengths": lengths}
        self.provides_final_obs = final_obs
        self.diverge_at = diverge_at
        self.last_actions = torch.zeros(num_envs, num_actions, device=self.device)
        terms = (TermSpec("env_id", (1,)), TermSpec("step", (1,)), TermSpec("episode", (1,)))
        self.spec = EnvSpec(
            task="Predictable",
            observations={"policy": terms, "critic": terms, "features": terms[:2]},
            action=ActionSpec(
                names=tuple(f"a{i}" for i in range(num_actions)),
                kind="velocity",
                unit="1",
                scale=(1.0,) * num_actions,
                offset=(0.0,) * num_actions,
            ),
            control_period=0.1,
            max_episode_length=self.max_episode_length,
        )

    @staticmethod
    def reward_of(env: torch.Tensor, step: torch.Tensor, episode: torch.Tensor) -> torch.Tensor:
        return 10_000.0 * env + 100.0 * episode + step

    def reset(self, env_ids: torch.Tensor | None = None) -> TensorDict:
        rows = torch.arange(self.num_envs, device=self.device) if env_ids is None else env_ids
        self.episode_buf[rows] += 1
        self.episode_length_buf[rows] = 0
        return self.get_observations()

    def get_observations(self) -> TensorDict:
        row = torch.stack(
            (torch.arange(self.num_envs, device=self.device), self.episode_length_buf, self.episode_buf), dim=1
        ).float()
        groups = {"policy": row, "critic": row.clone(), "features": row[:, :2].clone()}
        return TensorDict(groups, batch_size=[self.num_envs], device=self.device)

    def step(self, actions: torch.Tensor) -> tuple[TensorDict, torch.Tensor, torch.Tensor, dict]:
        assert actions.shape == (self.num_envs, self.num_actions)
        self.last_actions = actions.clone()
        self.global_step += 1
        self.episode_length_buf += 1
        env = torch.arange(self.num_envs, device=self.device)
        diverged = torch.zeros(self.num_envs, dtype=torch.bool, device=self.device)
        for step, env_id in self.diverge_at:
            diverged[env_id] |= step == self.global_step
        ended = self.episode_length_buf >= self.lengths
        terminated = ended & (self.episode_buf % 2 == 0) & ~diverged
        time_outs = (ended | diverged) & ~terminated
        rewards = self.reward_of(env, self.episode_length_buf, self.episode_buf).masked_fill(diverged, 0.0)
        extras: dict[str, Any] = {"terminated": terminated, "time_outs": time_outs, "diverged": diverged, "log": {}}
        if self.provides_final_obs:
            extras["final_obs"] = self.get_observations()
        dones = terminated | time_outs
        rows = dones.nonzero().flatten()
        return self.reset(rows), rewards, dones.long(), extras

    def state_dict(self) -> dict[str, Any]:
        return {
            "episode_length_buf": self.episode_length_buf.clone(),
            "episode_buf": self.episode_buf.clone(),
            "global_step": self.global_step,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.episode_length_buf = state["episode_length_buf"].clone()
        self.episode_buf = state["episode_buf"].clone()
        self.global_step = state["global_step"]
