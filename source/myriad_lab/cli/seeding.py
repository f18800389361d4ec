"""Which heads of a portfolio start a run."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, cast

from myriad_lab.errors import ConfigurationError
from myriad_lab.portfolio.bundle import seed_heads
from myriad_lab.runners.rollout import actor_policy, rollout_episodes

if TYPE_CHECKING:
    from myriad_lab.cli.plan import TrainPlan
    from myriad_lab.envs.contract import VecEnv

logger = logging.getLogger(__name__)

EPISODES_PER_HEAD = 32
"""Episodes that a head is scored by."""


def starting_actor(plan: TrainPlan, env: VecEnv) -> tuple[Any, dict[str, Any]]:
    """Return the population that the portfolio of a plan starts, and for ``run.json`` how its heads were chosen.

    Args:
        plan: The run.
        env: Its env, which also scores the heads where the process can have no second one.

    Raises:
        ConfigurationError: If the number of policies does not fit that of the heads.
    """
    run, bundle = plan.run, plan.seed_from
    assert run.num_policies is not None
    heads, manifest = bundle.manifest.num_policies, bundle.manifest
    logger.info(
        "Starts from %s (%s, %d heads, iteration %d)", bundle.path, manifest.algorithm, heads, manifest.iteration
    )
    scored = heads > 1 and (run.seeding == "best" or run.num_policies < heads)
    if scored and run.distributed:
        raise ConfigurationError(
            f"--distributed: the {heads} heads of {bundle.path} would have to be scored first, which every process "
            f"would do by itself; start from all of them with --num_policies {heads} or a multiple"
        )
    scores, env_steps = zero_shot_returns(plan, env) if scored else ([0.0] * heads, 0)
    seeding = "best" if run.algorithm == "ppo" else run.seeding
    chosen = seed_heads(heads, run.num_policies, cast(Any, seeding), scores)
    if scored:
        _tell(chosen, scores, env_steps)
    entries: dict[str, Any] = {"seeding_heads": chosen, "seeding_env_steps": env_steps}
    return bundle.actor.select(chosen), entries | ({"seeding_scores": scores} if scored else {})


def zero_shot_returns(plan: TrainPlan, env: VecEnv) -> tuple[list[float], int]:
    """Return the mean return of each head of the portfolio in the new task, before any training, and its env steps.

    The heads act as they explore, with their noise: the mean actions of an explorer say little about where it goes.
    """
    import torch

    run, bundle = plan.run, plan.seed_from
    heads, calls = bundle.manifest.num_policies, 0
    own = env if plan.env.one_at_a_time else None
    if own is not None and own.num_envs % heads:
        raise ConfigurationError(
            f"num_envs={own.num_envs}: the {heads} heads of the portfolio are scored in the env of the run, since "
            f"backend {run.backend} has one env at a time; take a multiple of {heads}"
        )
    if own is None:
        env = plan.env.make(heads * EPISODES_PER_HEAD, device=run.device, seed=run.seed)
    try:
        generator = torch.Generator(run.device).manual_seed(run.seed)
        policy = actor_policy(bundle.actor.to(run.device), deterministic=False, generator=generator)

        def counted(obs: Any) -> Any:
            nonlocal calls
            calls += 1
            return policy(obs)

        record = rollout_episodes(env, counted, heads, EPISODES_PER_HEAD, features=None, num_obs_rows=0)
    finally:
        if own is None:
            env.close()
    if own is not None:
        own.reset()
    return [float(value) for value in record.returns.mean(axis=1)], calls * env.num_envs


def _tell(chosen: list[int], scores: list[float], env_steps: int) -> None:
    told = ", ".join(f"{head} ({scores[head]:.4g})" for head in sorted(set(chosen)))
    logger.info("Heads of the portfolio, with their zero-shot returns, that start: %s; %d env steps", told, env_steps)
    if len(set(scores)) == 1:
        logger.warning(
            "All %d heads of the portfolio have the zero-shot return %.4g: the choice is arbitrary. --seeding all "
            "starts from every head.",
            len(scores),
            scores[0],
        )
