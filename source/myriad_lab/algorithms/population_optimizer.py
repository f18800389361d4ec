"""Adam for a population: two step sizes, milestones, a bound on the gradient, and a way back from a broken update."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from myriad_lab.algorithms.shards import change_moments, clip_gradients, grad_norm, sum_gradients
from myriad_lab.errors import ConfigurationError
from myriad_lab.functional.collective import ALONE, Collective
from myriad_lab.networks.population import PopulationActor, PopulationValue

KL_FACTOR = 1.5
"""Factor by which a missed ``desired_kl`` changes the step sizes."""
RATE_RANGE = (1e-2, 1e1)
"""Bounds of what the adaptation may multiply the step sizes by."""


@dataclass
class PopulationOptimizerCfg:
    """Settings of the optimiser."""

    learning_rate: float = 1e-3
    """Step size of Adam for the shared trunk, and for a value function."""
    head_learning_rate: float | None = None
    """Step size of Adam for the heads; ``None`` means that of the trunk."""
    lr_milestones: list[int] = field(default_factory=list)
    """Iterations at which the step sizes are multiplied by ``lr_decay``."""
    lr_decay: float = 0.5
    """Factor at each milestone."""
    desired_kl: float | None = None
    """Divergence from the policy of the rollout [nat] that the step sizes follow: in each minibatch they change by
    ``KL_FACTOR`` where it is off by more than a factor of two (several epochs only). ``None`` leaves them alone."""
    max_grad_norm: float = 1.0
    """Bound on the norm of the gradient of the population, and, apart, of the value function."""

    def validate(self) -> None:
        """Raise ``ConfigurationError`` where a value is not positive and finite, or milestones do not ascend."""
        if not self.max_grad_norm > 0.0:
            raise ConfigurationError(f"max_grad_norm={self.max_grad_norm} must be positive; inf for no bound")
        for name in ("learning_rate", "lr_decay"):
            if not 0.0 < getattr(self, name) < math.inf:
                raise ConfigurationError(f"{name}={getattr(self, name)} must be positive and finite")
        for name in ("desired_kl", "head_learning_rate"):
            value = getattr(self, name)
            if value is not None and not 0.0 < value < math.inf:
                raise ConfigurationError(f"{name}={value} must be positive and finite, or null")
        ascending = sorted({max(1, milestone) for milestone in self.lr_milestones})
        if self.lr_milestones != ascending:
            raise ConfigurationError(
                f"lr_milestones={self.lr_milestones} must be ascending iterations of at least 1, e.g. {ascending}"
            )
        if self.desired_kl is not None and self.lr_milestones:
            raise ConfigurationError(
                f"lr_milestones={self.lr_milestones} and desired_kl={self.desired_kl} both change the step sizes; give"
                " one of them"
            )


class PopulationOptimizer:
    """One Adam over trunk, heads and, where there is one, the value function of a population.

    On several ranks each has the heads of its own policies, and a copy of what is shared that stays the same: the
    gradients of the shared parameters are summed over the ranks, and norms are those of the whole population.
    """

    def __init__(
        self,
        actor: PopulationActor,
        value: PopulationValue | None,
        cfg: PopulationOptimizerCfg,
        ranks: Collective = ALONE,
    ) -> None:
        cfg.validate()
        self.cfg, self.ranks = cfg, ranks
        self._trunk, self._heads = actor.shared_parameters(), actor.head_parameters()
        self._value = [] if value is None else list(value.parameters())
        self._value_heads = [] if value is None else [value.get_parameter(name) for name in value.stacked_names()]
        stacked = {id(parameter) for parameter in [*self._heads, *self._value_heads]}
        self._value_trunk = [parameter for parameter in self._value if id(parameter) not in stacked]
        parameters = [*self._trunk, *self._heads, *self._value]
        self._stacked = {i for i, parameter in enumerate(parameters) if id(parameter) in stacked}
        head_rate = cfg.learning_rate if cfg.head_learning_rate is None else cfg.head_learning_rate
        groups: list[dict[str, Any]] = [
            {"params": self._trunk, "lr": cfg.learning_rate, "base_lr": cfg.learning_rate},
            {"params": self._heads, "lr": head_rate, "base_lr": head_rate},
        ]
        if self._value:
            groups.append({"params": self._value, "lr": cfg.learning_rate, "base_lr": cfg.learning_rate})
        # At large m the parameters outweigh the batch: one fused pass over them is several times faster.
        on_gpu = self._trunk[0].is_cuda
        self.adam = torch.optim.Adam(groups, fused=True, capturable=on_gpu)
        self._factor = self._make_factor(1.0)
        if cfg.desired_kl is not None or on_gpu:
            self._hold_rates()

    @property
    def learning_rate(self) -> torch.Tensor:
        """Step size of the trunk now, a scalar tensor."""
        rate = self.adam.param_groups[0]["lr"]
        return rate.clone() if isinstance(rate, torch.Tensor) else torch.full((), rate)

    def set_iteration(self, iteration: int) -> None:
        """Set the step sizes for an iteration, counted from 0."""
        passed = sum(iteration >= milestone for milestone in self.cfg.lr_milestones)
        factor = self._factor * self.cfg.lr_decay**passed
        for group in self.adam.param_groups:
            rate = group["base_lr"] * factor
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    @torch.no_grad()
    def adapt(self, kl: torch.Tensor) -> None:
        """Adapt the step sizes to the divergence ``kl`` so far, a scalar tensor; without ``desired_kl`` do nothing.

        It is the sum of what the ranks pass in. A value that is not finite counts as too large, and 0 tells nothing.
        """
        desired = self.cfg.desired_kl
        if desired is None or not isinstance(self._factor, torch.Tensor):
            return
        kl = self.ranks.sum(kl)
        change = torch.where((kl > 0.0) & (kl < desired / 2.0), KL_FACTOR, 1.0)
        change = torch.where(kl <= 2.0 * desired, change, 1.0 / KL_FACTOR)
        factor = (self._factor * change).clamp(*RATE_RANGE)
        for group in self.adam.param_groups:
            group["lr"].mul_(factor / self._factor)
        self._factor.copy_(factor)

    def zero_grad(self) -> None:
        """Forget the gradients."""
        self.adam.zero_grad(set_to_none=True)

    def step(self) -> dict[str, torch.Tensor]:
        """Sum the gradients over the ranks, clip them and take one step; returns the norms before clipping.

        Both norms of the population are logged: under the pooled normalisation the gradient of one head scales like
        1/m, so at large m the joint clip is governed by the trunk.
        """
        own = [grad_norm(part) for part in (self._heads, self._value_heads) if part]
        heads, *value_heads = sum_gradients([*self._trunk, *self._value_trunk], own, self.ranks)
        trunk = grad_norm(self._trunk)
        joint = torch.hypot(trunk, heads)
        clip_gradients([*self._trunk, *self._heads], joint, self.cfg.max_grad_norm)
        if value_heads:
            norm = torch.hypot(grad_norm(self._value_trunk), value_heads[0])
            clip_gradients(self._value, norm, self.cfg.max_grad_norm)
        self.adam.step()
        return {"Loss/grad_norm": joint, "Loss/grad_norm_trunk": trunk, "Loss/grad_norm_heads": heads}

    def guard(self) -> WeightGuard:
        """Return a copy of the weights and moments as they are now."""
        return WeightGuard([*self._trunk, *self._heads, *self._value], self.adam, self.ranks)

    def state_dict(self) -> dict[str, Any]:
        """Return Adam's moments and the adaptation; the rest of the step sizes follows from the iteration.

        The moments of the heads are those of all ranks, a call of all of them.
        """
        adam = self.adam.state_dict()
        adam["state"] = change_moments(adam["state"], self._stacked, self.ranks.collect_rows)
        return {"adam": adam, "factor": float(self._factor)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned; step sizes are those of this configuration."""
        names = ("lr", "base_lr", "fused", "capturable")
        settings = [{name: group[name] for name in names} for group in self.adam.param_groups]
        moments = change_moments(state["adam"]["state"], self._stacked, self.ranks.own_rows)
        self.adam.load_state_dict(state["adam"] | {"state": moments})
        self._factor = self._make_factor(state["factor"])
        for group, setting in zip(self.adam.param_groups, settings, strict=True):
            group.update(setting)

    def _hold_rates(self) -> None:
        """Make tensors of the step sizes: adapted without waiting for the device, and found by a recorded step."""
        for group in self.adam.param_groups:
            group["lr"] = torch.as_tensor(group["lr"], device=self._trunk[0].device)

    def _make_factor(self, value: float) -> torch.Tensor | float:
        return torch.tensor(value, device=self._trunk[0].device) if self.cfg.desired_kl else 1.0


