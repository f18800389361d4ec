"""State entropy of pooled particles by k-nearest neighbours: estimates, per-particle rewards, population statistics.

Rewards after MEPOL (arXiv 2007.04640) and K-Myriad (arXiv 2601.18580). Entropies are in nats, differential ones in the
unit of the features. Nothing here waits for the device, except the checks of :func:`myriad_lab.functional.knn.knn` on
the CPU.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch

from myriad_lab.errors import ConfigurationError, nearest
from myriad_lab.functional.collective import ALONE, Collective
from myriad_lab.functional.estimators import (
    MIN_RADIUS,
    digamma,
    gather_from_neighbourhoods,
    importance_weighted_entropy,
    kl_from_radii,
    knn_entropy,
    log_ball_volume,
)
from myriad_lab.functional.knn import group_sizes, knn, knn_within
from myriad_lab.functional.masked import masked_mean

__all__ = [
    "EntropyEstimate",
    "deal",
    "entropy",
    "head_statistics",
    "importance_weighted_entropy",
    "kl_to_others",
    "knn_entropy",
    "log_ball_volume",
    "particle_rewards",
    "population_statistics",
]

RewardKind = Literal["mepol", "centred", "own"]
REWARD_KINDS = ("mepol", "centred", "own")


@dataclass
class EntropyEstimate:
    """An entropy estimate with what each particle contributes."""

    rewards: torch.Tensor
    """Reward of each particle, shape (n,); not centred."""
    entropy: torch.Tensor
    """Entropy of the pool [nat], scalar."""
    log_volumes: torch.Tensor
    """Log volume of the ball that reaches the k-th neighbour, shape (n,)."""
    neighbours: torch.Tensor
    """The k nearest particles of each particle, nearest first, long (n, k)."""


def entropy(
    points: torch.Tensor,
    k: int,
    *,
    references: torch.Tensor | None = None,
    trajectory_ids: torch.Tensor | None = None,
    reference_ids: torch.Tensor | None = None,
    min_radius: float = MIN_RADIUS,
) -> torch.Tensor:
    """Return the entropy estimate of the distribution that ``points`` were drawn from.

    Args:
        points: Particles, shape (n, d).
        k: Which neighbour.
        references: Particles to search among, shape (m, d); ``points`` themselves where ``None``. An independent
            sample, or a superset of ``points`` with the ids that tell a particle from itself.
        trajectory_ids: If given, neighbours with the id of the particle are left out, shape (n,).
        reference_ids: Ids of the references, shape (m,).
        min_radius: See :func:`log_ball_volume`.

    Returns:
        Entropy [nat], scalar.

    Raises:
        ConfigurationError: As in :func:`myriad_lab.functional.knn.knn`.
    """
    if references is None and trajectory_ids is None:
        distances, _ = knn(points, points, k, exclude="self")
        count: int | torch.Tensor = len(points) - 1
    else:
        others = points if references is None else references
        other_ids = trajectory_ids if references is None else reference_ids
        exclude = "none" if trajectory_ids is None else "group"
        distances, _ = knn(points, others, k, query_groups=trajectory_ids, reference_groups=other_ids, exclude=exclude)
        count = len(others)
        if trajectory_ids is not None:
            count = len(others) - group_sizes(trajectory_ids, other_ids)
    return knn_entropy(log_ball_volume(distances[:, -1], points.shape[1], min_radius), count, k)


def particle_rewards(
    points: torch.Tensor,
    k: int,
    kind: RewardKind | str = "own",
    *,
    trajectory_ids: torch.Tensor | None = None,
    exclude_own_trajectory: bool = False,
    valid: torch.Tensor | None = None,
    min_radius: float = MIN_RADIUS,
    ranks: Collective = ALONE,
) -> EntropyEstimate:
    """Return what each particle adds to the entropy of the pool.

    With ``R_j`` the particles whose neighbourhood (themselves and their k - 1 nearest) contains particle j:

    * ``mepol``: ``(1/k) sum_{i in R_j} (ln V_i + ln(N/k) - 1)``. The policy gradient with this reward, undiscounted
      reward-to-go and the global mean as baseline is the exact gradient of the importance-weighted estimate of MEPOL
      at the behaviour policy. Its meaning depends on the unit of the features: scaling by s adds ``d ln s |R_j| / k``.
    * ``centred``: ``(1/k) sum_{i in R_j} (ln V_i - mean ln V)``, independent of the unit.
    * ``own``: ``ln V_j``, which the unit shifts by a constant that a baseline removes.

    Args:
        points: Particles of all policies of all ranks, shape (n, d).
        k: Which neighbour.
        kind: One of the three.
        trajectory_ids: Trajectory of each particle, shape (n,).
        exclude_own_trajectory: Whether neighbours of the particle's own trajectory are left out.
        valid: Particles that count, bool (n,); the others must lie where they are nobody's neighbours
            (:func:`myriad_lab.functional.masked.park_invalid`), and give nobody a reward.
        min_radius: See :func:`log_ball_volume`.
        ranks: Each searches for the neighbours of its own block of the particles, in the pool of all; rewards, log
            volumes and neighbours in the result are those of the block, the entropy is that of the pool.

    Raises:
        ConfigurationError: Unknown ``kind``, ids missing, or as in :func:`myriad_lab.functional.knn.knn`.
    """
    if kind not in REWARD_KINDS:
        raise ConfigurationError(f"reward={kind!r} is unknown. {nearest(str(kind), REWARD_KINDS)}")
    if exclude_own_trajectory and trajectory_ids is None:
        raise ConfigurationError("exclude_own_trajectory needs trajectory_ids, one id for each particle; got None.")
    ids = trajectory_ids if exclude_own_trajectory else None
    if valid is None:
        valid = torch.ones(len(points), dtype=torch.bool, device=points.device)
    elif ids is not None:
        # Parked particles have trajectories of their own: they must not fill up anybody's.
        ids = torch.where(valid, ids, -1 - torch.arange(len(points), device=points.device))
    own_valid, own_ids = ranks.own_rows(valid), None if ids is None else ranks.own_rows(ids)
    distances, neighbours = _search_own(points, k, ids, ranks)
    log_volumes = log_ball_volume(distances[:, -1], points.shape[1], min_radius)
    num_valid = valid.sum().clamp_min(1)
    others = (num_valid - (1 if own_ids is None else group_sizes(own_ids, ids))).clamp_min(1).to(points.dtype)
    estimate = masked_mean(log_volumes + others.log(), own_valid, ranks=ranks) - digamma(k)
    if kind == "own":
        return EntropyEstimate(log_volumes, estimate, log_volumes, neighbours)
    if kind == "mepol":
        shift = (num_valid.to(points.dtype) / k).log() - 1.0
    else:
        shift = -masked_mean(log_volumes, own_valid, ranks=ranks)
    rewards = gather_from_neighbourhoods(torch.where(own_valid, log_volumes + shift, 0.0), neighbours, ranks)
    return EntropyEstimate(rewards, estimate, log_volumes, neighbours)


def _search_own(
    points: torch.Tensor, k: int, ids: torch.Tensor | None, ranks: Collective
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the neighbours of this rank's particles in the pool, those of the same id, or themselves, left out."""
    own = ranks.own_rows(points)
    if ids is not None:
        return knn(own, points, k, query_groups=ranks.own_rows(ids), reference_groups=ids, exclude="group")
    if ranks.world_size == 1:
        return knn(points, points, k, exclude="self")
    # The search knows a query's own row only where the queries are all of the references: ask for one more, and leave
    # the particle itself out, or the last one where copies of it stand before it.
    distances, neighbours = knn(own, points, k + 1)
    rows = ranks.own_rows(torch.arange(len(points), device=points.device))
    itself = neighbours == rows.unsqueeze(1)
    place = torch.where(itself.any(1), itself.int().argmax(1), k).unsqueeze(1)
    columns = torch.arange(k, device=points.device)
    kept = columns + (columns >= place)
    return distances.gather(1, kept), neighbours.gather(1, kept)


