"""Small parts of the updates of parallel Q-learning: optimisers, clipping, masked means."""

from __future__ import annotations

from typing import Any

import torch


def adamw(module: torch.nn.Module, lr: float, weight_decay: float) -> torch.optim.AdamW:
    """Return the optimiser of a network."""
    return torch.optim.AdamW(module.parameters(), lr=lr, weight_decay=weight_decay, fused=True)


def restore(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Restore the moments; the settings stay."""
    settings = [{name: group[name] for name in ("lr", "weight_decay")} for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, setting in zip(optimizer.param_groups, settings, strict=True):
        group.update(setting)


def weighted_mean(values: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Return the mean of (m, batch) over usable rows, (m,)."""
    return (values * weights).sum(-1) / weights.sum(-1).clamp_min(1.0)


def clip_per_head(parameters: list[torch.nn.Parameter], num_policies: int, max_norm: float) -> None:
    """Clip the gradient norm of each head's own rows of the stacked parameters: heads stay independent."""
    gradients = [p.grad.view(num_policies, -1) for p in parameters if p.grad is not None]
    norms = torch.stack([g.square().sum(1) for g in gradients]).sum(0).sqrt()
    scale = (max_norm / (norms + 1e-6)).clamp_max(1.0).unsqueeze(1)
    torch._foreach_mul_(gradients, [scale] * len(gradients))
