"""What stands between RSL-RL's PPO and our envs and networks: an env view, an actor model and its way back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from rsl_rl.env import VecEnv as RslVecEnv
from tensordict import TensorDict
from torch import nn
from torch.distributions import Normal, kl_divergence

from myriad_lab.algorithms.algorithm import Step
from myriad_lab.envs.contract import VecEnv
from myriad_lab.errors import ConfigurationError
from myriad_lab.networks.population import PopulationActor, PopulationActorCfg


class RslEnvView(RslVecEnv):
    """Our env as RSL-RL sees it: only the groups its networks read, and actions brought to [-1, 1].

    A diverged env is reported as a time-out without reward: its last observation before the divergence is a real one,
    and with RSL-RL's bootstrap (``gamma * V(obs before the step)``) the row then carries next to no signal.

    Args:
        env: The env to wrap.
        groups: Observation groups to pass on.
        squash: ``tanh`` for actors with pre-squash outputs, ``clip`` for plain ones.
        on_step: Told of each step and the env's ``extras``.
    """

    def __init__(
        self,
        env: VecEnv,
        groups: list[str],
        squash: str,
        on_step: Callable[[Step, dict[str, Any]], None] | None = None,
    ) -> None:
        self.env = env
        self.groups = groups
        self.squash = squash
        self.on_step = on_step
        self._obs = env.get_observations()
        self.num_envs = env.num_envs
        self.num_actions = env.num_actions
        self.max_episode_length = env.max_episode_length
        self.device = env.device
        self.cfg = env.cfg

    @property
    def episode_length_buf(self) -> torch.Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Control steps since the last reset, shape (num_envs,)."""
        return self.env.episode_length_buf

    @episode_length_buf.setter
    def episode_length_buf(self, value: torch.Tensor) -> None:
        """Set them, as RSL-RL does to spread the ends of the first episodes."""
        self.env.episode_length_buf.copy_(value)

    def get_observations(self) -> TensorDict:
        """Return the groups asked for."""
        self._obs = self.env.get_observations()
        return self._obs.select(*self.groups)

    def step(self, actions: torch.Tensor) -> tuple[TensorDict, torch.Tensor, torch.Tensor, dict]:
        """Squash the actions, step the env; the keys of ``extras`` are those RSL-RL reads."""
        bounded = torch.tanh(actions) if self.squash == "tanh" else actions.clamp(-1.0, 1.0)
        obs, rewards, dones, extras = self.env.step(bounded)
        diverged = extras.get("diverged", torch.zeros_like(dones, dtype=torch.bool))
        rewards = rewards.masked_fill(diverged, 0.0)
        if self.on_step is not None:
            ends = extras["terminated"], extras["time_outs"]
            self.on_step(Step(self._obs, bounded, rewards, *ends, obs, extras.get("final_obs"), ~diverged), extras)
        self._obs = obs
        return obs.select(*self.groups), rewards, dones, extras


class RslRecorder:
    """Stands where RSL-RL keeps its logger: remembers what it is told, prints nothing and writes nothing."""

    writer = None
    log_dir = None

    def __init__(self) -> None:
        self.last: dict[str, Any] = {}
        """What RSL-RL reported of the last iteration."""

    def init_logging_writer(self) -> None:
        """Open nothing."""

    def process_env_step(self, *args: Any) -> None:
        """Leave the bookkeeping of episodes to the env view."""

    def log(self, **values: Any) -> None:
        """Keep the numbers of an iteration."""
        self.last = values