def population_statistics(
    points: torch.Tensor, k: int, *, num_trajectories: int | None = None, min_radius: float = MIN_RADIUS
) -> dict[str, torch.Tensor]:
    """Return the entropy of the pool of a population beside its :func:`head_statistics`, whose arguments these are.

    Returns:
        ``entropy_pool``, the entropy of all m n particles [nat], and the entries of :func:`head_statistics`.

    Raises:
        ConfigurationError: As there.
    """
    heads = head_statistics(points, k, num_trajectories=num_trajectories, min_radius=min_radius)
    pool = points.flatten(0, 1)
    radii = knn(pool, pool, k, exclude="self")[0][:, -1]
    entropy_pool = knn_entropy(log_ball_volume(radii, points.shape[2], min_radius), len(pool) - 1, k)
    return {"entropy_pool": entropy_pool} | heads


def head_statistics(
    points: torch.Tensor,
    k: int,
    *,
    num_trajectories: int | None = None,
    min_radius: float = MIN_RADIUS,
    ranks: Collective = ALONE,
) -> dict[str, torch.Tensor]:
    """Return entropies, diversity and divergences of policies; compare them at equal m n, k and scaling only.

    The entropy of the mixture is the mean entropy of the policies plus their diversity, the generalised Jensen-Shannon
    divergence between 0 and ln m. The bias of the estimator depends on the number of particles, and those of one
    trajectory lie together whoever the policy is. So diversity sets the policies against as many groups of as many
    whole trajectories, dealt out evenly: 0 on average for equal policies, at most ln m and ln ``num_trajectories``.

    Args:
        points: Particles by policy, of all ranks, shape (m, n, d), those of a trajectory one after another.
        k: Which neighbour, below n.
        num_trajectories: Trajectories of each policy; ``None`` where the particles are independent draws.
        min_radius: Lower bound of a neighbour distance, in the unit of the features.
        ranks: Each searches for its own block of the policies; the result is that of all.

    Returns:
        ``entropy_mixed``: mean of the m groups of n particles that are
        dealt out from all policies; ``entropy_heads`` (m,); ``diversity`` = ``entropy_mixed`` - mean
        ``entropy_heads``; ``diversity_normalised``: divided by ln m (0 for m = 1); ``kl_heads`` (m,): divergence of
        each policy from the mixture of the others (0 for m = 1), too high where trajectories are few. All in nats,
        except for the normalised one.

    Raises:
        ConfigurationError: Wrong shape, n not above k, features that are not finite.
    """
    if points.ndim != 3:
        raise ConfigurationError(f"points must have the shape (m, n, d), got {tuple(points.shape)}.")
    num_policies, num_points, dim = points.shape
    if not 1 <= k < num_points:
        raise ConfigurationError(
            f"k = {k} with {num_points} particles for each of {num_policies} policies; expected 1 <= k < {num_points}. "
            "Lower k or take more particles."
        )
    rho = knn_within(ranks.own_rows(points), k)[0][..., -1]
    own_heads = knn_entropy(log_ball_volume(rho, dim, min_radius), num_points - 1, k)
    if num_policies == 1:
        zero = own_heads.new_zeros(())
        one = {"entropy_mixed": own_heads[0], "entropy_heads": own_heads, "kl_heads": zero[None]}
        return one | {"diversity": zero, "diversity_normalised": zero}
    mixed_radii = knn_within(ranks.own_rows(deal(points, num_trajectories)), k)[0][..., -1]
    own_mixed = knn_entropy(log_ball_volume(mixed_radii, dim, min_radius), num_points - 1, k)
    own_kl = kl_to_others(points, rho, k, min_radius, ranks)
    found = ranks.gather_rows(torch.stack((own_heads, own_mixed, own_kl), dim=1))
    entropy_heads, entropy_mixed = found[:, 0], found[:, 1].mean()
    diversity = entropy_mixed - entropy_heads.mean()
    return {
        "entropy_mixed": entropy_mixed,
        "entropy_heads": entropy_heads,
        "diversity": diversity,
        "diversity_normalised": diversity / math.log(num_policies),
        "kl_heads": found[:, 2],
    }


