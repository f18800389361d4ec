"""Which heads of a portfolio start a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from myriad_lab.portfolio.bundle import seed_actor
from myriad_lab.runners.rollout import actor_policy, rollout_episodes
from myriad_lab.tasks.registry import make_env

if TYPE_CHECKING:
    from myriad_lab.cli.plan import TrainPlan

EPISODES_PER_HEAD = 32
"""Episodes that a head is scored by."""


def starting_actor(plan: TrainPlan) -> Any:
    """Return the population that the portfolio of a plan starts.

    Raises:
        ConfigurationError: If the number of policies does not fit that of the heads.
    """
    run, bundle = plan.run, plan.seed_from
    assert run.num_policies is not None
    heads = bundle.manifest.num_policies
    scored = heads > 1 and (run.seeding == "best" or run.num_policies < heads)
    scores = zero_shot_returns(plan) if scored else [0.0] * heads
    seeding = "best" if run.algorithm == "ppo" else run.seeding
    return seed_actor(bundle, run.num_policies, cast(Any, seeding), scores)


def zero_shot_returns(plan: TrainPlan) -> list[float]:
    """Return the mean return of each head of the portfolio in the new task, before any training.

    The heads act as they explore, with their noise: the mean actions of an explorer say little about where it goes.
    """
    import torch

    run, bundle = plan.run, plan.seed_from
    heads = bundle.manifest.num_policies
    env = make_env(
        run.task,
        backend=run.backend,
        num_envs=heads * EPISODES_PER_HEAD,
        device=run.device,
        seed=run.seed,
        overrides=plan.env_values,
    )
    try:
        generator = torch.Generator(run.device).manual_seed(run.seed)
        policy = actor_policy(bundle.actor.to(run.device), deterministic=False, generator=generator)
        record = rollout_episodes(env, policy, heads, EPISODES_PER_HEAD, features=None, num_obs_rows=0)
    finally:
        env.close()
    return [float(value) for value in record.returns.mean(axis=1)]
