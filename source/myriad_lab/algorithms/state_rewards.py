"""From visited states to rewards: how much each particle adds to the entropy of the pool."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from myriad_lab.errors import ConfigurationError, nearest
from myriad_lab.functional.collective import ALONE, Collective
from myriad_lab.functional.entropy import REWARD_KINDS, EntropyEstimate, head_statistics, particle_rewards
from myriad_lab.functional.masked import masked_mean, masked_std, park_invalid, standardize
from myriad_lab.storage.particles import ParticleBuffer

logger = logging.getLogger(__name__)


@dataclass
class StateRewardCfg:
    """Settings of the particle rewards."""

    reward: str = "own"
    """Reward of a particle: ``own`` (log volume of its own neighbourhood), ``mepol`` (exact gradient of the estimate,
    the paper's) or ``centred`` (the same, made independent of the unit of the features)."""
    k: int = 20
    """Which nearest neighbour spans the neighbourhood."""
    particle_stride: int = 5
    """Every how many env steps a state becomes a particle; the others have no reward of their own."""
    exclude_own_trajectory: bool = False
    """Whether neighbours from the same trajectory, all that one env visits in a rollout, are left out."""
    feature_scale: list[float] = field(default_factory=list)
    """Fixed unit of each feature (one number for all, or one each; empty: as they are). Running statistics would change
    the objective while it is optimised."""
    min_radius: float = 1e-4
    """Lower bound of a neighbour's distance, in scaled units, so that duplicates have finite volumes."""
    window: int = 1
    """Iterations whose particles form the pool: 1 is the entropy of the policies as they are; more also rewards what
    differs from the recent past."""
    max_particles: int = 131_072
    """Largest pool; of more particles, as many of each policy are drawn, spread evenly over envs and time. Those not
    drawn have no reward of their own."""
    statistics_interval: int = 1
    """Iterations between two measurements of the heads' own entropies, their diversity and divergences."""

    def validate(self) -> None:
        """Raise ``ConfigurationError`` where a value is out of range."""
        if self.reward not in REWARD_KINDS:
            raise ConfigurationError(f"reward={self.reward!r} is unknown. {nearest(self.reward, REWARD_KINDS)}")
        for name in ("k", "particle_stride", "window", "max_particles", "statistics_interval"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"{name}={getattr(self, name)} must be at least 1")
        if not self.min_radius > 0.0:
            raise ConfigurationError(f"min_radius={self.min_radius} must be positive")
        if any(not 0.0 < scale < math.inf for scale in self.feature_scale):
            raise ConfigurationError(f"feature_scale={self.feature_scale} must be positive numbers")


class _Pool(NamedTuple):
    """Rewards of this rank's particles of this rollout, in the order of envs, then time."""

    rewards: torch.Tensor
    """Rewards, not centred, (n,)."""
    rewarded: torch.Tensor
    """Particles that have one, bool (n,)."""
    current: torch.Tensor
    """Particles of this rollout for the statistics, by policy, of all ranks, (m, rows, num_features)."""
    entropy: torch.Tensor
    """Entropy of this rollout's particles [nat], in scaled units, a scalar."""


class StateRewards:
    """Rewards the states of one rollout by the entropy of the pool of all policies.

    On several ranks each has the particles of its own envs; the pool is gathered, and each searches it for the
    neighbours of its own particles. Of a pool that is drawn, only what is drawn is sent.
    """

    def __init__(
        self,
        cfg: StateRewardCfg,
        num_steps: int,
        num_envs: int,
        num_policies: int,
        num_features: int,
        device: torch.device | str = "cpu",
        seed: int = 0,
        ranks: Collective = ALONE,
    ) -> None:
        """Create the reward; ``seed`` is that of the drawing where particles are too many.

        Envs and policies are those of this rank.

        Raises:
            ConfigurationError: If the particles of a rollout are too few for ``k``, or ``feature_scale`` does not fit.
        """
        cfg.validate()
        if len(cfg.feature_scale) not in (0, 1, num_features):
            raise ConfigurationError(
                f"feature_scale has {len(cfg.feature_scale)} entries for {num_features} features; give none, one or"
                f" {num_features}"
            )
        self.cfg, self.ranks = cfg, ranks
        self.num_policies, self.num_features = num_policies, num_features
        self.device = torch.device(device)
        self.per_trajectory = num_steps // cfg.particle_stride
        self.per_policy = self.per_trajectory * num_envs // num_policies
        self._check_counts(num_envs * ranks.world_size, num_steps)
        self._measures_heads = cfg.k < min(self.per_policy, self.drawn_per_policy)
        scale = torch.tensor(cfg.feature_scale or [1.0], dtype=torch.float32, device=device).expand(num_features)
        self._scale = scale
        self._log_unit = math.fsum(math.log(s) for s in scale.tolist())
        self._generator = torch.Generator(self.device).manual_seed(seed)
        self._buffer: ParticleBuffer | None = None
        self._calls = 0
        self.head_statistics: dict[str, torch.Tensor] = {}
        """Entropy [nat] and divergence from the others [nat] of each policy, (m,), as measured last."""

    @property
    def drawn_per_policy(self) -> int:
        """Particles of each policy that fit into the largest pool."""
        return self.cfg.max_particles // (self.num_policies * self.ranks.world_size)

    def tell_of_few_particles(self) -> None:
        """Warn where a head has too few particles for an entropy of its own."""
        if not self._measures_heads:
            logger.warning(
                "the entropies of the heads, their diversity and divergences are not measured: k=%d is not below the %d"
                " particles of a head; lower k or num_policies, or take more particles",
                self.cfg.k,
                min(self.per_policy, self.drawn_per_policy),
            )

    def particles(self, field: torch.Tensor) -> torch.Tensor:
        """Return every ``particle_stride``-th row of ``(num_steps, num_envs, ...)``: ``(num_envs, particle, ...)``."""
        stride = self.cfg.particle_stride
        return field[stride - 1 :: stride].transpose(0, 1)

    @torch.no_grad()
    def __call__(
        self, features: torch.Tensor, valid: torch.Tensor, scaled: bool = True
    ) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        """Return the rewards of a rollout.

        Args:
            features: Features after each env step, shape (num_steps, num_envs, num_features).
            valid: Steps that count, bool (num_steps, num_envs).
            scaled: Whether to bring the rewards to unit variance over all particles.

        Returns:
            Rewards with zero mean over the particles and 0 on all other steps, shape (num_steps, num_envs); the number
            of particles of all ranks, a scalar; statistics of the pool.
        """
        points = self.particles(features / self._scale).flatten(0, 1)
        mask = self.particles(valid).flatten()
        whole = self.cfg.window == 1 and self.per_policy <= self.drawn_per_policy
        pool = self._reward_all(points, mask) if whole else self._reward_drawn(points, mask)
        if scaled:
            centred = standardize(pool.rewards, pool.rewarded, ranks=self.ranks)
        else:
            mean = masked_mean(pool.rewards, pool.rewarded, ranks=self.ranks)
            centred = torch.where(pool.rewarded, pool.rewards - mean, 0.0)
        rewards = torch.zeros(valid.shape, device=features.device)
        self.particles(rewards).copy_(centred.view(valid.shape[1], -1))
        metrics = {
            "Population/entropy_pool": pool.entropy + self._log_unit,
            "Population/reward_std": masked_std(pool.rewards, pool.rewarded, self.ranks),
        }
        if self._measures_heads and self._calls % self.cfg.statistics_interval == 0:
            metrics |= self._statistics(pool.current)
        self._calls += 1
        return rewards, self.ranks.sum(pool.rewarded.sum()).clamp_min(1), metrics

    def state_dict(self) -> dict[str, Any]:
        """Return past particles, those of all ranks, counter and generator; a call of all ranks."""
        return {
            "calls": self._calls,
            "generator": self._generator.get_state(),
            "buffer": None if self._buffer is None else self._buffer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self._calls = int(state["calls"])
        self._generator.set_state(state["generator"].cpu())
        if state["buffer"] is not None:
            self._make_buffer().load_state_dict(state["buffer"])

    def _check_counts(self, num_envs: int, num_steps: int) -> None:
        cfg, num_policies = self.cfg, self.num_policies * self.ranks.world_size
        drawn = min(self.per_policy, self.drawn_per_policy) * num_policies
        others = max(drawn - (self.per_trajectory if cfg.exclude_own_trajectory else 1), 0)
        if cfg.k > others:
            raise ConfigurationError(
                f"k={cfg.k} is more than the {others} other particles among which a particle looks for neighbours"
                f" ({num_envs} envs x {num_steps} steps, every {cfg.particle_stride}th, at most"
                f" max_particles={cfg.max_particles}); lower k or particle_stride, or raise max_particles"
            )

    def _reward_all(self, points: torch.Tensor, mask: torch.Tensor) -> _Pool:
        """Reward every particle of this rollout against all the others."""
        usable = self.ranks.gather_rows(mask)
        pool = park_invalid(self.ranks.gather_rows(points), usable)
        trajectories = torch.arange(len(pool), device=pool.device) // self.per_trajectory
        found = self._estimate(pool, trajectories, usable)
        # The entropy is measured in the same way whatever the rewards are, so that runs can be compared.
        measured = self._entropy(pool, usable) if self.cfg.exclude_own_trajectory else found.entropy
        return _Pool(found.rewards, mask, pool.unflatten(0, (-1, self.per_policy)), measured)

    def _reward_drawn(self, points: torch.Tensor, mask: torch.Tensor) -> _Pool:
        """Reward a part of the particles against a pool that may reach into the past."""
        buffer, shape, ranks = self._make_buffer(), (self.num_policies, self.per_policy), self.ranks
        first = (self._calls * ranks.world_size + ranks.rank) * len(points)
        ids = torch.arange(first, first + len(points), device=points.device)
        buffer.add(points.view(*shape, -1), ids.view(shape), mask.view(shape))
        count = min(buffer.num_filled, self.drawn_per_policy)
        part, drawn = (rows.flatten(0, 1) for rows in buffer.sample(count, self._generator))
        pool, pool_ids = ranks.gather_rows(part), ranks.gather_rows(drawn)
        usable = pool_ids >= 0
        found = self._estimate(park_invalid(pool, usable), pool_ids // self.per_trajectory, usable).rewards
        # What belongs to earlier rollouts goes to one extra slot, so that no count has to reach the host.
        slots = torch.where(drawn >= first, drawn - first, len(points))
        rewards = points.new_zeros(len(points) + 1).index_copy_(0, slots, found)[:-1]
        rewarded = torch.zeros(len(points) + 1, dtype=torch.bool, device=points.device)
        rewarded = rewarded.index_fill_(0, slots, True)[:-1]
        latest = buffer.sample(min(self.per_policy, self.drawn_per_policy), self._generator, window=1)
        current, ids = (ranks.gather_rows(rows) for rows in latest)
        usable = ids.flatten() >= 0
        parked = park_invalid(current.flatten(0, 1), usable)
        return _Pool(rewards, rewarded, parked.view_as(current), self._entropy(parked, usable))

    def _entropy(self, points: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return the entropy of the particles where ``mask``, in scaled units; the others are parked."""
        cfg = self.cfg
        return particle_rewards(points, cfg.k, valid=mask, min_radius=cfg.min_radius, ranks=self.ranks).entropy

    def _estimate(self, points: torch.Tensor, trajectory_ids: torch.Tensor, valid: torch.Tensor) -> EntropyEstimate:
        cfg = self.cfg
        return particle_rewards(
            points,
            cfg.k,
            cfg.reward,
            trajectory_ids=trajectory_ids,
            exclude_own_trajectory=cfg.exclude_own_trajectory,
            valid=valid,
            min_radius=cfg.min_radius,
            ranks=self.ranks,
        )

    def _statistics(self, current: torch.Tensor) -> dict[str, torch.Tensor]:
        """Measure the heads; the few parked points of diverged envs are part of them."""
        found = head_statistics(
            current,
            self.cfg.k,
            num_trajectories=self.per_policy // self.per_trajectory,
            min_radius=self.cfg.min_radius,
            ranks=self.ranks,
        )
        heads = found["entropy_heads"] + self._log_unit
        self.head_statistics = {"entropy": heads, "kl_to_others": found["kl_heads"]}
        return {
            "Population/entropy_heads_mean": heads.mean(),
            "Population/entropy_heads_min": heads.min(),
            "Population/entropy_heads_max": heads.max(),
            "Population/diversity": found["diversity"],
            "Population/diversity_normalised": found["diversity_normalised"],
            "Population/kl_heads_mean": found["kl_heads"].mean(),
        }

    def _make_buffer(self) -> ParticleBuffer:
        if self._buffer is None:
            capacity = self.cfg.window * self.per_policy
            sizes = (self.num_policies, capacity, self.num_features)
            self._buffer = ParticleBuffer(*sizes, self.device, ranks=self.ranks)
        return self._buffer
