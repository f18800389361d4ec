"""The env contract: RSL-RL's ``VecEnv`` with ends, final observations, features and state told apart."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from rsl_rl.env import VecEnv as RslVecEnv
from tensordict import TensorDict


@dataclass(frozen=True)
class TermSpec:
    """One named term of an observation group, as it stands in the concatenated row."""

    name: str
    """Name of the term, e.g. ``joint_pos``."""
    shape: tuple[int, ...]
    """Shape of the term of one env."""
    unit: str = "1"
    """SI unit of the physical quantity, ``1`` where the term is a plain number."""
    scale: tuple[float, ...] = ()
    """The row holds ``scale * (quantity - offset)``, one entry per element; empty means 1."""
    offset: tuple[float, ...] = ()
    """See ``scale``; empty means 0."""
    clip: float | None = None
    """Bound on the magnitude of the row's entries, applied last; ``None`` where there is none."""
    description: str = ""
    """How to get the quantity on a robot, where the name does not say it all."""
    parameters: dict[str, tuple[float, ...]] = field(default_factory=dict)
    """Numbers that the description speaks of, by name."""


@dataclass(frozen=True)
class ActionSpec:
    """What an action in [-1, 1] means: ``target = offset + scale * action``, one entry per action.

    The exception is the kind ``discrete``: the first of the largest actions is the one that is done, whatever its size.
    """

    names: tuple[str, ...]
    """Joint or axis driven by each action, in order."""
    kind: Literal["velocity", "torque", "position", "discrete", "task"]
    """The physical quantity commanded; ``task``: what the task of another package makes of it."""
    unit: str
    """SI unit of ``scale`` and ``offset``."""
    scale: tuple[float, ...]
    """Physical value of a unit action."""
    offset: tuple[float, ...]
    """Physical value of a zero action."""
    delay_steps: int = 0
    """Control steps between the policy's output and its effect."""


@dataclass(frozen=True)
class EnvSpec:
    """Everything about an env that a portfolio, an export contract or another backend must know."""

    task: str
    """Registered task id."""
    observations: dict[str, tuple[TermSpec, ...]]
    """Ordered terms of each observation group (``policy``, ``critic``, ``features``)."""
    action: ActionSpec
    """Meaning of the actions."""
    control_period: float
    """Time between two actions [s]."""
    max_episode_length: int
    """Control steps until the time-out."""
    robot: dict[str, Any] = field(default_factory=dict)
    """Joint names in order, default pose [rad], stiffness [N m/rad] and damping [N m s/rad]."""
    quat_order: str = "wxyz"
    """Order of every quaternion."""

    def to_dict(self) -> dict[str, Any]:
        """Return the specification as plain JSON-able containers."""
        return asdict(self)

    def group_size(self, group: str) -> int:
        """Return the width of the concatenated observation group."""
        return sum(torch.Size(term.shape).numel() for term in self.observations[group])


class VecEnv(RslVecEnv):
    """A batch of envs stepped together; every env that ends is reset within the same step.

    ``step`` returns ``(obs, rewards, dones, extras)``:

    * ``obs``: TensorDict of groups, batch ``(num_envs,)``, each group ``(num_envs, size)``; after a reset, the first
      observation of the new episode.
    * ``rewards``: float ``(num_envs,)``.
    * ``dones``: long ``(num_envs,)``, 1 where the episode ended.
    * ``extras["terminated"]``, ``extras["time_outs"]``: bool ``(num_envs,)``, exclusive, their union is ``dones``.
    * ``extras["diverged"]``: bool ``(num_envs,)``: the physics broke, the env was reset; the row (reported as a
      time-out, with a reward of 0) must never reach a buffer of ours. RSL-RL knows no such rows: its runners see a
      time-out.
    * ``extras["final_obs"]``: only if the env was built with ``final_obs=True``; a TensorDict like ``obs``, the true
      last observation of the finished episodes, valid on the rows with ``dones`` alone.
    * ``extras["log"]``: scalars to log: ``Episode_Reward/<term>``, ``Episode_Termination/<name>``, ``Metrics/<name>``.
    """

    num_envs: int
    num_actions: int
    max_episode_length: int
    episode_length_buf: torch.Tensor
    device: torch.device | str
    cfg: dict | object
    spec: EnvSpec
    provides_final_obs: bool
    """Whether ``extras["final_obs"]`` is filled."""
    resumes_episodes: bool = True
    """Whether ``load_state_dict`` goes on with the episodes that were under way; where not, all envs begin new ones."""

    @abstractmethod
    def reset(self, env_ids: torch.Tensor | None = None) -> TensorDict:
        """Start a new episode in the given envs (all of them by default) and return the observations of all."""

    @abstractmethod
    def get_observations(self) -> TensorDict:
        """Return the current observations; calling it twice changes nothing."""

    @abstractmethod
    def step(self, actions: torch.Tensor) -> tuple[TensorDict, torch.Tensor, torch.Tensor, dict]:
        """Apply actions in [-1, 1], shape ``(num_envs, num_actions)``; see the class for what comes back."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Return all that is needed to continue bit-exactly: simulator, task, counters, generator."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""

    def close(self) -> None:
        """Free the simulator; using the env afterwards is an error."""
        return