def kl_to_others(
    points: torch.Tensor, rho: torch.Tensor, k: int, min_radius: float = MIN_RADIUS, ranks: Collective = ALONE
) -> torch.Tensor:
    """Return the divergence of each policy's particles from those of all others together [nat], shape (m,).

    Args:
        points: Particles by policy, of all ranks, shape (m, n, d), m at least 2.
        rho: Distance to the k-th neighbour within the policy, for the policies of this rank, shape (m, n) in one
            process.
        k: Which neighbour.
        min_radius: Lower bound of a neighbour distance.
        ranks: Each gets the divergences of its own policies.
    """
    num_policies, num_points, dim = points.shape
    pool = points.flatten(0, 1)
    heads = torch.arange(num_policies, device=points.device).repeat_interleave(num_points)
    own, own_heads = ranks.own_rows(pool), ranks.own_rows(heads)
    nu = knn(own, pool, k, query_groups=own_heads, reference_groups=heads, exclude="group")[0][:, -1]
    others = (num_policies - 1) * num_points
    return kl_from_radii(rho, nu.view_as(rho), dim, num_points, others, min_radius)


def deal(points: torch.Tensor, num_trajectories: int | None = None) -> torch.Tensor:
    """Return the particles dealt out to m groups of n, each with as many trajectories of each policy as can be.

    The rows of each policy are cut into ``min(m, num_trajectories)`` runs of equal length, and group g takes run i of
    policy g + i (modulo m). Every particle is dealt once.

    Args:
        points: Particles by policy, shape (m, n, d), those of a trajectory one after another.
        num_trajectories: Trajectories of each policy; ``None`` where the particles are independent draws.
    """
    num_policies, num_points, _ = points.shape
    runs = min(num_policies, num_points if num_trajectories is None else num_trajectories)
    rows = torch.arange(num_points, device=points.device)
    groups = torch.arange(num_policies, device=points.device).unsqueeze(1)
    return points[(groups + rows * runs // num_points) % num_policies, rows]
