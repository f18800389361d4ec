"""The clipped surrogate objective of policy gradients."""

from __future__ import annotations

from typing import NamedTuple

import torch

from myriad_lab.functional.estimators import effective_sample_size
from myriad_lab.functional.masked import masked_mean


class Surrogate(NamedTuple):
    """Loss and diagnostics of ``clipped_surrogate``, all scalars."""

    loss: torch.Tensor
    """Loss to minimise."""
    kl: torch.Tensor
    """Estimate of KL(behaviour || policy) per step [nat]."""
    clip_fraction: torch.Tensor
    """Share of the steps whose ratio is outside the clip range."""
    effective_sample_share: torch.Tensor
    """Effective sample size of the ratios over the number of steps, in (0, 1]."""


def clipped_surrogate(
    log_prob: torch.Tensor, old_log_prob: torch.Tensor, advantages: torch.Tensor, mask: torch.Tensor, clip: float
) -> Surrogate:
    """Return the clipped surrogate with per-step likelihood ratios (Schulman et al. 2017, eq. 7).

    Args:
        log_prob: Log-probability of each action under the policy, any shape.
        old_log_prob: The same under the policy that acted.
        advantages: Advantage of each action.
        mask: Steps that count, bool.
        clip: Half-width of the interval around 1 in which a ratio is followed.
    """
    log_ratio = torch.where(mask, log_prob - old_log_prob, 0.0)
    ratio = log_ratio.exp()
    gain = torch.minimum(ratio * advantages, ratio.clamp(1.0 - clip, 1.0 + clip) * advantages)
    with torch.no_grad():
        # E[(ratio - 1) - log ratio] is non-negative for every sample (Schulman, "Approximating KL divergence", k3).
        kl = masked_mean(ratio - 1.0 - log_ratio, mask)
        outside = masked_mean(((ratio - 1.0).abs() > clip).to(ratio.dtype), mask)
        size = effective_sample_size(log_ratio.masked_fill(~mask, -torch.inf).flatten())
        share = (size / mask.sum()).nan_to_num()  # 0 where no step counts
    return Surrogate(-masked_mean(gain, mask), kl, outside, share)
