"""A population of policies in one network: shared trunk, one head per policy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import nn

from myriad_lab.errors import ConfigurationError
from myriad_lab.functional.collective import ALONE, Collective
from myriad_lab.networks.distributions import TanhGaussian
from myriad_lab.networks.heads import StackedHeads
from myriad_lab.networks.mlp import MLP
from myriad_lab.networks.normalizer import RunningNormalizer
from myriad_lab.networks.stacked import collect_state


@dataclass
class PopulationActorCfg:
    """Shape of a population network: trunk, adapters and heads of K-Myriad; the noise does not depend on the state."""

    trunk: list[int] = field(default_factory=lambda: [512, 256])
    """Widths of the layers shared by all policies."""
    activation: str = "relu"
    """Activation of trunk and adapters: relu, tanh, elu, silu or gelu."""
    adapter: str = "full"
    """Per-head adapter: full, film, low_rank or none; see ``StackedHeads``."""
    adapter_dim: int = 256
    """Width of the adapter."""
    adapter_rank: int = 16
    """Rank of the ``low_rank`` adapter."""
    mean_gain: float = 1.0
    """Xavier gain of the mean layer; below 1 the policies start closer to a zero mean action."""
    state_dependent_std: bool = False
    """Whether the standard deviation is a head of the network, or one learned vector per policy."""
    log_std_range: list[float] = field(default_factory=lambda: [-5.0, 2.0])
    """Bounds of the log standard deviation, before the squash."""
    init_log_std: float = 0.0
    """Log standard deviation at the start (of an observation that the heads map to zero)."""
    squash: str = "tanh"
    """How actions are brought into [-1, 1]: tanh or clip."""
    obs_normalization: bool = False
    """Whether observations pass a running normaliser."""

    def validate(self) -> None:
        """Raise ``ConfigurationError`` where a value is out of range."""
        if len(self.log_std_range) != 2 or not self.log_std_range[0] < self.log_std_range[1]:
            raise ConfigurationError(f"log_std_range={self.log_std_range} must be [low, high] with low < high")
        low, high = self.log_std_range
        if not low < self.init_log_std < high:
            raise ConfigurationError(f"init_log_std={self.init_log_std} must lie inside log_std_range={[low, high]}")
        if self.squash not in ("tanh", "clip"):
            raise ConfigurationError(f"squash={self.squash!r} is unknown; use 'tanh' or 'clip'")
        if not self.trunk:
            raise ConfigurationError("trunk=[] has no layer; give at least one width, e.g. [64]")
        for name in ("adapter_dim", "adapter_rank"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"{name}={getattr(self, name)}; expected at least 1")


class PolicySample(NamedTuple):
    """Actions drawn for a batch of envs."""

    action: torch.Tensor
    """Actions in [-1, 1], shape (num_envs, num_actions)."""
    pre_squash: torch.Tensor
    """The same actions before the squash, shape (num_envs, num_actions)."""
    log_prob: torch.Tensor
    """Log density of ``pre_squash``, shape (num_envs,)."""


def check_population(num_envs: int, num_policies: int) -> int:
    """Return the number of envs per policy.

    Raises:
        ConfigurationError: If ``num_policies`` is not between 1 and 4096 or does not divide ``num_envs``.
    """
    if not 1 <= num_policies <= 4096:
        raise ConfigurationError(f"num_policies={num_policies} must be between 1 and 4096")
    if num_envs < num_policies or num_envs % num_policies:
        lower = max(num_envs - num_envs % num_policies, num_policies)
        raise ConfigurationError(
            f"num_policies={num_policies} does not divide num_envs={num_envs}: every policy needs the same number of"
            f" envs; use num_envs={lower} or num_envs={lower + num_policies}"
        )
    return num_envs // num_policies


class PopulationActor(nn.Module):
    """``num_policies`` stochastic policies with a shared trunk (K-Myriad, arXiv 2601.18580).

    Env ``e`` belongs to policy ``e // (num_envs // num_policies)``: a batch of envs is a ``(policy, env, ...)`` block,
    and each layer of the heads is one batched matmul over it.
    """

    def __init__(
        self,
        num_obs: int,
        num_actions: int,
        num_policies: int,
        cfg: PopulationActorCfg,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        cfg.validate()
        check_population(num_policies, num_policies)
        self.num_obs = num_obs
        self.num_actions = num_actions
        self.num_policies = num_policies
        self.cfg = cfg
        self.normalizer: nn.Module = RunningNormalizer(num_obs) if cfg.obs_normalization else nn.Identity()
        self.trunk = MLP(num_obs, list(cfg.trunk), activation=cfg.activation, generator=generator)
        outputs = [(num_actions, cfg.mean_gain)] + ([(num_actions, 1.0)] if cfg.state_dependent_std else [])
        self.heads = StackedHeads(
            self.trunk.num_outputs,
            outputs,
            num_policies,
            adapter=cfg.adapter,
            adapter_dim=cfg.adapter_dim,
            adapter_rank=cfg.adapter_rank,
            activation=cfg.activation,
            generator=generator,
        )
        low, high = cfg.log_std_range
        raw = math.atanh(2.0 * (cfg.init_log_std - low) / (high - low) - 1.0)
        if cfg.state_dependent_std:
            with torch.no_grad():
                self.heads.out_bias[..., num_actions:] = raw
            self.register_parameter("raw_log_std", None)
        else:
            self.raw_log_std = nn.Parameter(torch.full((num_policies, 1, num_actions), raw))

    def forward(self, obs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mean and log standard deviation before the squash.

        Args:
            obs: Observations grouped by policy, shape (num_policies, rows, num_obs).

        Returns:
            Two tensors of shape (num_policies, rows, num_actions).

        Raises:
            ConfigurationError: If the shape is another.
        """
        if obs.dim() != 3 or obs.shape[0] != self.num_policies or obs.shape[2] != self.num_obs:
            raise ConfigurationError(
                f"obs has shape {tuple(obs.shape)}, expected (num_policies={self.num_policies}, rows,"
                f" num_obs={self.num_obs})"
            )
        return self._split(self.heads(self.trunk(self.normalizer(obs))))

    def distribution(self, obs: torch.Tensor) -> TanhGaussian:
        """Return the action distributions for ``obs`` of shape (num_policies, rows, num_obs)."""
        return TanhGaussian(*self(obs))

    def act(
        self,
        obs: torch.Tensor,
        generator: torch.Generator | None = None,
        deterministic: bool = False,
        ranks: Collective = ALONE,
    ) -> PolicySample:
        """Draw one action for each env from the policy the env belongs to.

        Args:
            obs: Policy observations, shape (num_envs, num_obs), envs in contiguous blocks of equal size per policy.
            generator: Source of the noise.
            deterministic: Take the mean instead of a sample.
            ranks: The noise is drawn for the envs of all of them, as one process would.

        Returns:
            Actions of all envs, in the order of the envs.
        """
        num_envs = obs.shape[0]
        rows = check_population(num_envs, self.num_policies)
        policy = self.distribution(obs.reshape(self.num_policies, rows, -1))
        pre_squash = policy.mean if deterministic else policy.sample(generator, ranks)
        log_prob = policy.log_prob(pre_squash).reshape(num_envs)
        pre_squash = pre_squash.reshape(num_envs, self.num_actions)
        return PolicySample(self.squash(pre_squash), pre_squash, log_prob)

    def squash(self, pre_squash: torch.Tensor) -> torch.Tensor:
        """Bring actions into [-1, 1], same shape."""
        return torch.tanh(pre_squash) if self.cfg.squash == "tanh" else pre_squash.clamp(-1.0, 1.0)

    def stacked_names(self) -> list[str]:
        """Return the names of the parameters whose first axis is the policy; all others are shared."""
        names = [f"heads.{name}" for name in self.heads.stacked_names()]
        return names if self.raw_log_std is None else [*names, "raw_log_std"]

    def head_parameters(self) -> list[nn.Parameter]:
        """Return the parameters stacked over policies; all others are shared."""
        return [self.get_parameter(name) for name in self.stacked_names()]

    def shared_parameters(self) -> list[nn.Parameter]:
        """Return the parameters used by every policy."""
        stacked = {id(parameter) for parameter in self.head_parameters()}
        return [parameter for parameter in self.parameters() if id(parameter) not in stacked]

    def select(self, head_ids: Sequence[int]) -> PopulationActor:
        """Return a copy whose policy ``j`` is policy ``head_ids[j]`` of this one; repeats are allowed.

        Raises:
            ConfigurationError: If an id is out of range.
        """
        ids = self._check_ids(head_ids)
        stacked = self.stacked_names()
        state = {k: (v[ids] if k in stacked else v).detach().clone() for k, v in self.state_dict().items()}
        return self._with_state(state, len(ids)).to(self.heads.out_weight.device)

    def collect(self, ranks: Collective) -> PopulationActor:
        """Return the population of all ranks, on the CPU, for rank 0 to save; a call of all ranks.

        In a run of one process that is this one itself, and so it is on the other ranks.
        """
        state = collect_state(self, ranks)
        if ranks.world_size == 1 or not ranks.is_main:
            return self
        return self._with_state(state, ranks.world_size * self.num_policies)

    def single(self, head_id: int) -> SinglePolicy:
        """Return one policy as a plain module: observation (b, num_obs) to action (b, num_actions)."""
        return SinglePolicy(self, self._check_ids([head_id])[0])

    def indexed(self) -> IndexedPolicy:
        """Return all policies as a module of (observation (b, num_obs), head ids (b,)) to actions (b, num_actions)."""
        return IndexedPolicy(self)

    def _with_state(self, state: Mapping[str, torch.Tensor], num_policies: int) -> PopulationActor:
        # The initial weights are overwritten; drawing them must not move the global generator.
        with torch.random.fork_rng(devices=[]):
            copy = PopulationActor(self.num_obs, self.num_actions, num_policies, self.cfg)
        copy.load_state_dict(state)
        return copy

    def _split(self, out: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean = out[..., : self.num_actions]
        raw = out[..., self.num_actions :] if self.raw_log_std is None else self.raw_log_std.expand_as(mean)
        low, high = self.cfg.log_std_range
        return mean, low + 0.5 * (high - low) * (torch.tanh(raw) + 1.0)

    def _check_ids(self, head_ids: Sequence[int]) -> list[int]:
        ids = [int(i) for i in head_ids]
        bad = [i for i in ids if not 0 <= i < self.num_policies]
        if bad or not ids:
            raise ConfigurationError(
                f"head ids {ids} must be a non-empty list of numbers in 0..{self.num_policies - 1},"
                f" the heads of this population"
            )
        return ids


class SinglePolicy(nn.Module):
    """The deterministic action of one policy, with plain linear layers; scriptable and exportable."""

    def __init__(self, actor: PopulationActor, head_id: int) -> None:
        super().__init__()
        # A fresh population of one holds copies: later updates of the actor do not reach an exported policy.
        copy = actor.select([head_id])
        self.normalizer = copy.normalizer
        self.trunk = copy.trunk
        self.activation = copy.heads.activation if copy.cfg.adapter != "none" else nn.Identity()
        self.adapter: nn.Module = nn.Identity()
        if copy.cfg.adapter != "none":
            self.adapter = _linear(*copy.heads.adapter_matrix(0))
        num_actions = copy.num_actions
        self.mean = _linear(copy.heads.out_weight[0, :, :num_actions], copy.heads.out_bias[0, 0, :num_actions])
        self.use_tanh = copy.cfg.squash == "tanh"

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        """Return the actions in [-1, 1], shape (b, num_actions)."""
        mean = self.mean(self.activation(self.adapter(self.trunk(self.normalizer(obs)))))
        return torch.tanh(mean) if self.use_tanh else mean.clamp(-1.0, 1.0)


class IndexedPolicy(nn.Module):
    """The deterministic action of any policy of the population, chosen per row."""

    def __init__(self, actor: PopulationActor) -> None:
        super().__init__()
        self.actor = actor.select(range(actor.num_policies))

    def forward(self, obs: torch.Tensor, head_ids: torch.Tensor) -> torch.Tensor:
        """Return the action of head ``head_ids[j]`` for row ``j``, shape (b, num_actions)."""
        hidden = self.actor.trunk(self.actor.normalizer(obs)).unsqueeze(1)
        out = self.actor.heads(hidden, head_ids).squeeze(1)
        return self.actor.squash(out[:, : self.actor.num_actions])


class PopulationValue(nn.Module):
    """State values of all policies: shared trunk, adapter and one output per policy."""

    def __init__(
        self, num_obs: int, num_policies: int, cfg: PopulationActorCfg, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.normalizer: nn.Module = RunningNormalizer(num_obs) if cfg.obs_normalization else nn.Identity()
        self.trunk = MLP(num_obs, list(cfg.trunk), activation=cfg.activation, generator=generator)
        self.heads = StackedHeads(
            self.trunk.num_outputs,
            [(1, 1.0)],
            num_policies,
            adapter=cfg.adapter,
            adapter_dim=cfg.adapter_dim,
            adapter_rank=cfg.adapter_rank,
            activation=cfg.activation,
            generator=generator,
        )

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        """Map observations (num_policies, rows, num_obs) to values (num_policies, rows)."""
        return self.heads(self.trunk(self.normalizer(obs))).squeeze(-1)

    def stacked_names(self) -> list[str]:
        """Return the names of the parameters whose first axis is the policy; all others are shared."""
        return [f"heads.{name}" for name in self.heads.stacked_names()]


def _linear(weight: torch.Tensor, bias: torch.Tensor) -> nn.Linear:
    """Return a linear layer from a matrix stored as (inputs, outputs)."""
    with torch.random.fork_rng(devices=[]):  # an export must not move the global generator either
        layer = nn.Linear(weight.shape[0], weight.shape[1])
    with torch.no_grad():
        layer.weight.copy_(weight.T)
        layer.bias.copy_(bias)
    return layer
