"""Storage of one rollout of a population, ``[time, env, ...]``, viewed as ``[time, policy, env_of_policy, ...]``."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch

from myriad_lab.errors import ConfigurationError

logger = logging.getLogger(__name__)


class RolloutStorage:
    """Preallocated fields of ``num_steps`` env steps, filled with NaN (or -1) until they are written."""

    def __init__(
        self,
        num_steps: int,
        num_envs: int,
        num_policies: int,
        fields: Mapping[str, tuple[tuple[int, ...], torch.dtype]],
        device: torch.device | str = "cpu",
    ) -> None:
        """Allocate the storage.

        Args:
            num_steps: Env steps of a rollout.
            num_envs: Number of envs, a multiple of ``num_policies``.
            num_policies: Number of policies; env ``e`` belongs to policy ``e // (num_envs // num_policies)``.
            fields: Name to (shape of one env's entry, dtype).
            device: Where to allocate.

        Raises:
            ConfigurationError: If ``num_policies`` does not divide ``num_envs``.
        """
        if num_envs % num_policies:
            raise ConfigurationError(f"num_policies={num_policies} does not divide num_envs={num_envs}")
        self.num_steps = num_steps
        self.num_envs = num_envs
        self.num_policies = num_policies
        size = sum(torch.Size(shape).numel() * dtype.itemsize for shape, dtype in fields.values())
        logger.info("rollout storage: %.1f MiB", num_steps * num_envs * size / 2**20)
        self._fields = {
            name: torch.empty((num_steps, num_envs, *shape), dtype=dtype, device=device)
            for name, (shape, dtype) in fields.items()
        }
        self.position = 0
        self.clear()

    @property
    def full(self) -> bool:
        """Whether every step was written."""
        return self.position == self.num_steps

    def clear(self) -> None:
        """Forget the rollout and poison the memory, so that reading an unwritten step cannot go unnoticed."""
        for field in self._fields.values():
            if field.dtype != torch.bool:
                field.fill_(float("nan") if field.is_floating_point() else -1)
        self.position = 0

    def append(self, values: Mapping[str, torch.Tensor]) -> None:
        """Write the next step: every field, each ``(num_envs, *shape)``.

        Raises:
            ConfigurationError: If the storage is full, a field is missing or unknown, or a shape is wrong.
        """
        if self.full:
            raise ConfigurationError(f"the rollout holds {self.num_steps} steps already; call update() before more")
        if values.keys() != self._fields.keys():
            raise ConfigurationError(f"fields {sorted(values)} given, {sorted(self._fields)} expected")
        for name, value in values.items():
            row = self._fields[name][self.position]
            if value.shape != row.shape:
                raise ConfigurationError(f"{name} has shape {tuple(value.shape)}, expected {tuple(row.shape)}")
            row.copy_(value)
        self.position += 1

    def __getitem__(self, name: str) -> torch.Tensor:
        """Return a field as it is stored, ``(num_steps, num_envs, ...)``, a view."""
        return self._fields[name]

    def by_policy(self, tensor: torch.Tensor) -> torch.Tensor:
        """Turn ``(time, num_envs, ...)`` into ``(num_policies, time * envs_per_policy, ...)``, rows ordered by time."""
        return tensor.unflatten(1, (self.num_policies, -1)).transpose(0, 1).flatten(1, 2)
