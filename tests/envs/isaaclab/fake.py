"""An env with the surface of Isaac Lab's manager-based one, whose observation IS (env id, step, episode).

Env ``e`` plays episodes of ``lengths[e]`` steps. It hands out live buffers, leaves old entries in ``extras`` and gives
the final observation of before the reset, as Isaac Lab 3.0.0 does.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch


class FakeIsaacEnv:
    def __init__(self, lengths: list[int], *, final_obs: bool = True, history: int = 0) -> None:
        self.num_envs = len(lengths)
        self.device = "cpu"
        self.cfg = SimpleNamespace(compute_final_obs=final_obs)
        self.max_episode_length, self.step_dt, self.common_step_counter = max(lengths), 0.1, 0
        self.lengths = torch.tensor(lengths)
        self.terminating = torch.zeros(self.num_envs, dtype=torch.bool)
        self.episode_length_buf = torch.zeros(self.num_envs, dtype=torch.long)
        self.episodes = torch.zeros(self.num_envs)
        self.reward_buf = torch.zeros(self.num_envs)
        self.reset_terminated = torch.zeros(self.num_envs, dtype=torch.bool)
        self.reset_time_outs = torch.zeros_like(self.reset_terminated)
        self.reset_buf = torch.zeros_like(self.reset_terminated)
        self.extras: dict[str, Any] = {}
        self.actions: torch.Tensor | None = None
        self.broken: dict[int, str] = {}
        """Env -> what is NaN at the end of this step: ``obs``, ``reward``, or ``forever`` (after the reset, too)."""
        self.asked_in_viewer: list[int] = []
        """Envs that somebody resets in the viewer within the next step."""
        self.closed = 0
        self.task = "walk"
        self.origins = torch.arange(float(self.num_envs))[:, None] * torch.tensor([[100.0, 10.0, 0.0]])
        robot = SimpleNamespace(
            data=SimpleNamespace(
                root_pos_w=SimpleNamespace(torch=self.origins + 0.5),
                **{
                    name: SimpleNamespace(torch=torch.zeros(1, 2))
                    for name in ("default_joint_pos", "joint_stiffness", "joint_damping")
                },
            ),
            joint_names=["a", "b"],
            body_names=["torso", "hand"],
            num_joints=2,
            is_fixed_base=False,
            cfg=SimpleNamespace(actuators={}),
        )
        self.scene = SimpleNamespace(
            articulations={"robot": robot}, rigid_objects={}, env_origins=self.origins, write_data_to_sim=lambda: None
        )
        self.sim = SimpleNamespace(forward=lambda: None, visualizers=[])
        self.action_manager = SimpleNamespace(
            total_action_dim=2, active_terms=["arm"], get_term=lambda _: SimpleNamespace(action_dim=2)
        )
        term = SimpleNamespace(scale=None, clip=None, history_length=history, delay_max_lag=0)
        self.observation_manager = SimpleNamespace(
            active_terms={"policy": ["env_id", "step", "episode"]},
            group_obs_term_dim={"policy": [(1,), (1,), (1,)]},
            _group_obs_term_cfgs={"policy": [term] * 3},
            compute=self._compute,
        )
        self.obs_buf: dict[str, torch.Tensor] = {}

    @property
    def unwrapped(self) -> FakeIsaacEnv:
        return self

    def _compute(self, update_history: bool = False) -> dict[str, torch.Tensor]:
        row = torch.stack((torch.arange(self.num_envs).float(), self.episode_length_buf.float(), self.episodes), dim=1)
        for env, what in self.broken.items():
            if what == "forever" or (what == "obs" and self.episode_length_buf[env] > 0):
                row[env, 1] = torch.nan
        return {"policy": row}

    def reset(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        self._reset_idx(torch.arange(self.num_envs))
        self.obs_buf = self.observation_manager.compute(update_history=True)
        return self.obs_buf, self.extras

    def step(self, actions: torch.Tensor) -> tuple[Any, ...]:
        self.actions = actions
        self.common_step_counter += 1
        self.episode_length_buf += 1
        ended = self.episode_length_buf >= self.lengths
        self.reset_terminated[:] = ended & self.terminating
        self.reset_time_outs[:] = ended  # Isaac Lab may say both
        self.reset_buf = self.reset_terminated | self.reset_time_outs
        self.reward_buf = torch.arange(self.num_envs) + 0.1 * self.episode_length_buf
        for env, what in self.broken.items():
            if what == "reward":
                self.reward_buf[env] = torch.nan
        rows = self.reset_buf.nonzero().flatten()
        if len(rows):
            if self.cfg.compute_final_obs:
                self.extras["final_obs"] = self.observation_manager.compute()
            self._reset_idx(rows)
        for env in self.asked_in_viewer:
            self.reset_terminated[env] = True
            self._reset_idx(torch.tensor([env]))
        self.obs_buf = self.observation_manager.compute(update_history=True)
        return self.obs_buf, self.reward_buf, self.reset_terminated, self.reset_time_outs, self.extras

    def _reset_idx(self, rows: torch.Tensor) -> None:
        rows = rows.long()
        self.extras["log"] = {"Metrics/count": float(len(rows))}  # as the manager-based env's
        self.episodes[rows] += 1
        self.episode_length_buf[rows] = 0

    def close(self) -> None:
        self.closed += 1
