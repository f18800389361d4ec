"""The algorithms that ``myriad train`` offers: their configurations, their checks and how to build their runners."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Protocol, TypeVar

from myriad_lab.algorithms.kmyriad import KMyriadCfg
from myriad_lab.algorithms.pql import PQLCfg
from myriad_lab.algorithms.pql_parts import check_squash
from myriad_lab.cli.compiler import check_compiler
from myriad_lab.envs.contract import VecEnv
from myriad_lab.errors import ConfigurationError
from myriad_lab.functional.collective import ALONE, Collective
from myriad_lab.networks.population import PopulationActor, PopulationActorCfg
from myriad_lab.runners.callbacks import Callback
from myriad_lab.runners.parallel_q_runner import ParallelQRunner, ParallelQRunnerCfg
from myriad_lab.runners.population_runner import PopulationRunner, PopulationRunnerCfg
from myriad_lab.runners.ppo_cfg import PPOCfg
from myriad_lab.runners.ppo_runner import PPORunner, PPORunnerCfg
from myriad_lab.tasks.registry import check_device

T = TypeVar("T")


@dataclass
class KMyriadAgentCfg(KMyriadCfg):
    """``agent.*`` of ``--algorithm kmyriad``."""

    runner: PopulationRunnerCfg = field(default_factory=PopulationRunnerCfg)
    """Loop around the algorithm."""


@dataclass
class PQLAgentCfg(PQLCfg):
    """``agent.*`` of ``--algorithm pql``."""

    runner: ParallelQRunnerCfg = field(default_factory=ParallelQRunnerCfg)
    """Loop around the algorithm."""


@dataclass
class PPOAgentCfg(PPOCfg):
    """``agent.*`` of ``--algorithm ppo``."""

    runner: PPORunnerCfg = field(default_factory=PPORunnerCfg)
    """Loop around the algorithm."""


@dataclass
class Setting:
    """What a runner is built from; where it writes is set once everything is checked."""

    env: VecEnv
    """The env."""
    agent: Any
    """One of the configurations of this module."""
    device: str
    """Device of networks and buffers."""
    seed: int
    """Seed of the run."""
    num_policies: int
    """Policies of the population."""
    actor: PopulationActor | None
    """Population to start from, ``None`` for a fresh one."""
    callbacks: Sequence[Callback]
    """Observers."""
    manifest: Mapping[str, Any]
    """Entries of the bundles' manifest that only the command line knows."""
    ranks: Collective = ALONE
    """Processes that train one population together."""


class EnvSizes(Protocol):
    """What is needed of an ``EnvPlan``."""

    episode_steps: int
    num_features: int | None


AGENTS: dict[str, Callable[[], Any]] = {"kmyriad": KMyriadAgentCfg, "pql": PQLAgentCfg, "ppo": PPOAgentCfg}
"""Algorithm -> defaults of ``agent.*``."""


def check(algorithm: str, agent: Any, env: EnvSizes, num_envs: int, num_policies: int, seeded: bool = True) -> None:
    """Check a configuration against the task and the sizes, before anything is built.

    Args:
        algorithm: One of ``AGENTS``.
        agent: Its configuration.
        env: How long episodes are, and how many numbers the entropy is measured on.
        num_envs: Number of envs.
        num_policies: Policies of the population.
        seeded: Whether they may come from a portfolio.

    Raises:
        ConfigurationError: If a value is out of range, or too few particles are left for ``k``.
    """
    if algorithm == "kmyriad":
        from myriad_lab.algorithms.state_rewards import StateRewards

        _check_widths(agent.actor)
        agent.validate()
        agent.runner.validate()
        rows = num_envs // num_policies * env.episode_steps
        if agent.num_epochs > 1 and agent.num_minibatches > rows:
            raise ConfigurationError(
                f"agent.num_minibatches={agent.num_minibatches} is more than the {rows} env steps of each policy in a "
                "rollout; take fewer minibatches or more envs"
            )
        # Only the env may know how many features there are; the sizes of the pool do not depend on it.
        StateRewards(agent, env.episode_steps, num_envs, num_policies, env.num_features or 2)
    elif algorithm == "pql":
        _check_widths(agent.actor)
        agent.validate()
        check_squash(agent.actor.squash)
        agent.check_prior(seeded)
        agent.runner.validate()
        for device in filter(None, (agent.runner.value_device, agent.runner.policy_device)):
            if check_device(device).type == "cuda":
                check_compiler()
    elif num_policies != 1:
        raise ConfigurationError(f"num_policies={num_policies}; ppo trains one policy, leave the flag out")
    else:
        agent.validate(num_envs)
        agent.runner.validate()


def _check_widths(actor: PopulationActorCfg) -> None:
    """Refuse layers without a unit."""
    if any(width < 1 for width in actor.trunk):
        raise ConfigurationError(f"agent.actor.trunk={actor.trunk}; expected widths of at least 1, e.g. [64, 64]")


def make_runner(algorithm: str, setting: Setting) -> Any:
    """Return the runner of an algorithm, without a run folder and loggers.

    Raises:
        ConfigurationError: If the env or the population does not fit.
    """
    agent = setting.agent
    place: Sequence[Any] = (None, setting.device, setting.seed)
    common: dict[str, Any] = {"callbacks": setting.callbacks, "manifest": setting.manifest}
    if algorithm == "ppo":
        return PPORunner(setting.env, _narrow(agent, PPOCfg), agent.runner, *place, head=setting.actor, **common)
    population: dict[str, Any] = {"num_policies": setting.num_policies, "actor": setting.actor, **common}
    population["ranks"] = setting.ranks
    if algorithm == "pql":
        return ParallelQRunner(setting.env, _narrow(agent, PQLCfg), agent.runner, *place, **population)
    if "features" not in setting.env.spec.observations:
        raise ConfigurationError(
            f"nothing says what the entropy of {setting.env.spec.task} is measured on; name it, e.g. "
            "isaaclab.features=[joint_pos] (docs/isaaclab.md lists the names)"
        )
    return PopulationRunner(setting.env, _narrow(agent, KMyriadCfg), agent.runner, *place, **population)


def plan_halving(agent: Any, num_policies: int, max_iterations: int | None) -> None:
    """Spread successive halving evenly over the first half of the run, where the iterations are not configured.

    Raises:
        ConfigurationError: If nothing says how many iterations the run has (``None``), or they are too few.
    """
    if agent.runner.halving_iterations or num_policies == 1:
        return
    if max_iterations is None:
        raise ConfigurationError(
            "seeding=halving with a budget of seconds or env steps alone: how many iterations it has, and so when to "
            "halve, is not known; give --max_iterations too, or agent.runner.halving_iterations=[...]"
        )
    rounds = int(math.log2(num_policies))
    gap = max_iterations / 2 / rounds
    iterations = sorted({round(gap * i) for i in range(1, rounds + 1)} - {0})
    if len(iterations) < rounds:
        raise ConfigurationError(
            f"seeding=halving of {num_policies} heads needs {rounds} iterations of their own in the first half of the "
            f"run, max_iterations={max_iterations} has not as many; give at least {2 * rounds}"
        )
    agent.runner.halving_iterations = iterations


def _narrow(cfg: Any, cls: type[T]) -> T:
    """Return the part of ``cfg`` that its base class ``cls`` knows."""
    return cls(**{spec.name: getattr(cfg, spec.name) for spec in fields(cls)})  # pyright: ignore[reportArgumentType]
