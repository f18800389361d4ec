"""The seam between the env and a physics engine; one implementation per backend."""

from __future__ import annotations

from typing import Any, Protocol

import torch

from myriad_lab.envs.robot_state import InitialState, RobotState

POSITION_LIMIT = 1.0e3
"""A base further out [m], or a joint further round [rad], means that the physics broke."""
SPEED_LIMIT = 1.0e3
"""A base [m/s, rad/s] or a joint [rad/s] that is faster means that the physics broke."""


class Simulator(Protocol):
    """A batch of identical robots in one arena, advanced together.

    The simulator owns action scale, offset and delay: it takes policy actions in [-1, 1].
    """

    num_envs: int
    device: torch.device

    def step(self, actions: torch.Tensor) -> torch.Tensor:
        """Advance one control step.

        Args:
            actions: In [-1, 1], shape ``(num_envs, num_actions)``; the env has clamped them.

        Returns:
            Where the physics diverged, bool ``(num_envs,)``; ``state`` is finite on those rows too.
        """
        ...

    def reset(self, env_ids: torch.Tensor, initial: InitialState) -> None:
        """Put the robots ``env_ids`` (long, sorted, unique) into the given states; no other row may change."""
        ...

    def state(self) -> RobotState:
        """Return the state now; tensors may be live views, valid until the next ``step`` or ``reset``."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return all that is needed to continue bit-exactly."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        ...

    def close(self) -> None:
        """Free threads and memory; the second call does nothing."""
        ...
