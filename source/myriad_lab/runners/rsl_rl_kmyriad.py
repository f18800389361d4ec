"""K-Myriad as an algorithm of RSL-RL's own runner, so that launchers which know that runner alone can host it.

Isaac Lab's, for instance, takes it by name: ``algorithm.class_name =
"myriad_lab.runners.rsl_rl_kmyriad:RslRlKMyriad"``. Our own runner does more: bundles, coverage, recordings.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from tensordict import TensorDict
from torch import nn

from myriad_lab.algorithms.algorithm import Step
from myriad_lab.algorithms.kmyriad import KMyriad, KMyriadCfg
from myriad_lab.errors import ConfigurationError
from myriad_lab.networks.population import PopulationActor
from myriad_lab.runners.mean_log import to_floats
from myriad_lab.tasks.registry import apply_overrides

_GROUPS = ("policy", "features")


class RslRlKMyriad:
    """What RSL-RL's ``OnPolicyRunner`` asks of an algorithm; one rollout is one whole episode of every env.

    The env must give a group ``features``, and the final observations of episodes in ``extras["final_obs"]``.
    """

    def __init__(self, algorithm: KMyriad, env: Any) -> None:
        self.algorithm = algorithm
        self.learning_rate = algorithm.cfg.learning_rate
        self._env = env
        self._policy = PopulationPolicy(algorithm.actor)
        self._step: tuple[TensorDict, torch.Tensor] | None = None

    @staticmethod
    def construct_algorithm(obs: TensorDict, env: Any, cfg: dict[str, Any], device: str) -> RslRlKMyriad:
        """Build population and algorithm.

        Args:
            obs: Observations of all envs, with the groups ``policy`` and ``features``.
            env: RSL-RL's view of the env.
            cfg: RSL-RL's configuration; ``cfg["algorithm"]`` has ``num_policies`` and, as ``settings``, fields of
                ``KMyriadCfg`` by name.
            device: Where to compute.

        Raises:
            ConfigurationError: The env lacks a group, the rollout is no whole episode, or a setting is wrong.
        """
        num_policies, seed = int(cfg["algorithm"]["num_policies"]), int(cfg.get("seed") or 0)
        kmyriad = apply_overrides(KMyriadCfg(), cfg["algorithm"].get("settings", {}))
        steps = int(env.max_episode_length)
        if cfg["num_steps_per_env"] != steps:
            raise ConfigurationError(
                f"agent.num_steps_per_env={cfg['num_steps_per_env']}; K-Myriad learns from whole episodes, expected "
                f"{steps}"
            )
        if "features" not in obs.keys():  # noqa: SIM118 - a TensorDict iterates over rows
            raise ConfigurationError(
                f"the env observes {list(obs.keys())}; K-Myriad needs a group 'features', which tasks of Myriad Lab "
                "have; for others use `myriad train --backend isaaclab`, which adds one"
            )
        sizes = {name: int(obs[name].shape[1]) for name in _GROUPS}
        actor = PopulationActor(sizes["policy"], env.num_actions, num_policies, kmyriad.actor).to(device).train()
        return RslRlKMyriad(KMyriad(actor, kmyriad, env.num_envs, sizes, device, seed, num_steps=steps), env)

    def act(self, obs: TensorDict) -> torch.Tensor:
        """Draw actions in [-1, 1]; before the first step of a rollout, all envs start anew together."""
        # RSL-RL collects in inference mode: the env's buffers are of that mode, and can be reset in it alone.
        if self.algorithm.storage.position == 0 and bool((self._env.episode_length_buf != 0).any()):
            obs = self._env.reset()[0].to(self.algorithm.device)
        # Ours are not, since the update writes to them.
        with torch.inference_mode(False), torch.no_grad():
            obs = obs.clone()
            self._policy.observed = obs["policy"]
            actions = self.algorithm.act(obs)
            self._step = obs, actions
            return actions

    def process_env_step(
        self, obs: TensorDict, rewards: torch.Tensor, dones: torch.Tensor, extras: Mapping[str, Any]
    ) -> None:
        """Store one env step.

        Raises:
            ConfigurationError: ``act`` was not called before, or an episode ended without a final observation.
        """
        if self._step is None:
            raise ConfigurationError("process_env_step() stores the actions drawn by act(); call act() first")
        with torch.inference_mode(False), torch.no_grad():
            ended = dones.bool().clone()
            final = extras.get("final_obs")
            if final is None and bool(ended.any()):
                raise ConfigurationError(
                    "an episode ended without a final observation; add env.compute_final_obs=true to the command line"
                )
            next_obs = obs.clone()
            last = next_obs.clone()
            if final is not None:
                last.update({name: final[name].clone() for name in _GROUPS})
            time_outs = extras.get("time_outs", ended).bool().clone() & ended
            # What somebody ended in a viewer has no final observation: the env itself did not decide on it.
            valid = ~ended | self._env.unwrapped.reset_buf.bool()
            if "diverged" in extras:
                valid &= ~extras["diverged"]
            before, actions = self._step
            self.algorithm.observe(
                Step(before, actions, rewards.clone(), ended & ~time_outs, time_outs, next_obs, last, valid)
            )
            self._step = None

    def compute_returns(self, obs: TensorDict) -> None:
        """Do nothing: the update reckons the rewards by itself."""

    def update(self) -> dict[str, float]:
        """Learn from one rollout; returns the metrics."""
        metrics = to_floats(self.algorithm.update())
        self.learning_rate = metrics["Policy/learning_rate"]
        return metrics

    def train_mode(self) -> None:
        """Let the normaliser learn."""
        self.algorithm.actor.train()

    def eval_mode(self) -> None:
        """Keep the normaliser as it is."""
        self.algorithm.actor.eval()

    def save(self) -> dict[str, Any]:
        """Return all that ``load`` needs."""
        return self.algorithm.state_dict()

    def load(self, state: dict[str, Any], load_cfg: dict[str, Any] | None = None, strict: bool = True) -> bool:
        """Restore what ``save`` returned; the counter of iterations goes on.

        Raises:
            CheckpointError: It belongs to other networks.
            ConfigurationError: Only a part of it is wanted.
        """
        if load_cfg is not None:
            raise ConfigurationError(
                f"load_cfg={load_cfg}: K-Myriad is loaded as a whole; leave --no-resume_optimizer_state out"
            )
        self.algorithm.load_state_dict({key: value for key, value in state.items() if key not in ("iter", "infos")})
        return True

    def get_policy(self) -> PopulationPolicy:
        """Return the population as one policy over all envs."""
        return self._policy

    def broadcast_parameters(self) -> None:
        """Refuse.

        Raises:
            ConfigurationError: Always: several GPUs share no particles through this runner.
        """
        raise ConfigurationError("K-Myriad in RSL-RL's runner works in one process; leave --distributed out")


class PopulationPolicy(nn.Module):
    """All heads as one policy: env ``e`` is driven by head ``e // (num_envs // num_policies)``."""

    def __init__(self, actor: PopulationActor) -> None:
        super().__init__()
        self.actor = actor
        self.observed = torch.zeros(actor.num_policies, actor.num_obs)
        """Observations acted on last, (num_envs, num_obs)."""

    @property
    @torch.no_grad()
    def output_std(self) -> torch.Tensor:
        """Standard deviations before squashing of the actions drawn last, for the log."""
        return self.actor(self.observed.unflatten(0, (self.actor.num_policies, -1)))[1].exp()

    def forward(self, obs: TensorDict) -> torch.Tensor:
        """Return the deterministic actions, shape (num_envs, num_actions)."""
        return self.actor.act(obs["policy"], deterministic=True).action

    def reset(self, dones: torch.Tensor | None = None) -> None:
        """Do nothing: there is no memory."""

    def as_jit(self) -> nn.Module:
        """Return head 0, ``myriad export`` has the others."""
        return self.actor.single(0)

    def as_onnx(self, verbose: bool = False) -> nn.Module:
        """Return head 0 with what RSL-RL's exporter asks for."""
        policy: Any = self.actor.single(0)
        policy.input_names, policy.output_names = ["obs"], ["actions"]
        policy.get_dummy_inputs = lambda: (torch.zeros(1, self.actor.num_obs),)
        return policy