class HeadModel(nn.Module):
    """One head of a population as an RSL-RL model: a Gaussian over the actions before tanh.

    It offers what ``rsl_rl.models.MLPModel`` offers to PPO. The likelihood ratio needs no tanh Jacobian, since RSL-RL
    stores the actions as the model gave them, before the env view squashes them.

    Args:
        obs: An observation, to find the width of the groups.
        obs_groups: Network name -> observation groups.
        obs_set: Name of this network in ``obs_groups``.
        output_dim: Number of actions.
        actor: A population of one policy.
        min_log_std: Lower bound of the log-std, so that a nearly deterministic head can still explore.

    Raises:
        ConfigurationError: Where the population has several heads or its sizes do not fit the env.
    """

    is_recurrent: bool = False

    def __init__(
        self,
        obs: TensorDict,
        obs_groups: dict[str, list[str]],
        obs_set: str,
        output_dim: int,
        actor: PopulationActor,
        min_log_std: float = -3.0,
    ) -> None:
        super().__init__()
        self.obs_groups = obs_groups[obs_set]
        self.obs_dim = sum(obs[group].shape[-1] for group in self.obs_groups)
        if (actor.num_policies, actor.num_obs, actor.num_actions) != (1, self.obs_dim, output_dim):
            raise ConfigurationError(
                f"PPO starts from one policy with {self.obs_dim} observations and {output_dim} actions; the head has "
                f"{actor.num_policies} policies, {actor.num_obs} observations and {actor.num_actions} actions."
            )
        self.actor = actor
        self.min_log_std = min_log_std
        self._distribution: Normal | None = None

    def forward(
        self,
        obs: TensorDict,
        masks: torch.Tensor | None = None,
        hidden_state: Any = None,
        stochastic_output: bool = False,
    ) -> torch.Tensor:
        """Return actions before tanh, (batch, num_actions): a sample, or the mean."""
        mean, log_std = self.actor(self._flat(obs).unsqueeze(0))
        if not stochastic_output:
            return mean[0]
        std = log_std[0].clamp(min=self.min_log_std).exp().expand_as(mean[0])
        distribution = Normal(mean[0], std, validate_args=False)
        self._distribution = distribution
        return distribution.sample()

    @property
    def distribution(self) -> Normal:
        """The distribution of the last stochastic call."""
        if self._distribution is None:
            raise RuntimeError("The model has not been called with stochastic_output=True yet.")
        return self._distribution

    @property
    def output_mean(self) -> torch.Tensor:
        """Mean of the last distribution, (batch, num_actions)."""
        return self.distribution.mean

    @property
    def output_std(self) -> torch.Tensor:
        """Standard deviation of the last distribution, (batch, num_actions)."""
        return self.distribution.stddev

    @property
    def output_entropy(self) -> torch.Tensor:
        """Entropy before tanh [nat], (batch,)."""
        return self.distribution.entropy().sum(-1)

    @property
    def output_distribution_params(self) -> tuple[torch.Tensor, ...]:
        """Mean and standard deviation."""
        return self.output_mean, self.output_std

    def get_output_log_prob(self, outputs: torch.Tensor) -> torch.Tensor:
        """Return the log-probability of actions before tanh, (batch,)."""
        return self.distribution.log_prob(outputs).sum(-1)

    def get_kl_divergence(
        self, old_params: tuple[torch.Tensor, ...], new_params: tuple[torch.Tensor, ...]
    ) -> torch.Tensor:
        """Return KL(old || new) [nat], (batch,)."""
        old, new = (Normal(*params, validate_args=False) for params in (old_params, new_params))
        return kl_divergence(old, new).sum(-1)

    def update_normalization(self, obs: TensorDict) -> None:
        """Leave the head's observation normaliser as pre-training left it: changing it would change the policy."""

    def reset(self, dones: torch.Tensor | None = None, hidden_state: Any = None) -> None:
        """Nothing to reset: the model has no memory."""

    def get_hidden_state(self) -> None:
        """Return ``None``: the model has no memory."""
        return

    def _flat(self, obs: TensorDict) -> torch.Tensor:
        return torch.cat([obs[group] for group in self.obs_groups], dim=-1)


@torch.no_grad()
def population_from_mlp(model: Any, activation: str) -> PopulationActor:
    """Turn RSL-RL's Gaussian MLP actor into a population of one, equal up to rounding.

    The observation normaliser, ``(obs - mean) / (std + eps)`` without clip, is folded into the first layer.

    Args:
        model: An ``rsl_rl.models.MLPModel`` with a Gaussian of state-independent log-std.
        activation: Name of its activation.

    Returns:
        A population of one policy with ``squash="clip"``.
    """
    linears = [layer for layer in model.mlp if isinstance(layer, nn.Linear)]
    hidden, last = linears[:-1], linears[-1]
    log_std = model.distribution.log_std_param
    low, high = min(-5.0, log_std.min().item() - 1.0), max(2.0, log_std.max().item() + 1.0)
    cfg = PopulationActorCfg(
        trunk=[layer.out_features for layer in hidden],
        activation=activation,
        adapter="none",
        state_dependent_std=False,
        log_std_range=[low, high],
        squash="clip",
    )
    with torch.random.fork_rng(devices=[]):  # a checkpoint must not move the generator that training draws from
        actor = PopulationActor(hidden[0].in_features, last.out_features, 1, cfg).to(last.weight.device)
    targets = [layer for layer in actor.trunk if isinstance(layer, nn.Linear)]
    for source, target in zip(hidden, targets, strict=True):
        target.weight.copy_(source.weight)
        target.bias.copy_(source.bias)
    if model.obs_normalization:
        normalizer = model.obs_normalizer
        scaled = hidden[0].weight / (normalizer.std + normalizer.eps)
        targets[0].weight.copy_(scaled)
        targets[0].bias.copy_(hidden[0].bias - scaled @ normalizer.mean)
    actor.heads.out_weight.copy_(last.weight.T.unsqueeze(0))
    actor.heads.out_bias.copy_(last.bias)
    assert actor.raw_log_std is not None
    actor.raw_log_std.copy_(torch.atanh(2.0 * (log_std - low) / (high - low) - 1.0))
    return actor
