"""The tanh-squashed Gaussian, kept in the space before the squash."""

from __future__ import annotations

import math

import torch
from torch.nn.functional import softplus

_HALF_LOG_TWO_PI = 0.5 * math.log(2.0 * math.pi)


class TanhGaussian:
    """Diagonal Gaussian whose samples are squashed by tanh.

    Actions are stored before the squash, so no inverse of tanh is ever taken. In a likelihood ratio the Jacobian of the
    squash cancels, so ``log_prob`` leaves it out; ``log_prob_squashed`` has it.
    """

    def __init__(self, mean: torch.Tensor, log_std: torch.Tensor) -> None:
        """Take the mean and log standard deviation before the squash, both ``(..., num_actions)``."""
        self.mean = mean
        self.log_std = log_std

    def sample(self, generator: torch.Generator | None = None) -> torch.Tensor:
        """Draw actions before the squash, ``(..., num_actions)``; differentiable in mean and log std."""
        noise = torch.randn(self.mean.shape, generator=generator, device=self.mean.device, dtype=self.mean.dtype)
        return self.mean + self.log_std.exp() * noise

    def log_prob(self, pre_squash: torch.Tensor) -> torch.Tensor:
        """Return the log density of the action before the squash, ``(...)``."""
        scaled = (pre_squash - self.mean) * torch.exp(-self.log_std)
        return (-0.5 * scaled.square() - self.log_std - _HALF_LOG_TWO_PI).sum(-1)

    def log_prob_squashed(self, pre_squash: torch.Tensor) -> torch.Tensor:
        """Return the log density of ``tanh(pre_squash)``, ``(...)``."""
        # log(1 - tanh(u)^2) = 2 (log 2 - u - softplus(-2u)), which stays finite for any u.
        jacobian = 2.0 * (math.log(2.0) - pre_squash - softplus(-2.0 * pre_squash))
        return self.log_prob(pre_squash) - jacobian.sum(-1)

    def entropy(self) -> torch.Tensor:
        """Return the exact entropy before the squash [nat], ``(...)``."""
        return (self.log_std + 0.5 + _HALF_LOG_TWO_PI).sum(-1)

    def entropy_estimate(self, pre_squash: torch.Tensor) -> torch.Tensor:
        """Return the one-sample estimate of the entropy of the squashed action [nat], ``(...)``."""
        return -self.log_prob_squashed(pre_squash)
