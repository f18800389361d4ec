"""The rule by which the story chooses its goal: far, and never met by chance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from myriad_lab.errors import ConfigurationError

PERCENTILES = (80.0, 84.0, 88.0, 92.0, 96.0, 100.0)
"""Candidates, in the order in which they are tried: percentiles of geodesic distance among the reachable cells."""


@dataclass(frozen=True)
class ChosenGoal:
    """A goal and how it was found."""

    goal: tuple[float, float]
    """x, y [m]."""
    percentile: float
    """Percentile of its geodesic distance from the start among the reachable cells."""
    random_episodes: int
    """Episodes of uniformly random actions that were rolled out; none of them came to the goal."""


def choose_goal(
    task: str, backend: str | None = None, values: Mapping[str, Any] | None = None, episodes: int = 1000, seed: int = 0
) -> ChosenGoal:
    """Return the nearest candidate that no random episode reaches.

    Args:
        task: Id of a task with a goal.
        backend: Simulator, the task's first by default.
        values: Fields of the task's configuration, beside the goal.
        episodes: Episodes of uniformly random actions.
        seed: Seed of env and actions.

    Raises:
        ConfigurationError: If even the farthest cell is reached by chance.
    """
    from myriad_lab.runners.rollout import random_policy, rollout_episodes
    from myriad_lab.tasks import registry

    entry = registry.get(task)
    arena = entry.make_task(entry.cfg).arena
    for percentile in PERCENTILES:
        goal = arena.far_goal(percentile)
        overrides = {**(values or {}), "goal": list(goal)}
        env = registry.make_env(task, backend=backend, num_envs=episodes, seed=seed, overrides=overrides)
        try:
            record = rollout_episodes(env, random_policy(env, seed), 1, episodes, features=None, num_obs_rows=0)
        finally:
            env.close()
        assert record.success is not None
        if not record.success.any():
            return ChosenGoal(goal, percentile, episodes)
    raise ConfigurationError(f"random actions reach even the farthest cell of {task}; choose a harder task")