class WeightGuard:
    """Undoes an update that broke the weights, without asking the device whether it did."""

    def __init__(
        self, parameters: Sequence[nn.Parameter], optimizer: torch.optim.Optimizer, ranks: Collective = ALONE
    ) -> None:
        """Copy the state now; the copy lives as long as the guard. What broke on one of the ranks is undone on all."""
        self._optimizer, self._ranks = optimizer, ranks
        self._weights = [parameter.data for parameter in parameters]
        self._moments = self._moment_tensors()
        self._copies = [tensor.clone() for tensor in [*self._weights, *self._moments]]

    @torch.no_grad()
    def restore_if_broken(self, *scalars: torch.Tensor) -> torch.Tensor:
        """Put weights and moments back if a weight or one of ``scalars`` is not finite.

        Moments that the update itself created become zero in that case.

        Returns:
            Whether the update was undone, a bool scalar tensor.
        """
        norms = torch.stack([*torch._foreach_norm(self._weights), *(s.detach().reshape(()) for s in scalars)])
        broken = self._ranks.any(~torch.isfinite(norms).all())
        known = {id(tensor) for tensor in self._moments}
        created = [tensor for tensor in self._moment_tensors() if id(tensor) not in known]
        targets = [*self._weights, *self._moments, *created]
        copies = [*self._copies, *(torch.zeros_like(tensor) for tensor in created)]
        for target, copy in zip(targets, copies, strict=True):
            target.copy_(torch.where(broken, copy, target))
        return broken

    def _moment_tensors(self) -> list[torch.Tensor]:
        states = self._optimizer.state.values()
        return [value for state in states for value in state.values() if torch.is_tensor(value)]
