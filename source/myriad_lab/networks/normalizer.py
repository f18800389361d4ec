"""Running normalisation of observations, carried by the model that reads them."""

from __future__ import annotations

import torch
from torch import nn

from myriad_lab.functional.collective import ALONE, Collective


class RunningNormalizer(nn.Module):
    """Shift and scale observations to zero mean and unit variance, then clip.

    Statistics are merged by count (Chan et al. 1979, eq. 2.1), so that the result does not depend on how the data were
    cut into batches. They live in buffers: in the state dict, in the exported graph, never in an optimiser. The clip is
    applied wherever the module is called, so collection, learning and export see the same numbers.
    """

    mean: torch.Tensor
    var: torch.Tensor
    count: torch.Tensor

    def __init__(self, num_features: int, clip: float = 10.0, eps: float = 1e-8) -> None:
        super().__init__()
        self.clip = clip
        self.eps = eps
        self.register_buffer("mean", torch.zeros(num_features))
        self.register_buffer("var", torch.ones(num_features))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))

    @torch.no_grad()
    def update(self, obs: torch.Tensor, ranks: Collective = ALONE) -> None:
        """Merge a batch of observations ``(..., num_features)``, as many on every rank, into the statistics."""
        rows = obs.reshape(-1, self.mean.shape[0])
        means, variances = ranks.gather_rows(torch.stack((rows.mean(0), rows.var(0, correction=0)))[None]).unbind(1)
        # The same merge by count, of batches that all count the same.
        batch_mean, batch_var = means.mean(0), variances.mean(0) + means.var(0, correction=0)
        num_rows = ranks.world_size * rows.shape[0]
        total = self.count + num_rows
        share = (num_rows / total).to(self.mean.dtype)
        delta = batch_mean - self.mean
        # The first batch (share 1) replaces the initial values, including the unit variance.
        self.var.copy_(torch.lerp(self.var, batch_var, share) + delta.square() * share * (1.0 - share))
        self.mean.add_(delta * share)
        self.count.copy_(total)

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        """Return the normalised observations, same shape."""
        normalized = (obs - self.mean) * torch.rsqrt(self.var + self.eps)
        return normalized.clamp(-self.clip, self.clip)
