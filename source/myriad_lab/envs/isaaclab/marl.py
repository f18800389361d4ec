"""Multi-agent envs of Isaac Lab 3.0 with the agents kept apart, as critics over several agents need them."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch
from tensordict import TensorDict

from myriad_lab.envs.isaaclab.adapter import restart_rows
from myriad_lab.envs.isaaclab.cfg import IsaacLabCfg
from myriad_lab.envs.isaaclab.spec import action_size
from myriad_lab.errors import ConfigurationError

Agents = Mapping[str, torch.Tensor]
"""Agent -> rows of all envs."""


class IsaacLabMultiAgentEnv:
    """A ``DirectMARLEnv`` with an agent axis: rows ``(num_envs, num_agents, size)``, padded with zeros at their ends.

    ``step`` returns ``(obs, rewards, dones, extras)`` as ``VecEnv`` does, but for that axis:

    * ``obs["policy"]``: ``(num_envs, num_agents, largest observation)``; ``obs["critic"]``: the state of the task, or
      all observations in the order of ``agents`` where it has none, ``(num_envs, size)``.
    * ``rewards``: ``(num_envs, num_agents)``.
    * ``dones``, ``extras["terminated"]``, ``extras["time_outs"]``: one for all agents, ``(num_envs,)``: Isaac Lab ends
      an episode where all agents terminated, or all ran out of time.
    * ``extras["diverged"]``: the physics broke, or somebody ended the episode in the viewer: such a row, reported as a
      time-out, must never reach a buffer.
    * ``extras["final_obs"]``: like ``obs``, valid on the rows with ``dones`` alone; ``extras["log"]``: per agent.
    """

    def __init__(self, env: Any, *, task_id: str, cfg: IsaacLabCfg, cleanup: ExitStack | None = None) -> None:
        """Wrap an env that has just been made, and start the first episodes.

        Args:
            env: What ``gymnasium.make`` returned.
            task_id: Registered id.
            cfg: Bound of the actions.
            cleanup: Closed after the env.

        Raises:
            ConfigurationError: An agent's observations or actions are no rows of numbers.
        """
        self._gym_env: Any = env
        self.inner: Any = env.unwrapped
        """The env of Isaac Lab."""
        self.task_id = task_id
        self._cleanup = cleanup or ExitStack()
        if cfg.joint_limit_actions:
            raise ConfigurationError(f"isaaclab.joint_limit_actions=true: {task_id} has many agents; leave it out")
        self._action_bound = cfg.action_bound
        self.agents: tuple[str, ...] = tuple(self.inner.cfg.possible_agents)
        """Names, in the order of the agent axis."""
        self.num_envs, self.num_agents = int(self.inner.num_envs), len(self.agents)
        self.device = torch.device(self.inner.device)
        self.max_episode_length = int(self.inner.max_episode_length)
        self.provides_final_obs = bool(self.inner.cfg.compute_final_obs)
        self.action_sizes = tuple(action_size(self.inner.action_spaces[name]) for name in self.agents)
        """Actions of each agent; columns from there on have no effect."""
        self.num_actions = max(self.action_sizes)
        """Width of the action rows."""
        self._states: list[torch.Tensor] = []
        self._watch_observations()
        obs, _ = env.reset()
        for name in self.agents:
            if not isinstance(obs[name], torch.Tensor) or obs[name].dim() != 2:
                raise ConfigurationError(f"{task_id}: the observations of agent {name!r} are no rows of numbers")
        self.obs_sizes = tuple(int(obs[name].shape[1]) for name in self.agents)
        """Numbers that each agent observes; columns from there on are 0."""
        self._obs = self._pack(obs, self._states[-1])

    @property
    def episode_length_buf(self) -> torch.Tensor:
        """Control steps since the start of each episode, long ``(num_envs,)``."""
        return self.inner.episode_length_buf

    def reset(self) -> TensorDict:
        """Start a new episode in every env and return the observations."""
        obs, _ = self._gym_env.reset()
        self._obs = self._pack(obs, self._states[-1])
        return self.get_observations()

    def get_observations(self) -> TensorDict:
        """Return a copy of the current observations."""
        return self._obs.clone()

    def step(self, actions: torch.Tensor) -> tuple[TensorDict, torch.Tensor, torch.Tensor, dict[str, Any]]:
        """Apply actions in [-1, 1], shape ``(num_envs, num_agents, num_actions)``; see the class for what comes back.

        Raises:
            ValueError: The shape is wrong, or an action is not a number.
        """
        shape = (self.num_envs, self.num_agents, self.num_actions)
        if actions.shape != shape:
            raise ValueError(f"actions have shape {tuple(actions.shape)}, not {shape}.")
        if not bool(torch.isfinite(actions).all()):
            raise ValueError(f"{self.task_id}: an action is not a finite number.")
        bounded = actions.detach().to(self.device, torch.float32).clamp(-1.0, 1.0) * self._action_bound
        parts = {name: bounded[:, i, : self.action_sizes[i]] for i, name in enumerate(self.agents)}
        self._states.clear()
        obs, rewards, terminated, time_outs, inner_extras = self._gym_env.step(parts)
        all_terminated, ended = self._all(terminated), self._all(terminated) | self._all(time_outs)
        self._obs = self._pack(obs, self._states[-1])
        reward = torch.stack([rewards[name].float() for name in self.agents], dim=1)
        last = self._obs
        # Isaac Lab observes twice on a step with ends: before the reset and after it.
        if self.provides_final_obs and bool(self.inner.reset_buf.any()):
            last = self._pack({name: inner_extras[name]["final_obs"] for name in self.agents}, self._states[0])
        broken = ~torch.isfinite(reward).all(1) | ~_finite(last) | ~_finite(self._obs)
        diverged = broken | (ended & ~self.inner.reset_buf)
        self._mend(broken & (~ended | ~_finite(self._obs)))
        time_outs = (ended & ~all_terminated) | diverged
        extras: dict[str, Any] = {
            "terminated": all_terminated & ~diverged,
            "time_outs": time_outs,
            "diverged": diverged,
        }
        extras["log"] = self._log(inner_extras) if bool(ended.any()) else {}
        if self.provides_final_obs:
            extras["final_obs"] = last.clone()
        dones = extras["terminated"] | time_outs
        return self.get_observations(), reward.masked_fill(diverged.unsqueeze(1), 0.0), dones.long(), extras

    def close(self) -> None:
        """Stop the simulator; the second call does nothing."""
        if self._gym_env is not None:
            self._gym_env.close()
            self._cleanup.close()
            self._gym_env = None

    def _mend(self, bad: torch.Tensor) -> None:
        """Start the bad rows anew.

        Raises:
            FloatingPointError: Their observations are not finite after it either.
        """
        rows = bad.nonzero().flatten()
        if not len(rows):
            return
        restart_rows(self.inner, rows)
        fresh = self._pack(self.inner._compute_observations(), self._states[-1])
        for name in self._obs.keys():  # noqa: SIM118 - a TensorDict iterates over rows
            self._obs[name][rows] = fresh[name][rows]
        if not bool(_finite(self._obs).all()):
            raise FloatingPointError(f"{self.task_id}: observations are not finite, after a reset too")

    def _watch_observations(self) -> None:
        """Keep the state at every computation of observations: Isaac Lab gives none for the end of an episode."""
        compute, env = self.inner._compute_observations, self.inner

        def with_state() -> Agents:
            obs = compute()
            kind = env.cfg.state_space
            own = bool(kind) and not (isinstance(kind, int) and kind < 0)
            state = env._get_states() if own else torch.cat([obs[name].flatten(1) for name in self.agents], dim=1)
            self._states.append(state.detach().float().clone())
            return obs

        env._compute_observations = with_state

    def _pack(self, obs: Agents, state: torch.Tensor) -> TensorDict:
        rows = torch.zeros(self.num_envs, self.num_agents, max(self.obs_sizes), device=self.device)
        for i, name in enumerate(self.agents):
            rows[:, i, : self.obs_sizes[i]] = obs[name]
        return TensorDict({"policy": rows, "critic": state.clone()}, batch_size=[self.num_envs], device=self.device)

    def _all(self, flags: Agents) -> torch.Tensor:
        return torch.stack([flags[name] for name in self.agents]).all(0)

    def _log(self, extras: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        entries = {}
        for name in self.agents:
            for key, value in (extras[name].get("log") or {}).items():
                entries[f"{key}/{name}"] = torch.as_tensor(value).detach().float().clone()
        return entries


def _finite(obs: TensorDict) -> torch.Tensor:
    """Return where every number is finite, bool ``(num_envs,)``."""
    return torch.isfinite(obs["policy"]).flatten(1).all(1) & torch.isfinite(obs["critic"]).all(1)
