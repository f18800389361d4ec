"""The task protocol: what to observe, reward and reset, written once in torch for every backend."""

from __future__ import annotations

from typing import Any, Protocol

import torch

from myriad_lab.envs.arena import Arena
from myriad_lab.envs.contract import TermSpec
from myriad_lab.envs.robot import RobotCfg
from myriad_lab.envs.robot_state import InitialState, RobotState


class Task(Protocol):
    """A task over a batch of robots.

    A task may keep buffers of its own, such as commands; ``bind`` allocates them, ``on_reset`` refreshes rows,
    ``on_step`` advances them once per control step, before rewards are read.
    """

    cfg: Any
    """The configuration dataclass; ``cfg.episode_steps`` is the number of control steps until the time-out."""
    robot: RobotCfg
    arena: Arena

    def observation_terms(self) -> dict[str, tuple[TermSpec, ...]]:
        """Return the ordered terms of the groups ``policy``, ``critic`` and ``features``."""
        ...

    def bind(self, num_envs: int, device: torch.device | str) -> None:
        """Allocate the buffers of the task; called once, by the env."""
        ...

    def observe(self, state: RobotState) -> dict[str, dict[str, torch.Tensor]]:
        """Return group -> term -> tensor ``(num_envs, *shape)``, in the order of ``observation_terms``."""
        ...

    def features(self, state: RobotState) -> torch.Tensor:
        """Return what the entropy is measured on, ``(num_envs, num_features)``, SI units, world frame."""
        ...

    def reward(self, state: RobotState) -> dict[str, torch.Tensor]:
        """Return the reward terms of this control step, each ``(num_envs,)``, already weighted."""
        ...

    def terminated(self, state: RobotState) -> torch.Tensor:
        """Return where the episode truly ends, bool ``(num_envs,)``."""
        ...

    def success(self, state: RobotState) -> torch.Tensor | None:
        """Return where the goal is reached, bool ``(num_envs,)``, or ``None`` for tasks without a goal."""
        ...

    def reset_distribution(self, num: int, generator: torch.Generator) -> InitialState:
        """Draw ``num`` initial states on the device of the generator."""
        ...

    def on_reset(self, env_ids: torch.Tensor, generator: torch.Generator) -> None:
        """Refresh the task's own buffers for new episodes in ``env_ids``."""
        ...

    def on_step(self, state: RobotState, generator: torch.Generator) -> None:
        """Advance the task's own buffers by one control step."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return the task's own buffers."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore them."""
        ...
