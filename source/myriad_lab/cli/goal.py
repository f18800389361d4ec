"""The rule by which the story chooses its goal: far, and never met by chance."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from myriad_lab.errors import ConfigurationError

if TYPE_CHECKING:
    from myriad_lab.cli.plan import TrainPlan

STEP = 4.0
"""Percentiles between two candidates."""


@dataclass(frozen=True)
class ChosenGoal:
    """A goal and how it was found."""

    goal: tuple[float, float]
    """x, y [m]."""
    percentile: float
    """Percentile of its geodesic distance from the start among the reachable cells."""
    random_episodes: int
    """Episodes of uniformly random actions that were rolled out; none of them came to the goal."""


def choose_goal(plan: TrainPlan, percentile: float, episodes: int, seed: int = 0) -> ChosenGoal:
    """Return the nearest candidate that no random episode reaches.

    Args:
        plan: The training that has the goal; its map and every other setting of its env hold.
        percentile: Percentile of geodesic distance at which the candidates begin.
        episodes: Episodes of uniformly random actions.
        seed: Seed of env and actions.

    Raises:
        ConfigurationError: If even the farthest cell is reached by chance.
    """
    from myriad_lab.runners.rollout import random_policy, rollout_episodes
    from myriad_lab.tasks.registry import make_env

    run = plan.run
    for candidate in candidates(percentile):
        goal = plan.env.task.arena.far_goal(candidate)
        overrides = {**plan.env.values, "goal": list(goal)}
        settings: dict[str, Any] = {"device": run.device, "seed": seed, "overrides": overrides}
        env = make_env(run.task, backend=run.backend, num_envs=episodes, **settings)
        try:
            record = rollout_episodes(env, random_policy(env, seed), 1, episodes, features=None, num_obs_rows=0)
        finally:
            env.close()
        assert record.success is not None
        if not record.success.any():
            return ChosenGoal(goal, candidate, episodes)
    raise ConfigurationError(f"random actions reach even the farthest cell of {run.task}; choose a harder task")


def candidates(percentile: float) -> list[float]:
    """Return the percentiles that are tried, nearest first: from the given one to the farthest cell."""
    steps = math.ceil((100.0 - percentile) / STEP)
    return [*(percentile + STEP * step for step in range(steps)), 100.0]
