"""From visited states to rewards: how much each particle adds to the entropy of the pool."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch

from myriad_lab.errors import ConfigurationError, nearest
from myriad_lab.functional.entropy import REWARD_KINDS, particle_rewards, population_statistics
from myriad_lab.functional.masked import masked_mean, masked_std, park_invalid, standardize


@dataclass
class StateRewardCfg:
    """Settings of the particle rewards."""

    reward: str = "own"
    """Reward of a particle: ``own`` (log volume of its own neighbourhood), ``mepol`` (exact gradient of the estimate,
    the paper's) or ``centred`` (the same, made independent of the unit of the features)."""
    k: int = 5
    """Which nearest neighbour spans the neighbourhood."""
    particle_stride: int = 5
    """Every how many env steps a state becomes a particle; the others have no reward of their own."""
    exclude_own_trajectory: bool = False
    """Whether neighbours from the same trajectory are left out."""
    feature_scale: list[float] = field(default_factory=list)
    """Fixed unit of each feature (one number for all, or one each; empty: as they are). Running statistics would change
    the objective while it is optimised."""
    min_radius: float = 1e-4
    """Lower bound of a neighbour's distance, in scaled units, so that duplicates have finite volumes."""
    statistics_interval: int = 1
    """Iterations between two measurements of the heads' own entropies, their diversity and divergences."""

    def validate(self) -> None:
        """Raise ``ConfigurationError`` where a value is out of range."""
        if self.reward not in REWARD_KINDS:
            raise ConfigurationError(f"reward={self.reward!r} is unknown. {nearest(self.reward, REWARD_KINDS)}")
        for name in ("k", "particle_stride", "statistics_interval"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"{name}={getattr(self, name)} must be at least 1")
        if not self.min_radius > 0.0:
            raise ConfigurationError(f"min_radius={self.min_radius} must be positive")
        if any(not scale > 0.0 for scale in self.feature_scale):
            raise ConfigurationError(f"feature_scale={self.feature_scale} must be positive")


class StateRewards:
    """Rewards the states of one rollout by the entropy of the pool of all policies."""

    def __init__(
        self,
        cfg: StateRewardCfg,
        num_steps: int,
        num_envs: int,
        num_policies: int,
        num_features: int,
        device: torch.device | str = "cpu",
    ) -> None:
        """Create the reward.

        Raises:
            ConfigurationError: If the particles of a rollout are too few for ``k``, or ``feature_scale`` does not fit.
        """
        cfg.validate()
        if len(cfg.feature_scale) not in (0, 1, num_features):
            raise ConfigurationError(
                f"feature_scale has {len(cfg.feature_scale)} entries for {num_features} features; give none, one or"
                f" {num_features}"
            )
        self.cfg = cfg
        self.num_policies = num_policies
        self.per_trajectory = num_steps // cfg.particle_stride
        allowed = self.per_trajectory * (num_envs - 1 if cfg.exclude_own_trajectory else num_envs)
        if cfg.k >= allowed:
            raise ConfigurationError(
                f"k={cfg.k} must be below the number of particles a neighbour may come from, {allowed} ({num_envs} envs"
                f" x {num_steps} steps, every {cfg.particle_stride}th); lower k or particle_stride"
            )
        self.per_policy = self.per_trajectory * num_envs // num_policies
        scale = torch.tensor(cfg.feature_scale or [1.0], dtype=torch.float32, device=device).expand(num_features)
        self._scale = scale
        self._log_unit = math.fsum(math.log(s) for s in scale.tolist())
        self._trajectory_ids = torch.arange(num_envs, device=device).repeat_interleave(self.per_trajectory)
        self._own = self.per_trajectory if cfg.exclude_own_trajectory else 1
        self._calls = 0
        self.head_statistics: dict[str, torch.Tensor] = {}
        """Entropy [nat] and divergence from the others [nat] of each policy, (m,), as measured last."""

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
            of particles, a scalar; statistics of the pool.
        """
        cfg = self.cfg
        mask = self.particles(valid).flatten()
        points = park_invalid(self.particles(features / self._scale).flatten(0, 1), mask)
        found = particle_rewards(
            points,
            cfg.k,
            cfg.reward,
            trajectory_ids=self._trajectory_ids,
            exclude_own_trajectory=cfg.exclude_own_trajectory,
            min_radius=cfg.min_radius,
        )
        if scaled:
            centred = standardize(found.rewards, mask)
        else:
            centred = torch.where(mask, found.rewards - masked_mean(found.rewards, mask), 0.0)
        rewards = torch.zeros(valid.shape, device=features.device)
        self.particles(rewards).copy_(centred.view(valid.shape[1], -1))
        count = mask.sum().clamp_min(1)
        references = (count - self._own).clamp_min(1).log()
        entropy = masked_mean(found.log_volumes, mask) + references - torch.digamma(torch.tensor(float(cfg.k)))
        metrics = {
            "Population/entropy_pool": entropy + self._log_unit,
            "Population/reward_std": masked_std(found.rewards, mask),
        }
        if self._calls % cfg.statistics_interval == 0 and cfg.k < self.per_policy:
            metrics |= self._statistics(points)
        self._calls += 1
        return rewards, count, metrics

    def state_dict(self) -> dict[str, int]:
        """Return the counter that spaces the statistics out."""
        return {"calls": self._calls}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Restore what ``state_dict`` returned."""
        self._calls = int(state["calls"])

    def _statistics(self, points: torch.Tensor) -> dict[str, torch.Tensor]:
        """Measure the heads; the few parked points of diverged envs are part of them."""
        by_policy = points.view(self.num_policies, self.per_policy, -1)
        found = population_statistics(by_policy, self.cfg.k, min_radius=self.cfg.min_radius)
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
