"""Nearest-neighbour estimators of entropy and divergence, given the neighbours.

Everything is in the log domain (a volume leaves float32 range at 64 dimensions) and distances are clamped from below
instead of adding an epsilon to volumes or densities. Estimator: Kozachenko and Leonenko (1987) in the form of Singh et
al. (2003); importance weights after MEPOL (arXiv 2007.04640). Entropies are in nats.
"""

from __future__ import annotations

import math

import torch

from myriad_lab.functional.collective import ALONE, Collective

MIN_RADIUS = 1e-4
"""Default lower bound of a neighbour distance, in the unit of the features (features of order one)."""


def log_ball_volume(radius: torch.Tensor, dim: int, min_radius: float = MIN_RADIUS) -> torch.Tensor:
    """Return the log volume of ``dim``-dimensional balls, ``d ln max(r, r_min) + d/2 ln pi - ln Gamma(d/2 + 1)``.

    Args:
        radius: Radii, any shape.
        dim: Number of dimensions.
        min_radius: Smaller radii count as this one, so that duplicates have finite volumes.
    """
    unit = 0.5 * dim * math.log(math.pi) - math.lgamma(0.5 * dim + 1.0)
    return dim * radius.clamp_min(min_radius).log() + unit


def digamma(k: int) -> float:
    """Return the digamma function of a positive integer, ``sum_{i<k} 1/i - gamma_Euler``."""
    return math.fsum(1.0 / i for i in range(1, k)) - 0.57721566490153286061


def knn_entropy(log_volumes: torch.Tensor, num_references: int | torch.Tensor, k: int) -> torch.Tensor:
    """Return ``mean ln V + ln M - digamma(k)`` [nat] over the last axis.

    Args:
        log_volumes: Log volumes up to the k-th neighbour, shape (..., n).
        num_references: References a particle could see, itself left out: a number, or one for each particle.
        k: Which neighbour.
    """
    if not isinstance(num_references, torch.Tensor):
        return log_volumes.mean(dim=-1) + (math.log(num_references) - digamma(k))
    return (log_volumes + num_references.to(log_volumes.dtype).log()).mean(dim=-1) - digamma(k)


def importance_weighted_entropy(
    log_volumes: torch.Tensor, neighbours: torch.Tensor, log_ratios: torch.Tensor
) -> torch.Tensor:
    """Return the entropy of the target policy's states from particles of the behaviour policy [nat].

    ``- sum_i (W_i / k) ln(W_i / V_i) + ln k - digamma(k)`` with ``W_i`` the self-normalised weight in the neighbourhood
    of particle i (MEPOL, arXiv 2007.04640). Differentiable in ``log_ratios``.

    Args:
        log_volumes: Log volumes up to the k-th neighbour, shape (n,).
        neighbours: The k nearest others of each particle, shape (n, k).
        log_ratios: Log likelihood ratio of the actions that led to each particle, target over behaviour, shape (n,).
    """
    k = neighbours.shape[1]
    weights = log_ratios.softmax(dim=0)
    weights = weights + weights[neighbours[:, :-1]].sum(dim=1)
    return -(weights / k * (weights.log() - log_volumes)).sum() + (math.log(k) - digamma(k))


def kl_from_radii(
    rho: torch.Tensor, nu: torch.Tensor, dim: int, num_points: int, num_others: int, min_radius: float
) -> torch.Tensor:
    """Return KL(p || q) [nat] from samples of both (Wang, Kulkarni and Verdu, 2009), over the last axis.

    ``(d/n) sum_x ln(nu_k(x) / rho_k(x)) + ln(m / (n - 1))``.

    Args:
        rho: Distance of each particle of p to the k-th other one, shape (..., n).
        nu: Its distance to the k-th particle of q, shape (..., n).
        dim: Number of dimensions d.
        num_points: Particles n of p.
        num_others: Particles m of q.
        min_radius: See :func:`log_ball_volume`.
    """
    log_ratio = nu.clamp_min(min_radius).log() - rho.clamp_min(min_radius).log()
    return dim * log_ratio.mean(dim=-1) + math.log(num_others / (num_points - 1))


def gather_from_neighbourhoods(
    values: torch.Tensor, neighbours: torch.Tensor, ranks: Collective = ALONE
) -> torch.Tensor:
    """Return ``(1/k) sum_{i in R_j} values_i`` for each j: each particle hands its value to its neighbourhood.

    Args:
        values: One value for each particle of this rank, shape (n,).
        neighbours: The k nearest others of each particle, rows of the pool of all ranks, shape (n, k); the
            neighbourhood is the particle itself and the first k - 1 of them.
        ranks: Whose particles form the pool.
    """
    k = neighbours.shape[1]
    receivers = neighbours[:, : k - 1].flatten()
    handed_out = values.new_zeros(ranks.world_size * len(values))
    ranks.own_rows(handed_out).copy_(values)
    handed_out.index_add_(0, receivers, values.repeat_interleave(k - 1))
    return ranks.own_rows(ranks.sum(handed_out)) / k


def log_weight_sums(log_weights: torch.Tensor) -> torch.Tensor:
    """Return ``ln sum w`` and ``ln sum w^2`` over the last axis, shape (..., 2); those of parts add up under the log.

    Args:
        log_weights: Log importance weights, shape (..., n).
    """
    return torch.stack((log_weights.logsumexp(dim=-1), (2.0 * log_weights).logsumexp(dim=-1)), dim=-1)


def effective_sample_size(log_sums: torch.Tensor) -> torch.Tensor:
    """Return ``(sum w)^2 / sum w^2``: n for n equal weights, 1 where one weight dominates.

    Args:
        log_sums: What :func:`log_weight_sums` returns, shape (..., 2); a factor common to all weights cancels.
    """
    return (2.0 * log_sums[..., 0] - log_sums[..., 1]).exp()
