"""Small parts of parallel Q-learning: optimisers, compiling, clipping, means, the noise ladder."""

from __future__ import annotations

import math
import types
from typing import Any

import torch

from myriad_lab.errors import ConfigurationError


def adamw(module: torch.nn.Module, lr: float, weight_decay: float) -> torch.optim.AdamW:
    """Return the optimiser of a network; on a GPU its step can be part of a CUDA graph."""
    parameters = list(module.parameters())
    on_gpu = parameters[0].is_cuda
    return torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay, fused=True, capturable=on_gpu)


def restore(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Restore the moments; the settings stay."""
    names = ("lr", "weight_decay", "fused", "capturable")
    settings = [{name: group[name] for name in names} for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, setting in zip(optimizer.param_groups, settings, strict=True):
        group.update(setting)


def compiled(method: Any) -> Any:
    """Return a bound method compiled as one graph for the shapes that it is called with.

    What is compiled is a copy: torch counts the graphs of a piece of code, whoever they are for, and after eight of
    them, as for a population that is halved as often, it would refuse the next one.
    """
    function = method.__func__
    code = function.__code__.replace()
    copied = types.FunctionType(code, function.__globals__, function.__name__, function.__defaults__)
    return torch.compile(types.MethodType(copied, method.__self__), fullgraph=True, dynamic=False)


def check_squash(squash: str) -> None:
    """Refuse policies that do not end in tanh.

    Raises:
        ConfigurationError: Unless ``squash`` is ``tanh``.
    """
    if squash != "tanh":
        raise ConfigurationError(
            f"squash={squash!r}: PQL needs policies that end in tanh. Where an action is cut off at -1 and 1 "
            "instead, as by PPO from scratch, it has no gradient; set agent.actor.squash=tanh, or start from a "
            "portfolio that has it"
        )


def weighted_mean(values: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Return the mean of (m, batch) over usable rows, (m,)."""
    return (values * weights).sum(-1) / weights.sum(-1).clamp_min(1.0)


def clip_per_head(parameters: list[torch.nn.Parameter], num_policies: int, max_norm: float) -> None:
    """Clip the gradient norm of each head's own rows of the stacked parameters: heads stay independent."""
    gradients = [p.grad.view(num_policies, -1) for p in parameters if p.grad is not None]
    norms = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g, dim=1) for g in gradients]), dim=0)
    scale = (max_norm / (norms + 1e-6)).clamp_max(1.0).unsqueeze(1)
    torch._foreach_mul_(gradients, [scale] * len(gradients))


def noise_ladder(num_envs: int, low: float, high: float, prior_fraction: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the noise of the envs of one head, and which of them follow the prior instead, (num_envs,) each.

    The mixed exploration of PQL (arXiv 2307.12983): standard deviations of the actions, evenly spaced, within one head.

    Raises:
        ConfigurationError: If a share of the envs should follow the prior and none does.
    """
    # spread evenly over the block; a share such as 0.29 is a little less than it says in binary
    passed = (torch.arange(num_envs + 1, dtype=torch.float64) * prior_fraction + 1e-9).floor()
    prior = passed.diff() > 0.0
    if prior_fraction > 0.0 and not bool(prior.any()):
        raise ConfigurationError(
            f"prior_fraction={prior_fraction} of the {num_envs} envs of each head is none: give each head at least "
            f"{math.ceil(1.0 / prior_fraction)} of num_envs, or set it to 0"
        )
    driven = num_envs - int(prior.sum())
    ladder = torch.zeros(num_envs)
    # a head with a single env explores with it: the only rung is the highest
    ladder[~prior] = torch.linspace(low if driven > 1 else high, high, driven)
    return ladder, prior


def means(names: tuple[str, ...], metrics: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the means of metrics of several updates by name; nothing where there was none."""
    return dict(zip(names, torch.stack(metrics).mean(0).unbind(), strict=True)) if metrics else {}
