"""A VecEnv made of one task and one simulator."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

import torch
from tensordict import TensorDict

from myriad_lab.envs.contract import EnvSpec, TermSpec, VecEnv
from myriad_lab.envs.env_parts import check_actions, episode_log, join_terms, robot_dict
from myriad_lab.envs.robot_state import InitialState, RobotState
from myriad_lab.envs.shard import WHOLE, Shard
from myriad_lab.envs.simulator import Simulator
from myriad_lab.envs.task import Task
from myriad_lab.errors import ConfigurationError


class TaskEnv(VecEnv):
    """Steps the simulator, lets the task read it, ends and restarts episodes; the contract is in ``VecEnv``.

    Beside what ``VecEnv`` promises, ``extras["success"]`` (bool, ``(num_envs,)``) tells for tasks with a goal whether
    it was reached at any time of the episode that is running or has just ended.
    """

    def __init__(
        self,
        task: Task,
        simulator: Simulator,
        *,
        seed: int,
        final_obs: bool = True,
        task_id: str | None = None,
        shard: Shard = WHOLE,
    ) -> None:
        """Bind the task to the simulator and start the first episodes.

        Args:
            task: What to observe and reward.
            simulator: What moves the robots.
            seed: Seed of this env's own generator; nothing else is random here.
            final_obs: Whether ``extras["final_obs"]`` is given.
            task_id: Registered id for ``spec.task``; the name of the class by default.
            shard: Which part of a batch these envs are. Where all of them start anew together they start as in the
                whole batch; whatever else is drawn (starts of single envs, commands) is drawn for this part alone.

        Raises:
            ConfigurationError: An observation of the task has another shape than its terms say, or is not finite from
                the start.
        """
        self.task = task
        self.simulator = simulator
        self.num_envs = simulator.num_envs
        self.device = simulator.device
        self.cfg = task.cfg
        self.max_episode_length = int(task.cfg.episode_steps)
        self.provides_final_obs = final_obs
        self.num_actions = len(task.robot.action.names)
        self.spec = EnvSpec(
            task=task_id or type(task).__name__,
            observations=task.observation_terms(),
            action=task.robot.action,
            control_period=task.robot.control_period,
            max_episode_length=self.max_episode_length,
            robot=robot_dict(task),
        )
        self.episode_length_buf = torch.zeros(self.num_envs, dtype=torch.long, device=self.device)
        self._success_buf = torch.zeros(self.num_envs, dtype=torch.bool, device=self.device)
        self._all_ids = torch.arange(self.num_envs, device=self.device)
        self._shard = shard
        self._generator = torch.Generator(device=self.device)
        self._generator.manual_seed(shard.own_seed(seed))
        self._joint_generator = self._generator
        if shard.count > 1:
            self._joint_generator = torch.Generator(device=self.device).manual_seed(seed)
        task.bind(self.num_envs, self.device)
        self._reward_sums = torch.zeros(0, self.num_envs, device=self.device)
        self._reset_rows(self._all_ids)
        self._reward_names = list(task.reward(simulator.state()))
        self._reward_sums = torch.zeros(len(self._reward_names), self.num_envs, device=self.device)
        self._check_terms()
        self._obs = self._observe()
        self._check_finite()

    def reset(self, env_ids: torch.Tensor | None = None) -> TensorDict:
        """Start a new episode in the rows ``env_ids`` (all by default) and return the observations of all.

        Raises:
            ConfigurationError: An id is out of range.
        """
        if env_ids is None:
            rows = self._all_ids
        else:
            rows = torch.unique(torch.as_tensor(env_ids, dtype=torch.long, device=self.device))
            if rows.numel() and (int(rows[0]) < 0 or int(rows[-1]) >= self.num_envs):
                raise ConfigurationError(f"env_ids {rows.tolist()} are not all in 0 .. {self.num_envs - 1}.")
        if rows.numel():
            self._reset_rows(rows)
            self._obs = self._observe()
        return self._copy(self._obs)

    def get_observations(self) -> TensorDict:
        """Return a copy of the current observations."""
        return self._copy(self._obs)

    def step(self, actions: torch.Tensor) -> tuple[TensorDict, torch.Tensor, torch.Tensor, dict]:
        """Apply the actions, clamped to [-1, 1], shape ``(num_envs, num_actions)``; see ``VecEnv``.

        Raises:
            ValueError: The shape is wrong.
            BrokenPolicyError: An action is not a number; the message names the envs.
        """
        diverged = self.simulator.step(check_actions(actions, self.num_envs, self.num_actions, self.device))
        self.episode_length_buf += 1
        state = self.simulator.state()
        self.task.on_step(state, self._generator)
        obs = self._observe()
        diverged, terms = self._without_diverged(obs, self._reward_terms(state), diverged)
        rewards = terms.sum(0)
        self._reward_sums += terms
        terminated = self.task.terminated(state) & ~diverged
        time_outs = ((self.episode_length_buf >= self.max_episode_length) | diverged) & ~terminated
        reached = self.task.success(state)
        if reached is not None:
            self._success_buf |= reached & ~diverged
        dones = terminated | time_outs
        extras: dict[str, Any] = {"terminated": terminated, "time_outs": time_outs, "diverged": diverged, "log": {}}
        if reached is not None:
            extras["success"] = self._success_buf.clone()
        rows = dones.nonzero().flatten()
        if rows.numel() == 0:
            self._obs, handed_out = obs, self._copy(obs)
            final_obs = handed_out
        else:
            final_obs = self._final_obs(obs, diverged)
            extras["log"] = self._log(rows, terminated, time_outs, diverged, reached is not None)
            self._reset_rows(rows)
            self._obs = self._observe()
            handed_out = self._copy(self._obs)
        if self.provides_final_obs:
            extras["final_obs"] = final_obs
        return handed_out, rewards, dones.long(), extras

    def state_dict(self) -> dict[str, Any]:
        """Return simulator, task, counters, sums and generator: all that a bit-exact continuation needs."""
        joint = {} if self._shard.count == 1 else {"joint_generator": self._joint_generator.get_state()}
        return {
            "simulator": self.simulator.state_dict(),
            "task": self.task.state_dict(),
            "episode_length_buf": self.episode_length_buf.clone(),
            "success_buf": self._success_buf.clone(),
            "reward_sums": self._reward_sums.clone(),
            "obs": {name: self._obs[name].clone() for name in self.spec.observations},
            "generator": self._generator.get_state(),
            **joint,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned.

        Raises:
            ConfigurationError: The state is of another number of envs.
        """
        lengths = state["episode_length_buf"]
        if lengths.shape != (self.num_envs,):
            raise ConfigurationError(f"The state holds {len(lengths)} envs, this env {self.num_envs}.")
        self.simulator.load_state_dict(state["simulator"])
        self.task.load_state_dict(state["task"])
        self.episode_length_buf = lengths.to(self.device, copy=True)
        self._success_buf = state["success_buf"].to(self.device, copy=True)
        self._reward_sums = state["reward_sums"].to(self.device, copy=True)
        self._obs = self._pack({name: value.to(self.device, copy=True) for name, value in state["obs"].items()})
        self._generator.set_state(state["generator"].cpu())
        if self._shard.count > 1:
            self._joint_generator.set_state(state["joint_generator"].cpu())

    def robot_state(self) -> RobotState:
        """Return the state of the robots now; see ``Simulator.state``."""
        return self.simulator.state()

    def close(self) -> None:
        """Free the simulator."""
        self.simulator.close()

    def _reward_terms(self, state: RobotState) -> torch.Tensor:
        """Return the reward terms of this step, shape (num_terms, num_envs)."""
        terms = list(self.task.reward(state).values())
        return torch.stack(terms) if terms else torch.zeros_like(self._reward_sums)

    def _without_diverged(
        self, obs: TensorDict, terms: torch.Tensor, diverged: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add rows with a non-finite observation or reward to ``diverged``; return it and the rewards, 0 there."""
        # Groups made of the same terms are one tensor.
        values = list({id(value): value for value in map(obs.get, self.spec.observations)}.values())
        # A sum is not finite where any summand is not; one number tells that nothing broke, as almost always.
        total = torch.stack([value.sum() for value in (*values, terms)]).sum()
        if math.isfinite(total.item()) and not diverged.any().item():
            return diverged, terms
        finite = torch.stack([torch.isfinite(value).all(1) for value in (*values, terms.T)]).all(0)
        diverged = diverged | ~finite
        return diverged, terms.masked_fill(diverged, 0.0)

    def _final_obs(self, obs: TensorDict, diverged: torch.Tensor) -> TensorDict:
        """Return the last observations; on diverged rows those of the step before, the last that made sense."""
        if not diverged.any().item():
            return obs
        groups = {
            name: torch.where(diverged.unsqueeze(1), self._obs[name], obs[name]) for name in self.spec.observations
        }
        return self._pack(groups)

    def _log(
        self, rows: torch.Tensor, terminated: torch.Tensor, time_outs: torch.Tensor, diverged: torch.Tensor, goal: bool
    ) -> dict[str, torch.Tensor]:
        """Return the scalars of the episodes that end now: mean sums of the reward terms, counts of the ends."""
        means = self._reward_sums[:, rows].mean(1).unbind()
        return episode_log(
            dict(zip(self._reward_names, means, strict=True)),
            (terminated, time_outs, diverged),
            self.episode_length_buf[rows],
            self._success_buf[rows] if goal else None,
        )

    def _reset_rows(self, rows: torch.Tensor) -> None:
        self.simulator.reset(rows, self._initial_states(len(rows)))
        self.task.on_reset(rows, self._generator)
        self.episode_length_buf[rows] = 0
        self._success_buf[rows] = False
        self._reward_sums[:, rows] = 0.0

    def _initial_states(self, num: int) -> InitialState:
        """Draw where episodes start; for all envs together, as the whole batch would."""
        if num < self.num_envs or self._shard.count == 1:
            return self.task.reset_distribution(num, self._generator)
        whole = self.task.reset_distribution(num * self._shard.count, self._joint_generator)
        return InitialState(**{spec.name: self._shard.own(getattr(whole, spec.name)) for spec in fields(whole)})

    def _observe(self) -> TensorDict:
        state = self.simulator.state()
        groups = join_terms(self.task.observe(state))
        # Simulators hand out live views; features are often a plain slice of one.
        groups["features"] = self.task.features(state).clone()
        return self._pack(groups)

    def _copy(self, obs: TensorDict) -> TensorDict:
        """Return what ``TensorDict.clone`` does, three times as fast."""
        return self._pack({name: obs.get(name).clone() for name in self.spec.observations})

    def _pack(self, groups: dict[str, torch.Tensor]) -> TensorDict:
        return TensorDict(dict(groups), batch_size=[self.num_envs], device=self.device)

    def _check_terms(self) -> None:
        """Compare what the task observes with what it announces."""
        state = self.simulator.state()
        seen = {
            group: {k: tuple(v.shape[1:]) for k, v in terms.items()}
            for group, terms in self.task.observe(state).items()
        }
        seen["features"] = {"features": (self.task.features(state).shape[1],)}
        for group, terms in self.spec.observations.items():
            told: dict[str, tuple[int, ...]] = {term.name: tuple(term.shape) for term in terms}
            if group == "features":
                told = {"features": (_width(terms),)}
            if group not in seen or list(seen[group].items()) != list(told.items()):
                raise ConfigurationError(
                    f"Task {self.spec.task}: group {group!r} announces the terms {told} but observes {seen.get(group)}."
                )

    def _check_finite(self) -> None:
        """Refuse a task whose first observations are not finite; later ones count as diverged physics."""
        for group in self.spec.observations:
            bad = ~torch.isfinite(self._obs[group])
            if bool(bad.any()):
                raise ConfigurationError(
                    f"Task {self.spec.task}: group {group!r} is not finite at the start, in {int(bad.any(1).sum())} of "
                    f"{self.num_envs} envs, columns {bad.any(0).nonzero().flatten().tolist()}; mend the task's terms."
                )


def _width(terms: tuple[TermSpec, ...]) -> int:
    return sum(torch.Size(term.shape).numel() for term in terms)
