"""The tanh-squashed Gaussian, kept in the space before the squash."""

from __future__ import annotations

import math

import torch

from myriad_lab.functional.collective import ALONE, Collective

_HALF_LOG_TWO_PI = 0.5 * math.log(2.0 * math.pi)


class TanhGaussian:
    """Diagonal Gaussian whose samples are squashed by tanh.

    Actions are stored before the squash, so no inverse of tanh is ever taken. In a likelihood ratio the Jacobian of the
    squash cancels, so ``log_prob`` leaves it out.
    """

    def __init__(self, mean: torch.Tensor, log_std: torch.Tensor) -> None:
        """Take the mean and log standard deviation before the squash, both ``(..., num_actions)``."""
        self.mean = mean
        self.log_std = log_std

    def sample(self, generator: torch.Generator | None = None, ranks: Collective = ALONE) -> torch.Tensor:
        """Draw actions before the squash, ``(..., num_actions)``; differentiable in mean and log std.

        The noise is that of this rank's rows of the distributions of all ``ranks``.
        """
        like = {"device": self.mean.device, "dtype": self.mean.dtype}
        noise = ranks.draw(torch.randn, *self.mean.shape, generator=generator, **like)
        return self.mean + self.log_std.exp() * noise

    def log_prob(self, pre_squash: torch.Tensor) -> torch.Tensor:
        """Return the log density of the action before the squash, ``(...)``."""
        scaled = (pre_squash - self.mean) * torch.exp(-self.log_std)
        return (-0.5 * scaled.square() - self.log_std - _HALF_LOG_TWO_PI).sum(-1)

    def entropy(self) -> torch.Tensor:
        """Return the exact entropy before the squash [nat], ``(...)``."""
        return (self.log_std + 0.5 + _HALF_LOG_TWO_PI).sum(-1)
