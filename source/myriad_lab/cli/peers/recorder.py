"""What a peer's training runs on: our env with the clock, the budget and the snapshots of its policy."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from myriad_lab.envs.contract import VecEnv
from myriad_lab.errors import ConfigurationError
from myriad_lab.evaluation.study import BudgetCfg
from myriad_lab.export.torchscript import export_torchscript

SNAPSHOTS = "snapshots.json"
"""Index of a folder of snapshots."""


class BudgetSpent(Exception):  # noqa: N818 (the end of a run, not an error)
    """The budget is used up; raised through the peer's training loop to end it."""


@dataclass(frozen=True)
class Snapshot:
    """A policy on the way."""

    file: str
    """TorchScript of the deterministic policy, observations (b, num_obs) to actions (b, num_actions) in [-1, 1]."""
    env_steps: int
    """Env steps done, summed over envs."""
    wall_time: float
    """Time spent training [s]: from the first env step, what is compiled included, the writing of snapshots not."""
    updates: int
    """Gradient steps of the critics."""


class Recorder:
    """Clock, budget and snapshots of a peer's run, counted as those of our own runs are.

    Args:
        folder: Where snapshots go.
        budget: When to end.
        num_snapshots: Snapshots, evenly spaced over the budget; the last one is the policy at its end.
        device: Device to wait for before the clock is read for a snapshot.
    """

    def __init__(self, folder: Path, budget: BudgetCfg, num_snapshots: int, device: torch.device | str) -> None:
        self.folder, self.budget = folder, budget
        self.num_snapshots = max(1, num_snapshots)
        self.device = torch.device(device)
        self.snapshots: list[Snapshot] = []
        self.env_steps = 0
        self._began = self._paused = 0.0
        self._last = 0
        self._policy: nn.Module | None = None
        self._num_obs = 0
        self._updates: Callable[[], int] = lambda: 0

    @property
    def wall_time(self) -> float:
        """Time spent training so far [s]."""
        return time.perf_counter() - self._began - self._paused if self._began else 0.0

    def follow(self, policy: nn.Module, num_obs: int, updates: Callable[[], int]) -> None:
        """Take snapshots of this policy from now on.

        Args:
            policy: Observations (b, num_obs) to actions; its parameters are those that are trained.
            num_obs: Width of the observations.
            updates: Says how many gradient steps the critics have made.
        """
        self._policy, self._num_obs, self._updates = policy, num_obs, updates

    def before_step(self) -> None:
        """Start the clock at the first call, take the snapshot that is due at later ones.

        Raises:
            BudgetSpent: If the budget is used up.
        """
        self._began = self._began or time.perf_counter()
        share = self._share()
        # Where several were due, one stands for them: a policy that has not changed need not be written twice.
        if self._policy is not None and int(share * self.num_snapshots) > self._last:
            self._last = int(share * self.num_snapshots)
            self._take(self._policy)
        if share >= 1.0:
            raise BudgetSpent

    def close(self) -> None:
        """Write the index.

        Raises:
            ConfigurationError: If the run ended before its budget did, or before it had learnt anything.
        """
        if self._policy is None or not self.snapshots:
            raise ConfigurationError("the budget was spent before the first update: give a larger one")
        if self._share() < 1.0:
            raise ConfigurationError(
                f"the training loop ended after {self.wall_time:.0f} s and {self.env_steps} env steps, before its "
                "budget: give it more steps"
            )
        (self.folder / SNAPSHOTS).write_text(json.dumps([asdict(snapshot) for snapshot in self.snapshots], indent=1))

    def _share(self) -> float:
        limits = self.budget.max_seconds, self.budget.max_env_steps
        used = self.wall_time, self.env_steps
        return max(spent / limit for spent, limit in zip(used, limits, strict=True) if limit is not None)

    def _take(self, policy: nn.Module) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        stopped, wall_time = time.perf_counter(), self.wall_time
        file = f"{self._last:04d}.pt"
        self.folder.mkdir(parents=True, exist_ok=True)
        with torch.no_grad():
            export_torchscript(copy.deepcopy(policy), self.folder / file, self._num_obs, indexed=False)
        self.snapshots.append(Snapshot(file, self.env_steps, wall_time, self._updates()))
        self._paused += time.perf_counter() - stopped


def load_snapshots(folder: Path) -> list[Snapshot]:
    """Return the snapshots of a finished run, the last one that of the end of its budget."""
    return [Snapshot(**entry) for entry in json.loads((folder / SNAPSHOTS).read_text())]


class RecordedEnv:
    """Our env as peers step it: one row of observations, clamped actions, episodes that begin spread out.

    Args:
        env: The env; gives final observations.
        recorder: Counts, and ends the run.
    """

    def __init__(self, env: VecEnv, recorder: Recorder) -> None:
        self.env, self.recorder = env, recorder
        self.num_envs, self.num_actions = env.num_envs, env.num_actions
        self.num_obs = env.spec.group_size("policy")
        self.max_episode_steps = env.max_episode_length
        self.device = torch.device(env.device)

    def begin(self, spread: bool = True) -> torch.Tensor:
        """Reset all envs and return observations (num_envs, num_obs).

        Args:
            spread: Whether episodes begin at random places of their length, as both peers' own adapters do.
        """
        obs = self.env.reset()["policy"]
        if spread:
            lengths = self.env.episode_length_buf
            lengths.copy_(torch.randint_like(lengths, int(self.max_episode_steps)))
        return obs

    def advance(self, actions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any], torch.Tensor]:
        """Step all envs once; returns observations, rewards, ``extras`` and the true next observations.

        The true next observation of an env whose episode ended is its last one, not the first of the next episode. A
        row whose physics diverged looks like a time-out without reward, at the last observation that made sense.
        """
        self.recorder.before_step()
        obs, rewards, dones, extras = self.env.step(actions.to(self.device).clamp(-1.0, 1.0))
        self.recorder.env_steps += self.num_envs
        ended = dones.bool().unsqueeze(1)
        following = torch.where(ended, extras["final_obs"]["policy"], obs["policy"])
        return obs["policy"], rewards, extras, following
