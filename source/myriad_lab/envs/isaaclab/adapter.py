"""Any single-agent env of Isaac Lab 3.0 as our ``VecEnv``."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from tensordict import TensorDict

from myriad_lab.envs.contract import VecEnv
from myriad_lab.envs.env_parts import check_actions
from myriad_lab.envs.isaaclab.cfg import IsaacLabCfg
from myriad_lab.envs.isaaclab.features import Features, default_features
from myriad_lab.envs.isaaclab.spec import action_bounds, make_spec, num_actions, task_of
from myriad_lab.envs.robot_state import RobotState
from myriad_lab.errors import ConfigurationError

log = logging.getLogger(__name__)

Groups = dict[str, torch.Tensor]


class IsaacLabEnv(VecEnv):
    """Reads the five-tuple of the inner env, so that ends and time-outs stay apart; see ``VecEnv`` for what comes back.

    Isaac Lab hands out live buffers: everything that leaves here is a copy. Its ``extras["final_obs"]`` stays there
    when it is out of date, and so does ``extras["log"]``: both are read on steps with ends alone. A row that is not
    finite, and an episode that somebody ended in the viewer, are reported as ``diverged``, and start anew.

    A snapshot of a simulator of Isaac Lab is not to be had: ``load_state_dict`` restores counters and random numbers,
    and starts all episodes anew.
    """

    device: torch.device
    resumes_episodes = False

    def __init__(self, env: Any, *, task_id: str, cfg: IsaacLabCfg, cleanup: ExitStack | None = None) -> None:
        """Wrap an env that has just been made, and start the first episodes.

        Args:
            env: What ``gymnasium.make`` returned; its ``cfg.compute_final_obs`` decides on ``provides_final_obs``.
            task_id: Registered id.
            cfg: Features and bound of the actions.
            cleanup: Closed after the env.

        Raises:
            ConfigurationError: A group of observations is no row of numbers, or a feature is not there.
        """
        self._gym_env: Any = env
        self.inner: Any = env.unwrapped
        """The env of Isaac Lab."""
        self._cleanup = cleanup or ExitStack()
        self.num_envs = int(self.inner.num_envs)
        self.device = torch.device(self.inner.device)
        self.cfg = self.inner.cfg
        self.max_episode_length = int(self.inner.max_episode_length)
        self.num_actions = num_actions(self.inner)
        self.provides_final_obs = bool(self.inner.cfg.compute_final_obs)
        bounds = action_bounds(self.inner, cfg)
        self._action_bound = torch.tensor(bounds, device=self.device)
        self._has_history = _has_history(self.inner)
        env.reset()
        features: Features | None = None
        names = cfg.features or default_features(self.inner)
        if names:
            features = Features(self.inner, names)
            _add_features(self.inner, features)
            env.reset()
        self._check_groups(self.inner.obs_buf)
        self.spec = make_spec(self.inner, task_id, features, bounds)
        self._groups = tuple(self._rows(self.inner.obs_buf))
        self._obs = self._pack(self._rows(self.inner.obs_buf))
        if not self._finite(self._obs).all():
            raise ConfigurationError(
                f"{task_id}: observations are not finite from the start; look at the robot's asset"
            )

    @property
    def task(self) -> Any:
        """Task of ours that the env runs, ``None`` for a task of Isaac Lab."""
        return task_of(self.inner)

    @property
    def episode_length_buf(self) -> torch.Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Control steps since the start of each episode, long ``(num_envs,)``; may be set."""
        return self.inner.episode_length_buf

    @episode_length_buf.setter
    def episode_length_buf(self, value: torch.Tensor) -> None:
        """Set the control steps since the start of each episode."""
        self.inner.episode_length_buf = value

    def robot_state(self) -> RobotState:
        """Return the state of the robots of a task of ours.

        Raises:
            ConfigurationError: The task is one of Isaac Lab.
        """
        if self.task is None:
            raise ConfigurationError(f"{self.spec.task} is no task of Myriad Lab, its robot's state is not known here")
        return self.inner.robot_state()

    def reset(self, env_ids: torch.Tensor | None = None) -> TensorDict:
        """Start a new episode in the rows ``env_ids`` (all by default) and return the observations of all.

        Raises:
            ConfigurationError: An id is out of range, or some rows of an env whose observations have a history, which
                Isaac Lab cannot compute for some rows only.
        """
        with torch.inference_mode(False), torch.no_grad():
            return self._reset(env_ids)

    def _reset(self, env_ids: torch.Tensor | None) -> TensorDict:
        if env_ids is None:
            self._gym_env.reset()
            self._obs = self._pack(self._rows(self.inner.obs_buf))
            return self.get_observations()
        rows = torch.unique(torch.as_tensor(env_ids, dtype=torch.long, device=self.device))
        if rows.numel() and (int(rows[0]) < 0 or int(rows[-1]) >= self.num_envs):
            raise ConfigurationError(f"env_ids {rows.tolist()} are not all in 0 .. {self.num_envs - 1}.")
        if rows.numel():
            self._restart(rows)
        return self.get_observations()

    def get_observations(self) -> TensorDict:
        """Return a copy of the current observations."""
        return self._copy(self._obs)

    def step(self, actions: torch.Tensor) -> tuple[TensorDict, torch.Tensor, torch.Tensor, dict]:
        """Apply the actions, clamped to [-1, 1], shape ``(num_envs, num_actions)``; see ``VecEnv``.

        Raises:
            ValueError: The shape is wrong.
            BrokenPolicyError: An action is not a number; the message names the envs.
            ConfigurationError: The task loses the final observations of its episodes.
        """
        # A caller in inference mode must leave no tensor of its kind in the buffers of the env.
        with torch.inference_mode(False), torch.no_grad():
            return self._step(actions)

    def state_dict(self) -> dict[str, Any]:
        """Return the number of envs, the counter that curricula go by, and the random numbers."""
        state: dict[str, Any] = {
            "num_envs": self.num_envs,
            "common_step_counter": int(self.inner.common_step_counter),
            "torch_rng": torch.get_rng_state(),
        }
        if self.device.type == "cuda":
            state["cuda_rng"] = torch.cuda.get_rng_state(self.device)
        if self.task is not None:  # tasks of ours draw from a generator of their own
            state["task_rng"] = self.inner.generator.get_state()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore counter and random numbers, and start all episodes anew.

        Raises:
            ConfigurationError: The state is of another number of envs.
        """
        if state["num_envs"] != self.num_envs:
            raise ConfigurationError(f"The state holds {state['num_envs']} envs, this env {self.num_envs}.")
        log.warning("Isaac Lab's simulators cannot be restored: all episodes start anew")
        self.inner.common_step_counter = int(state["common_step_counter"])
        torch.set_rng_state(state["torch_rng"].cpu())
        if self.device.type == "cuda" and "cuda_rng" in state:
            torch.cuda.set_rng_state(state["cuda_rng"].cpu(), self.device)
        if self.task is not None:
            self.inner.generator.set_state(state["task_rng"].cpu())
        self.reset()

    def close(self) -> None:
        """Stop the simulator; the second call does nothing."""
        if self._gym_env is not None:
            self._gym_env.close()
            self._cleanup.close()
            self._gym_env = None

    def _step(self, actions: torch.Tensor) -> tuple[TensorDict, torch.Tensor, torch.Tensor, dict]:
        action = check_actions(actions, self.num_envs, self.num_actions, self.device)
        _, reward, terminated, time_outs, inner_extras = self._gym_env.step(action * self._action_bound)
        terminated, time_outs = terminated.clone(), time_outs & ~terminated
        ended = terminated | time_outs
        before, obs = self._obs, self._pack(self._rows(self.inner.obs_buf))
        broken = ~(self._finite(obs) & torch.isfinite(reward))
        # Ends that the env did not decide on: somebody asked for them in the viewer, without a final observation.
        diverged = broken | (ended & ~self.inner.reset_buf)
        if "diverged" in inner_extras:  # our own tasks look for themselves
            diverged |= inner_extras["diverged"]
        any_end, any_broken, own_end = torch.stack((ended.any(), broken.any(), self.inner.reset_buf.any())).tolist()
        last = obs
        if own_end and self.provides_final_obs:
            if "final_obs" not in inner_extras:
                raise ConfigurationError(
                    f"{self.spec.task}: an episode ended without a final observation although compute_final_obs is "
                    "set; the task must keep what Isaac Lab writes into its extras, or be trained by PPO alone"
                )
            last = self._pack(self._rows(inner_extras["final_obs"]))
            diverged |= ended & ~self._finite(last)
        log_of_ends = dict(inner_extras.get("log") or inner_extras.get("episode") or {}) if any_end else {}
        self._obs = self._copy(obs) if last is obs else obs
        if any_broken:
            diverged |= self._mend(broken & (~ended | ~self._finite(obs)))
        extras: dict[str, Any] = {
            "terminated": terminated & ~diverged,
            "time_outs": time_outs | diverged,
            "diverged": diverged,
            "log": _plain_log(log_of_ends, diverged) if any_end or any_broken else {},
        }
        if "success" in inner_extras:
            extras["success"] = inner_extras["success"].clone()
        if self.provides_final_obs:
            extras["final_obs"] = self._final_obs(last, before, diverged) if any_end or any_broken else last
        dones = extras["terminated"] | extras["time_outs"]
        return self.get_observations(), reward.float().masked_fill(diverged, 0.0), dones.long(), extras

    def _restart(self, rows: torch.Tensor) -> None:
        """Start new episodes in some rows; the observations of the others stay."""
        if self._has_history and len(rows) < self.num_envs:
            raise ConfigurationError(
                f"{self.spec.task} has observations with a history or a delay, which Isaac Lab cannot compute for some "
                "envs alone; reset all envs, or set history_length and the delays of its observation terms to 0"
            )
        restart_rows(self.inner, rows)
        fresh = self._rows(_compute(self.inner))
        for name in self._groups:
            self._obs[name][rows] = fresh[name][rows]

    def _mend(self, bad: torch.Tensor) -> torch.Tensor:
        """Start the rows anew whose state is not finite, all rows where observations have a history; return which.

        Raises:
            FloatingPointError: They are not finite after it either.
        """
        if self._has_history and bool(bad.any()):
            bad = torch.ones_like(bad)
        rows = bad.nonzero().flatten()
        log.debug("%d of %d envs diverged", len(rows), self.num_envs)
        if len(rows):
            self._restart(rows)
        still = (~self._finite(self._obs)).nonzero().flatten().tolist()
        if still:
            raise FloatingPointError(
                f"{self.spec.task}: the observations of envs {still[:8]} are not finite, after a reset too; take a "
                "smaller physics step, or another engine with physics=NAME"
            )
        return bad

    def _rows(self, groups: Mapping[str, torch.Tensor]) -> Groups:
        """Return copies of the groups, float32, with ``critic``."""
        rows = {name: groups[name].detach().to(torch.float32, copy=True) for name in groups}
        if "critic" not in rows:
            rows["critic"] = rows["policy"].clone()
        return rows

    def _copy(self, obs: TensorDict) -> TensorDict:
        """Return what ``TensorDict.clone`` does, three times as fast."""
        return self._pack({name: obs.get(name).clone() for name in self._groups})

    def _pack(self, rows: Groups) -> TensorDict:
        return TensorDict(rows, batch_size=[self.num_envs], device=self.device)

    def _finite(self, obs: TensorDict) -> torch.Tensor:
        """Return where every observation is finite, bool ``(num_envs,)``."""
        return torch.stack([torch.isfinite(obs[name]).all(1) for name in self._groups]).all(0)

    def _final_obs(self, last: TensorDict, before: TensorDict, diverged: torch.Tensor) -> TensorDict:
        """Return the last observations; on diverged rows those of the step before, the last that made sense."""
        if not bool(diverged.any()):
            return last
        kept = diverged.unsqueeze(1)
        return self._pack({name: torch.where(kept, before[name], last[name]) for name in self._groups})

    def _check_groups(self, groups: Mapping[str, Any]) -> None:
        """Refuse observations that are no rows of numbers."""
        if "policy" not in groups:
            raise ConfigurationError(f"the observations have the groups {list(groups)}; expected one called 'policy'")
        for name, value in groups.items():
            if not isinstance(value, torch.Tensor) or value.dim() != 2:
                shape = tuple(value.shape) if isinstance(value, torch.Tensor) else "a group of single terms"
                raise ConfigurationError(
                    f"observation group {name!r} is {shape}; expected rows (num_envs, size). Images are not supported; "
                    "single terms are joined with env.observations.<group>.concatenate_terms=True"
                )


def restart_rows(env: Any, rows: torch.Tensor) -> None:
    """Start new episodes in some rows of an env of Isaac Lab, as far as its next observations see it."""
    env._reset_idx(rows.int())
    env.scene.write_data_to_sim()
    env.sim.forward()


def _plain_log(log_of_ends: Mapping[str, Any], diverged: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return what the env logged of the episodes that have ended, detached, and how many diverged."""
    entries = {
        name: value.detach().clone() if isinstance(value, torch.Tensor) else torch.tensor(float(value))
        for name, value in log_of_ends.items()
    }
    return entries | {"Episode_Termination/diverged": diverged.sum().float()}


def _compute(env: Any) -> Mapping[str, torch.Tensor]:
    """Return the observations now, without advancing a history."""
    manager = getattr(env, "observation_manager", None)
    return env._compute_observations() if manager is None else manager.compute()


def _add_features(env: Any, features: Features) -> None:
    """Let every computation of observations, that of the final ones included, add the group ``features``."""
    manager = getattr(env, "observation_manager", None)
    owner, name = (env, "_compute_observations") if manager is None else (manager, "compute")
    compute: Callable[..., Mapping[str, torch.Tensor]] = getattr(owner, name)

    def with_features(*args: Any, **kwargs: Any) -> Groups:
        groups = dict(compute(*args, **kwargs))
        groups["features"] = features(groups)
        return groups

    setattr(owner, name, with_features)


def _has_history(env: Any) -> bool:
    manager = getattr(env, "observation_manager", None)
    if manager is None:
        return False
    terms = [cfg for group in manager._group_obs_term_cfgs.values() for cfg in group]
    return any(cfg.history_length or cfg.delay_max_lag for cfg in terms)
