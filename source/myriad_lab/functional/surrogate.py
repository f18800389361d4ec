"""The clipped surrogate objective of policy gradients."""

from __future__ import annotations

from typing import NamedTuple

import torch

from myriad_lab.functional.estimators import log_weight_sums


class Surrogate(NamedTuple):
    """Loss and diagnostics of ``clipped_surrogate``; the scalars of several parts of one batch add up."""

    loss: torch.Tensor
    """Loss to minimise."""
    kl: torch.Tensor
    """Estimate of KL(behaviour || policy) per step [nat]."""
    clip_fraction: torch.Tensor
    """Share of the steps whose ratio is outside the clip range."""
    log_sums: torch.Tensor
    """Logs of the sums of the ratios and of their squares, (2,); see ``estimators.effective_sample_size``."""


def clipped_surrogate(
    log_prob: torch.Tensor,
    old_log_prob: torch.Tensor,
    advantages: torch.Tensor,
    mask: torch.Tensor,
    clip: float,
    num_valid: torch.Tensor | None = None,
) -> Surrogate:
    """Return the clipped surrogate with per-step likelihood ratios (Schulman et al. 2017, eq. 7).

    Args:
        log_prob: Log-probability of each action under the policy, any shape.
        old_log_prob: The same under the policy that acted.
        advantages: Advantage of each action.
        mask: Steps that count, bool.
        clip: Half-width of the interval around 1 in which a ratio is followed.
        num_valid: Steps that count in the batch of which this is a part, a scalar; those of ``mask`` by default.
    """
    count = mask.sum().clamp_min(1) if num_valid is None else num_valid
    log_ratio = torch.where(mask, log_prob - old_log_prob, 0.0)
    ratio = log_ratio.exp()
    gain = torch.minimum(ratio * advantages, ratio.clamp(1.0 - clip, 1.0 + clip) * advantages)
    with torch.no_grad():
        # E[(ratio - 1) - log ratio] is non-negative for every sample (Schulman, "Approximating KL divergence", k3).
        kl = torch.where(mask, ratio - 1.0 - log_ratio, 0.0).sum() / count
        outside = torch.where(mask, ((ratio - 1.0).abs() > clip).to(ratio.dtype), 0.0).sum() / count
        log_sums = log_weight_sums(log_ratio.masked_fill(~mask, -torch.inf).flatten())
    return Surrogate(-torch.where(mask, gain, 0.0).sum() / count, kl, outside, log_sums)
