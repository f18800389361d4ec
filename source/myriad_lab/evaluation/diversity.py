"""Entropy and diversity of a portfolio from recorded features."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from myriad_lab.errors import ConfigurationError
from myriad_lab.evaluation.metrics import interval
from myriad_lab.functional.entropy import population_statistics
from myriad_lab.portfolio.recording import EpisodeRecord, select_visits

POOL_SIZE = 16_384
"""Particles in the pool of all heads."""
NEIGHBOURS = 50
"""Neighbours k of the entropy estimate, where every head has more particles."""


def diversity_metrics(
    record: EpisodeRecord,
    *,
    k: int | None = None,
    pool_size: int = POOL_SIZE,
    num_groups: int = 8,
    seed: int = 0,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the portfolio statistics with intervals over disjoint groups of episodes.

    Bootstrap resamples hold the same particle twice, which ruins nearest-neighbour distances. The episodes of every
    head are therefore dealt to ``num_groups`` groups, the statistics are computed on each, with the same number of
    particles for every head and group, and the interval is over groups. There are fewer groups where a head would have
    fewer episodes in a group than there are heads: diversity could not be told from chance. The first state of an
    episode is left out: no policy chose it, and where all episodes start at one point it would be an atom, whose
    entropy has no lower bound.

    Args:
        record: Episodes with features, m heads.
        k: Neighbours of the estimate; by default 50, or half the particles of a head if there are fewer than 100.
        pool_size: Particles in the pool of all heads; compare values at equal pool size and k only.
        num_groups: Groups of episodes, at most.
        seed: Seed of the subsampling.

    Returns:
        Portfolio: ``entropy_pool``, ``entropy_heads_mean``, ``diversity``, ``diversity_normalised`` [nats], ``k``,
        ``pool_size``; and for each head ``entropy`` and ``kl`` (to the rest) [nats].

    Raises:
        ConfigurationError: If k is not smaller than the particles of a head, or features hold NaN.
    """
    groups = _deal(record, pool_size // record.num_policies, num_groups, seed)
    particles = groups[0].shape[1]
    k = choose_neighbours(k, particles, record.num_policies)
    episodes = max(1, len(record.returns[0]) // len(groups))
    results = [
        _plain(population_statistics(torch.from_numpy(points), k, num_trajectories=episodes)) for points in groups
    ]
    portfolio: dict[str, Any] = {
        "entropy_heads_mean": interval([result["entropy_heads"].mean() for result in results], seed),
        **{
            name: interval([float(result[name]) for result in results], seed)
            for name in ("entropy_pool", "diversity", "diversity_normalised")
        },
        "k": k,
        "pool_size": particles * record.num_policies,
        "groups": len(groups),
    }
    heads = [
        {
            name: interval([result[key][head] for result in results], seed)
            for name, key in (("entropy", "entropy_heads"), ("kl", "kl_heads"))
        }
        for head in range(record.num_policies)
    ]
    return portfolio, heads


def choose_neighbours(k: int | None, particles: int, num_policies: int) -> int:
    """Return which neighbour to measure at: ``k``, or what suits the number of ``particles`` per head.

    Raises:
        ConfigurationError: If k is not smaller than the particles of a head.
    """
    k = max(1, min(NEIGHBOURS, particles // 2)) if k is None else k
    if not 1 <= k < particles:
        raise ConfigurationError(
            f"k={k} with {particles} particles for each of {num_policies} heads; k must be at least 1 and smaller than "
            "that: lower k, or raise pool_size or the number of episodes"
        )
    return k


def _deal(record: EpisodeRecord, particles: int, num_groups: int, seed: int) -> list[np.ndarray]:
    """Return arrays (m, n, d), one per group of episodes, with the same n everywhere."""
    if record.features is None or record.valid is None:
        raise ConfigurationError("the recording holds no features to measure diversity on; record them")
    features, valid = record.features[:, :, 1:], record.valid[:, :, 1:]
    num_groups = max(1, min(num_groups, features.shape[1] // record.num_policies))
    visits = [
        select_visits(features[:, start::num_groups], valid[:, start::num_groups], particles, seed)
        for start in range(num_groups)
    ]
    count = min(len(rows) for group in visits for rows in group)
    if count == 0:
        raise ConfigurationError("a head has no recorded state after the first in a group of episodes; record more")
    # select_visits draws at random already; a head with more rows than the poorest one is thinned evenly.
    groups = [
        np.stack([rows[np.linspace(0, len(rows) - 1, count).astype(np.int64)] for rows in group]) for group in visits
    ]
    if not all(np.isfinite(points).all() for points in groups):
        raise ConfigurationError("the recorded features hold NaN or infinity; no entropy can be estimated")
    return groups


def _plain(statistics: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {name: value.double().cpu().numpy() for name, value in statistics.items()}
