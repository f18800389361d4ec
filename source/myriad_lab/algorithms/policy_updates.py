"""Two ways to improve a population on the rewards of one rollout; both keep the ``[policy, ...]`` layout."""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch

from myriad_lab.algorithms.captured import CapturedUpdate
from myriad_lab.algorithms.population_optimizer import PopulationOptimizer
from myriad_lab.algorithms.precision import MixedPrecision
from myriad_lab.errors import ConfigurationError
from myriad_lab.functional.collective import ALONE, Collective
from myriad_lab.functional.estimators import effective_sample_size
from myriad_lab.functional.masked import masked_mean, masked_std, standardize
from myriad_lab.functional.returns import gae, reward_to_go
from myriad_lab.functional.surrogate import clipped_surrogate
from myriad_lab.networks.population import PopulationActor, PopulationValue
from myriad_lab.storage.rollout import RolloutStorage

BASELINES = ("global", "time")


@dataclass
class PolicyUpdateCfg:
    """Settings of the policy update."""

    num_epochs: int = 4
    """Passes over each rollout. 1: one gradient step on the whole rollout, with undiscounted reward-to-go, as in the
    paper. More: minibatches with clipped per-step ratios and a value function."""
    num_minibatches: int = 8
    """Minibatches of a pass (several epochs only)."""
    standardize: bool = True
    """Whether rewards and advantages are scaled to unit variance, over the whole batch and never per head."""
    baseline: str = "time"
    """Baseline of the single step: ``global`` (one number, as in the paper) or ``time`` (one per time step)."""
    entropy_coef: float = 0.0
    """Weight of the entropy of the actions."""
    gamma: float = 0.99
    """Discount (several epochs only)."""
    gae_lambda: float = 0.95
    """Decay of the generalised advantage estimate (several epochs only)."""
    clip: float = 0.2
    """Half-width of the interval around 1 in which a ratio is followed (several epochs only)."""
    value_coef: float = 0.5
    """Weight of the squared error of the value function (several epochs only)."""
    rows_per_backward: int = 262_144
    """Largest number of env steps differentiated at once in the single step, and valued at once before several epochs:
    bounds memory, changes no result."""
    mixed_precision: bool | None = None
    """Whether the networks run in bfloat16 but for their last layer, in acting as well as in the update; ``None`` where
    the device has units for it and every policy has some dozens of envs."""
    cuda_graph: bool = True
    """Whether on a GPU the step of a minibatch is recorded once as a CUDA graph (several epochs, one rank only)."""

    def validate(self) -> None:
        """Raise ``ConfigurationError`` where a value is out of range."""
        if self.baseline not in BASELINES:
            raise ConfigurationError(f"baseline={self.baseline!r} is unknown; use 'global' or 'time'")
        for name in ("num_epochs", "num_minibatches", "rows_per_backward"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"{name}={getattr(self, name)} must be at least 1")
        for name in ("gamma", "gae_lambda"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ConfigurationError(f"{name}={getattr(self, name)} must be between 0 and 1")
        if not self.clip > 0.0:
            raise ConfigurationError(f"clip={self.clip} must be positive")
        if not 0.0 <= self.value_coef < math.inf:
            raise ConfigurationError(f"value_coef={self.value_coef} must be a number of at least 0")
        if not math.isfinite(self.entropy_coef):
            raise ConfigurationError(f"entropy_coef={self.entropy_coef} must be a number")


class OneStepUpdate:
    """One Adam step along the gradient of the entropy estimate.

    With the behaviour equal to the policy, the gradient of the importance-weighted estimate (MEPOL, arXiv 2007.04640)
    is the sum over env steps of ``grad log pi`` times the rewards still to come, over the number of particles.
    """

    def __init__(
        self,
        actor: PopulationActor,
        optimizer: PopulationOptimizer,
        cfg: PolicyUpdateCfg,
        ranks: Collective = ALONE,
    ) -> None:
        self.actor, self.optimizer, self.cfg, self.ranks = actor, optimizer, cfg, ranks
        self.mixed_precision = MixedPrecision(cfg.mixed_precision, actor.heads.out_bias.device)

    def __call__(
        self, storage: RolloutStorage, rewards: torch.Tensor, num_particles: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Update the population; returns scalar diagnostics.

        Args:
            storage: A full rollout with ``obs``, ``pre_squash`` and ``valid``.
            rewards: Centred rewards, 0 where there is no particle, shape (num_steps, num_envs).
            num_particles: Number of particles of all ranks, a scalar tensor.
        """
        cfg, valid, ranks = self.cfg, storage["valid"], self.ranks
        weights = reward_to_go(rewards)
        if cfg.baseline == "time":
            weights = weights - masked_mean(weights, valid, dim=1, ranks=ranks).unsqueeze(1)
        num_valid = ranks.sum(valid.sum()).clamp_min(1)
        norm = num_particles
        if cfg.standardize:
            norm = (masked_std(weights, valid, ranks) + 1e-8) * num_valid
        weights = torch.where(valid, weights, 0.0) / norm
        surrogate, entropy = weights.new_zeros(()), weights.new_zeros(())
        self.optimizer.zero_grad()
        for steps in self._chunks(storage):
            with self.mixed_precision.autocast():
                policy = self.actor.distribution(storage.by_policy(storage["obs"][steps]))
            log_prob = policy.log_prob(storage.by_policy(storage["pre_squash"][steps]))
            gain = (log_prob * storage.by_policy(weights[steps])).sum()
            mask = storage.by_policy(valid[steps])
            part_entropy = torch.where(mask, policy.entropy(), 0.0).sum() / num_valid
            (-gain - cfg.entropy_coef * part_entropy).backward()
            surrogate, entropy = surrogate - gain.detach(), entropy + part_entropy.detach()
        surrogate, entropy = ranks.sum(torch.stack((surrogate, entropy))).unbind()
        return {"Loss/surrogate": surrogate, "Policy/entropy": entropy} | self.optimizer.step()

    def _chunks(self, storage: RolloutStorage) -> Iterator[slice]:
        length = max(self.cfg.rows_per_backward // storage.num_envs, 1)
        for start in range(0, storage.num_steps, length):
            yield slice(start, start + length)


_SHARES = ("Loss/surrogate", "Loss/value", "Policy/entropy", "Policy/kl", "Policy/clip_fraction")
"""What a minibatch tells first: this rank's share of each; those of all ranks add up."""
_NORMS = ("Loss/grad_norm", "Loss/grad_norm_trunk", "Loss/grad_norm_heads")
"""What it tells last: norms over the whole population. In between are the logs of the sums of the ratios and of their
squares on this rank."""


class _Minibatch(NamedTuple):
    """Which rows a step is taken on."""

    rows: torch.Tensor
    """Their numbers, the same for every policy, (rows,)."""
    num_valid: torch.Tensor
    """Env steps among them on all ranks, a scalar."""
    moved: torch.Tensor
    """Whether the policies are no longer those that acted, a bool scalar."""


class ClippedUpdate:
    """Several passes of minibatches with clipped per-step likelihood ratios and generalised advantages.

    The value function sees the share of the episode that has passed beside the observation, and nothing is
    bootstrapped at the end: the objective is the entropy of a trajectory of finite length. It is used in training only.
    On a GPU, a step is some hundreds of small kernels, for which the host would take longer than the device.
    """

    def __init__(
        self,
        actor: PopulationActor,
        value: PopulationValue,
        optimizer: PopulationOptimizer,
        cfg: PolicyUpdateCfg,
        generator: torch.Generator,
        ranks: Collective = ALONE,
    ) -> None:
        self.actor, self.value, self.optimizer, self.cfg = actor, value, optimizer, cfg
        self.generator, self.ranks = generator, ranks
        device = actor.heads.out_bias.device
        self.mixed_precision = MixedPrecision(cfg.mixed_precision, device)
        self._graphs = cfg.cuda_graph and device.type == "cuda" and ranks.world_size == 1
        self.record_anew()

    def record_anew(self) -> None:
        """Forget recorded steps: they know the moments of before."""
        self._batch: dict[str, torch.Tensor] = {}
        self._recorded: dict[int, tuple[_Minibatch, CapturedUpdate]] = {}

    def __call__(
        self, storage: RolloutStorage, rewards: torch.Tensor, num_particles: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Update the population; arguments and result as for ``OneStepUpdate``."""
        cfg, valid, ranks = self.cfg, storage["valid"], self.ranks
        obs = self._by_policy(storage, "obs", torch.cat((storage["obs"], _elapsed(storage)), dim=-1))
        length = max(cfg.rows_per_backward // len(obs), 1)
        with torch.no_grad():  # in parts: all rows of tens of thousands of envs at once would fill a GPU
            values = torch.cat([self._values(part) for part in obs.split(length, dim=1)], dim=1)
            values = values.unflatten(1, (storage.num_steps, -1)).transpose(0, 1).flatten(1)
        advantages, returns = self._advantages(rewards, values, valid)
        error, spread = masked_std(returns - values, valid, ranks), masked_std(returns, valid, ranks)
        explained = 1.0 - (error / (spread + 1e-8)).square()
        if cfg.standardize:
            advantages = standardize(advantages, valid, ranks=ranks)
        fields = {
            "pre_squash": storage["pre_squash"],
            "log_prob": storage["log_prob"],
            "valid": valid,
            "advantages": advantages,
            "returns": returns,
        }
        batch = {"obs": obs} | {name: self._by_policy(storage, name, tensor) for name, tensor in fields.items()}
        chosen = [part for _ in range(cfg.num_epochs) for part in self._minibatches(batch["valid"])]
        counts = ranks.sum(torch.stack([batch["valid"][:, part].sum() for part in chosen])).clamp_min(1)
        moved = torch.arange(len(chosen), device=valid.device) > 0
        minibatches = map(_Minibatch, chosen, counts.unbind(), moved.unbind())
        told = torch.stack([self._take(batch, minibatch) for minibatch in minibatches])
        return self._metrics(told, counts) | {"Loss/value_explained": explained}

    def _by_policy(self, storage: RolloutStorage, name: str, field: torch.Tensor) -> torch.Tensor:
        """Return a field by policy; where steps are recorded, in the memory where they read it."""
        if not self._graphs:
            return storage.by_policy(field)
        if name not in self._batch:
            self._batch[name] = storage.by_policy(field).clone()  # of a single policy it would be the field itself
        else:
            grouped = field.unflatten(1, (storage.num_policies, -1)).transpose(0, 1)
            self._batch[name].view(grouped.shape).copy_(grouped)
        return self._batch[name]

    def _take(self, batch: dict[str, torch.Tensor], minibatch: _Minibatch) -> torch.Tensor:
        """Take the step of a minibatch, as recorded for so many rows where steps are recorded."""
        if not self._graphs:
            return self._step(batch, minibatch)
        size = len(minibatch.rows)
        if size not in self._recorded:
            place = _Minibatch(*(tensor.clone() for tensor in minibatch))
            # a graph that held its update would keep memory of a GPU until Python looks for cycles
            update = weakref.proxy(self)
            step = CapturedUpdate(lambda: update._step(batch, place), self.generator, graphs=True)
            self._recorded[size] = place, step
        place, recorded = self._recorded[size]
        for held, tensor in zip(place, minibatch, strict=True):
            held.copy_(tensor)
        return recorded()

    def _values(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the values of rows of observation and elapsed time, ``(num_policies, rows)``."""
        inputs = torch.cat((self.actor.normalizer(rows[..., :-1]), rows[..., -1:]), dim=-1)
        with self.mixed_precision.autocast():
            return self.value(inputs)

    def _advantages(
        self, rewards: torch.Tensor, values: torch.Tensor, valid: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return advantages and value targets, each (num_steps, num_envs); nothing follows the last valid step."""
        last = torch.ones_like(valid)
        last[:-1] = ~valid[1:]
        following = torch.zeros_like(values)
        following[:-1] = values[1:]
        cut = torch.zeros_like(last)
        return gae(rewards, values, following, last, cut, self.cfg.gamma, self.cfg.gae_lambda)

    def _minibatches(self, valid: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return random parts of the rows; every policy contributes the same number to each."""
        rows = valid.shape[1]
        order = torch.randperm(rows, generator=self.generator, device=valid.device)
        return order.tensor_split(min(self.cfg.num_minibatches, rows))

    def _step(self, batch: dict[str, torch.Tensor], minibatch: _Minibatch) -> torch.Tensor:
        """Take one Adam step on some rows of ``(num_policies, rows, ...)``; returns what it tells, (10,)."""
        cfg, num_valid = self.cfg, minibatch.num_valid
        part = {name: tensor[:, minibatch.rows] for name, tensor in batch.items()}
        mask = part["valid"]
        with self.mixed_precision.autocast():
            policy = self.actor.distribution(part["obs"][..., :-1])
        log_prob = policy.log_prob(part["pre_squash"])
        surrogate = clipped_surrogate(log_prob, part["log_prob"], part["advantages"], mask, cfg.clip, num_valid)
        entropy = torch.where(mask, policy.entropy(), 0.0).sum() / num_valid
        errors = (self._values(part["obs"]) - part["returns"]).square()
        value_loss = torch.where(mask, errors, 0.0).sum() / num_valid
        # before the first step all there is of a divergence is rounding
        self.optimizer.adapt(torch.where(minibatch.moved, surrogate.kl, 0.0))
        self.optimizer.zero_grad()
        (surrogate.loss - cfg.entropy_coef * entropy + cfg.value_coef * value_loss).backward()
        shares = surrogate.loss.detach(), value_loss.detach(), entropy.detach(), surrogate.kl, surrogate.clip_fraction
        norms = self.optimizer.step()
        return torch.stack([*shares, *surrogate.log_sums.unbind(), *(norms[name] for name in _NORMS)])

    def _metrics(self, told: torch.Tensor, counts: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the diagnostics of an update over all ranks: one message, however many steps it had.

        Args:
            told: What each step told on this rank, (steps, 10).
            counts: Env steps in each minibatch on all ranks, (steps,).
        """
        shares, log_sums, norms = told.split([len(_SHARES), 2, len(_NORMS)], dim=1)
        shares = self.ranks.sum(shares)
        means = torch.cat([shares, norms], dim=1).mean(0).unbind()
        metrics = dict(zip([*_SHARES, *_NORMS], means, strict=True))
        # How far the policies moved is told by the ratios of the last pass.
        last = slice(-self.cfg.num_minibatches, None)
        for name in ("Policy/kl", "Policy/clip_fraction"):
            metrics[name] = shares[last, _SHARES.index(name)].mean()
        sizes = effective_sample_size(self.ranks.gather_rows(log_sums[last][None]).logsumexp(0))
        return metrics | {"Population/ess": (sizes / counts[last]).nan_to_num().mean()}  # 0 where no step counts


def _elapsed(storage: RolloutStorage) -> torch.Tensor:
    """Return the share of the rollout that has passed, scaled to [-1, 1], shape (num_steps, num_envs, 1)."""
    obs = storage["obs"]
    time = torch.linspace(-1.0, 1.0, storage.num_steps, device=obs.device, dtype=obs.dtype)
    return time.view(-1, 1, 1).expand(-1, storage.num_envs, 1)
