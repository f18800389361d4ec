"""Particles of a population, a ring ``[policy, slot, feature]`` on the device, with stratified subsampling."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Mapping
from typing import Any

import torch

from myriad_lab.errors import CheckpointError, ConfigurationError
from myriad_lab.functional.collective import ALONE, Collective

logger = logging.getLogger(__name__)

EMPTY = -1
"""Trajectory id of a slot without a usable particle."""


class ParticleBuffer:
    """The latest particles of every policy, preallocated, poisoned with NaN, written and sampled without waiting.

    Args:
        num_policies: Policies m.
        capacity_per_policy: Slots of each policy.
        num_features: Features d of a particle.
        device: Where the memory lives.
        dtype: Of the features.
        ranks: Each keeps the particles of its own policies, and its state dict, a call of all ranks, holds those of
            all.

    Raises:
        ConfigurationError: If a size is not positive.
    """

    def __init__(
        self,
        num_policies: int,
        capacity_per_policy: int,
        num_features: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        ranks: Collective = ALONE,
    ) -> None:
        if min(num_policies, capacity_per_policy, num_features) < 1:
            raise ConfigurationError(
                f"a particle buffer needs positive sizes, got num_policies={num_policies}, capacity_per_policy="
                f"{capacity_per_policy}, num_features={num_features}."
            )
        self.num_policies, self.capacity, self.num_features = num_policies, capacity_per_policy, num_features
        self.device, self.dtype, self.ranks = torch.empty(0, device=device).device, dtype, ranks
        logger.info(
            "particle buffer of %d x %d particles: %.1f MiB", num_policies, capacity_per_policy, self.num_bytes / 2**20
        )
        self._features = torch.full((num_policies, self.capacity, num_features), torch.nan, dtype=dtype, device=device)
        self._ids = torch.full((num_policies, self.capacity), EMPTY, dtype=torch.int64, device=device)
        self._head = 0
        self._sizes: deque[int] = deque()

    @property
    def num_bytes(self) -> int:
        """Memory of the buffer [bytes]."""
        return self.num_policies * self.capacity * (self.num_features * self.dtype.itemsize + torch.int64.itemsize)

    @property
    def num_filled(self) -> int:
        """Slots of each policy that were written."""
        return min(sum(self._sizes), self.capacity)

    def add(self, features: torch.Tensor, trajectory_ids: torch.Tensor, valid: torch.Tensor | None = None) -> None:
        """Write particles over the oldest ones.

        Args:
            features: Shape (num_policies, n, num_features), n at most the capacity; by env, then by time (or the other
                way round), so that a stratum is a stretch of a trajectory.
            trajectory_ids: Trajectory of each particle, not negative, shape (num_policies, n). Give every iteration
                ids of its own if particles of several iterations are sampled together.
            valid: Particles that count, bool (num_policies, n); the others take a slot and are never sampled.

        Raises:
            ConfigurationError: If a shape is wrong or n exceeds the capacity.
        """
        expected = (self.num_policies, features.shape[1] if features.ndim == 3 else -1, self.num_features)
        if tuple(features.shape) != expected or trajectory_ids.shape != features.shape[:2]:
            raise ConfigurationError(
                f"features must have the shape ({self.num_policies}, n, {self.num_features}) and trajectory_ids "
                f"({self.num_policies}, n), got {tuple(features.shape)} and {tuple(trajectory_ids.shape)}."
            )
        count = features.shape[1]
        if not 1 <= count <= self.capacity:
            raise ConfigurationError(
                f"{count} particles for each policy do not fit into {self.capacity} slots; raise capacity_per_policy."
            )
        if valid is not None:
            features = torch.where(valid.unsqueeze(-1), features, torch.nan)
            trajectory_ids = torch.where(valid, trajectory_ids, EMPTY)
        before = min(count, self.capacity - self._head)
        for target, source in ((self._features, features), (self._ids, trajectory_ids)):
            target[:, self._head : self._head + before].copy_(source[:, :before])
            target[:, : count - before].copy_(source[:, before:])
        self._head = (self._head + count) % self.capacity
        self._sizes.append(count)
        while sum(self._sizes) - self._sizes[0] >= self.capacity:
            self._sizes.popleft()

    def sample(
        self, num_per_policy: int, generator: torch.Generator, *, window: int | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return as many particles of every policy, spread evenly over its slots, hence over its envs and time.

        The usable slots are cut into ``num_per_policy`` strata of equal size and one particle is drawn from each, so
        none comes twice, unless invalid particles leave fewer usable ones than asked for. A policy without any usable
        particle yields NaN.

        Args:
            num_per_policy: Particles of each policy.
            generator: Source of randomness on the buffer's device.
            window: Only particles of the latest ``window`` calls of ``add``; all that are kept where ``None``.

        Returns:
            Features (num_policies, num_per_policy, num_features) and trajectory ids (num_policies, num_per_policy).

        Raises:
            ConfigurationError: If fewer slots than ``num_per_policy`` are filled, or a number is not positive.
        """
        if window is not None and window < 1:
            raise ConfigurationError(f"window={window} must be at least 1 call of add, or None.")
        recent = sum(list(self._sizes)[-window:]) if window is not None else self.num_filled
        filled = min(recent, self.num_filled)
        if not 1 <= num_per_policy <= filled:
            raise ConfigurationError(
                f"{num_per_policy} particles asked for of each policy, {filled} are in the buffer (window={window}); "
                "ask for fewer or add more."
            )
        slots = torch.arange(self._head - filled, self._head, device=self.device) % self.capacity
        counts = (self._ids[:, slots] >= 0).cumsum(dim=1)
        usable = counts[:, -1:]
        edges = torch.arange(num_per_policy + 1, device=self.device) * usable // num_per_policy
        low, high = edges[:, :-1], edges[:, 1:]
        share = self.ranks.draw(torch.rand, self.num_policies, num_per_policy, generator=generator, device=self.device)
        drawn = torch.minimum(low + (share * (high - low)).long(), (high - 1).maximum(low))
        found = torch.searchsorted(counts, drawn + 1).clamp_max(filled - 1)
        chosen = slots[found]
        index = chosen.unsqueeze(-1).expand(-1, -1, self.num_features)
        return self._features.gather(1, index), self._ids.gather(1, chosen)

    def state_dict(self) -> dict[str, Any]:
        """Return the particles and the position of the ring."""
        return {
            "features": self.ranks.collect_rows(self._features),
            "ids": self.ranks.collect_rows(self._ids),
            "head": self._head,
            "sizes": list(self._sizes),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned.

        Raises:
            CheckpointError: If the state is of a buffer of another size.
        """
        features = self.ranks.own_rows(state["features"])
        if features.shape != self._features.shape:
            raise CheckpointError(
                f"particles of the shape {tuple(features.shape)} in the checkpoint, "
                f"{tuple(self._features.shape)} in this run; use the same num_policies, capacity and features."
            )
        self._features.copy_(features)
        self._ids.copy_(self.ranks.own_rows(state["ids"]))
        self._head = int(state["head"])
        self._sizes = deque(int(size) for size in state["sizes"])
