"""``myriad train``: check everything, build env and runner, learn, and leave a run folder that explains itself."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from myriad_lab.cli.run_cfg import add_run_flags
from myriad_lab.errors import ConfigurationError

if TYPE_CHECKING:
    from myriad_lab.cli.plan import TrainPlan
    from myriad_lab.envs.contract import VecEnv
    from myriad_lab.functional.collective import Collective
    from myriad_lab.portfolio.run_folder import RunFolder
    from myriad_lab.runners.callbacks import Callback

logger = logging.getLogger(__name__)


@dataclass
class TrainResult:
    """What a training run left."""

    folder: Path
    """Folder of the run."""
    checkpoint: Path
    """Its last bundle."""
    interrupted: bool
    """Whether a signal ended it with iterations left to do."""
    iteration: int
    """Iterations done, those before a resume included."""
    env_steps: int
    """Env steps done, summed over envs."""
    wall_time: float
    """Time spent training [s]."""
    metrics: dict[str, float]
    """Metrics of the last iteration."""
    done_before: bool = False
    """Whether it was asked to go on and had nothing left to do."""
    is_main: bool = True
    """Whether this process is the one, of those that trained together, that tells of it."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``myriad train``."""
    parser.epilog = (
        "Overrides follow the flags: env.KEY=VALUE (the task's configuration), agent.KEY=VALUE (the algorithm's), and "
        "experiment=, task=, agent=, backend=, logger=PRESET."
    )
    add_run_flags(parser)


def run(args: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Train; returns 130 where a signal ended the run early."""
    from myriad_lab.cli.plan import given_flags

    result = train(given_flags(args), overrides)
    if result.is_main:
        _tell(result)
    return 130 if result.interrupted else 0


def _tell(result: TrainResult) -> None:
    print(f"{result.iteration} iterations, {result.env_steps:,} env steps, {result.wall_time:.0f} s of training")
    print(f"run folder: {result.folder}")
    if result.done_before:
        print("the run was done before: a larger --max_iterations, --max_env_steps or --max_seconds goes on with it")
    if result.interrupted:
        print(f"go on with: myriad train --checkpoint {result.folder}")


def train(
    flags: Mapping[str, Any],
    overrides: Sequence[str] = (),
    *,
    callbacks: Sequence[Callback] = (),
    command: Sequence[str] | None = None,
) -> TrainResult:
    """Do what ``myriad train`` does.

    Args:
        flags: Field of ``RunCfg`` -> value, for the flags that are given.
        overrides: ``env.*``, ``agent.*`` and choices of presets.
        callbacks: Further observers of the runner.
        command: What to write down as the command; that of the process by default.

    Raises:
        ConfigurationError: If a setting is wrong; nothing has been written then.
        CheckpointError: If a bundle is missing, damaged or does not fit.
    """
    from myriad_lab.cli.memory import memory_lines
    from myriad_lab.cli.plan import make_plan
    from myriad_lab.cli.ranks import open_ranks, physics_threads, place_of
    from myriad_lab.cli.run_info import finish_run
    from myriad_lab.distributed.process_group import check_shards
    from myriad_lab.portfolio.run_folder import RunFolder

    place = place_of(flags)
    plan = make_plan(flags, overrides)
    if plan.resume is not None and _is_done(plan, plan.resume.manifest):
        return _result_of_done(plan, is_main=place.rank == 0)
    if plan.run.distributed:
        check_shards(plan.run.num_envs or 1, plan.run.num_policies or 1, place.world_size)
    if place.rank == 0:
        for line in memory_lines(plan, place):
            print(line, flush=True)
    settle_torch(plan.run.deterministic)
    with open_ranks(place, plan.run) as ranks:
        beside = plan.agent_cfg.runner.process_threads if plan.run.algorithm == "pql" else 0
        env = _make_env(plan, ranks, physics_threads(place, beside))
        try:
            actor, seeding = _starting_actor(plan, env)
            runner = _make_runner(plan, env, actor, callbacks, ranks)
            result = _learn(plan, runner, list(sys.argv if command is None else command), seeding, ranks)
        finally:
            env.close()
    if result.is_main:
        finish_run(RunFolder(result.folder), result)
    return result


def _make_env(plan: TrainPlan, ranks: Collective, num_threads: int | None) -> VecEnv:
    """Build the envs of this rank."""
    from myriad_lab.envs.shard import Shard

    run = plan.run
    assert run.num_envs is not None
    return plan.env.make(
        run.num_envs // ranks.world_size,
        device=run.device,
        seed=run.seed,
        # PPO bootstraps as RSL-RL does, without final observations, which not every task of Isaac Lab can give.
        final_obs=run.algorithm != "ppo",
        shard=Shard(ranks.rank, ranks.world_size),
        num_threads=num_threads,
    )


def settle_torch(deterministic: bool = False) -> None:
    """Keep torch from fighting the physics for the cores: one thread, unless OMP_NUM_THREADS says otherwise."""
    import os

    import torch

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or 1))
    torch.use_deterministic_algorithms(deterministic)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS may choose sums by the moment


def _starting_actor(plan: TrainPlan, env: VecEnv) -> tuple[Any, dict[str, Any]]:
    """Return the population to start from, ``None`` for a fresh one, and what ``run.json`` says of it.

    Refuses a bundle that does not fit the env.
    """
    from myriad_lab.cli.seeding import starting_actor
    from myriad_lab.portfolio.bundle import check_resume, check_seed

    run = plan.run
    if plan.resume is not None:
        check_resume(plan.resume.manifest, env.spec, task=run.task, algorithm=run.algorithm, num_envs=run.num_envs)
        # a portfolio may have brought networks of another shape than the configuration's; ppo asks the bundle itself
        return None if run.algorithm == "ppo" else plan.resume.actor, {}
    if plan.seed_from is None:
        return None, {}
    check_seed(plan.seed_from.manifest, env.spec)
    return starting_actor(plan, env)


def _is_done(plan: TrainPlan, progress: Any) -> bool:
    """Return whether a run, which a runner or a manifest tells of, has done all that was asked for."""
    run = plan.run
    budgets = (
        (progress.iteration, run.max_iterations),
        (progress.env_steps, run.max_env_steps),
        (progress.wall_time, run.max_seconds),
    )
    return any(budget is not None and used >= budget for used, budget in budgets)


def _result_of_done(plan: TrainPlan, is_main: bool) -> TrainResult:
    """Return the result of a run with nothing left to do, which is finished even where it was killed before it said so.

    Raises:
        ConfigurationError: If the bundle is not the last one of its run, or has done more than was asked for.
    """
    from myriad_lab.cli.run_info import finish_run
    from myriad_lab.portfolio.run_folder import RunFolder

    path, manifest = plan.resume.path.resolve(), plan.resume.manifest
    is_last = path.parent.name == "checkpoints" and RunFolder.open(path).latest() == path
    if not is_last or manifest.iteration > (plan.run.max_iterations or 0):
        raise ConfigurationError(
            f"the run has done {manifest.iteration} of max_iterations={plan.run.max_iterations} and "
            f"{manifest.env_steps} env steps of max_env_steps={plan.run.max_env_steps}, "
            f"in {manifest.wall_time:.0f} s of max_seconds={plan.run.max_seconds}; give a larger number"
        )
    folder = RunFolder.open(path)
    metrics = {name: value for name, value in manifest.metrics.items() if value is not None}
    counters = (manifest.iteration, manifest.env_steps, manifest.wall_time)
    result = TrainResult(folder.path, path, False, *counters, metrics, done_before=True, is_main=is_main)
    if is_main and not folder.read_info().get("finished"):
        finish_run(folder, result)
    return result


def _make_runner(plan: TrainPlan, env: Any, actor: Any, callbacks: Sequence[Callback], ranks: Collective) -> Any:
    """Build the runner, and bring it to where the resumed bundle was; nothing is written, whatever does not fit."""
    from myriad_lab.cli.algorithms import Setting, make_runner
    from myriad_lab.cli.run_info import manifest_entries

    run = plan.run
    assert run.num_policies is not None
    setting = Setting(
        env=env,
        agent=plan.agent_cfg,
        device=run.device,
        seed=run.seed,
        num_policies=run.num_policies,
        actor=actor,
        callbacks=[*_budgets(plan), *_videos(plan), *callbacks],
        manifest=manifest_entries(plan),
        ranks=ranks,
    )
    runner = make_runner(run.algorithm, setting)
    if plan.resume is not None:
        runner.load(plan.resume.path)
    return runner


def _learn(
    plan: TrainPlan, runner: Any, command: Sequence[str], seeding: Mapping[str, Any], ranks: Collective
) -> TrainResult:
    """Open the run folder and let the runner learn until it is done or told to stop; rank 0 alone writes."""
    import torch

    from myriad_lab.cli.interrupt import GracefulStop
    from myriad_lab.cli.run_info import folder_of, open_run
    from myriad_lab.monitor.logger import make_loggers
    from myriad_lab.portfolio.run_folder import RunFolder

    run = plan.run
    assert run.max_iterations is not None
    folder = RunFolder(ranks.from_main(str(folder_of(plan).path) if ranks.is_main else None))
    names = ["console"] if run.logger == "none" else ["console", run.logger]
    total = None if run.max_env_steps or run.max_seconds else run.max_iterations
    loggers = make_loggers(names, folder.path, total) if ranks.is_main else []
    try:
        if ranks.is_main:
            open_run(folder, plan, command, {**seeding, "ranks": ranks.world_size})
        if plan.env.one_at_a_time:
            from myriad_lab.envs.isaaclab.launch import dump_env_cfg

            dump_env_cfg(runner.env, folder.path / "config" / "isaaclab_env.yaml")
        runner.run_folder, runner.loggers = folder, loggers
        if plan.resume is not None and ranks.is_main:
            _turn_back(folder, runner)
        with GracefulStop(runner.request_stop, tell=ranks.is_main) as stop:
            runner.learn(run.max_iterations - runner.iteration)
    finally:
        for sink in loggers:
            sink.close()
    stopped = ranks.any(torch.tensor(stop.signal_number is not None))  # a signal to one rank stops all of them
    interrupted = bool(stopped) and not _is_done(plan, runner)
    counters = (runner.iteration, runner.env_steps, runner.wall_time)
    latest = Path(ranks.from_main(str(folder.latest()) if ranks.is_main else None))  # others may ask before it is there
    return TrainResult(folder.path, latest, interrupted, *counters, dict(runner.metrics), is_main=ranks.is_main)


def _turn_back(folder: RunFolder, runner: Any) -> None:
    """Take what the run did after the resumed bundle out of the way of what it will do."""
    abandoned = folder.set_aside(runner.iteration)
    if abandoned is not None:
        logger.warning("What the run did after iteration %d is in %s now", runner.iteration, abandoned)
    for sink in runner.loggers:
        sink.rewind(runner.iteration)


def _budgets(plan: TrainPlan) -> list[Callback]:
    from myriad_lab.runners.budget import EnvStepBudget, WallClockBudget

    budgets: list[Callback] = []
    if plan.run.max_env_steps is not None:
        budgets.append(EnvStepBudget(plan.run.max_env_steps))
    if plan.run.max_seconds is not None:
        budgets.append(WallClockBudget(plan.run.max_seconds))
    return budgets


def _videos(plan: TrainPlan) -> list[Callback]:
    if not plan.run.video:
        return []
    from myriad_lab.cli.training_films import TrainingFilms, ViewerFilms

    run = plan.run
    if plan.env.one_at_a_time:
        return [ViewerFilms(run.video_interval, run.video_length)]

    def env_of_film(num_robots: int) -> Any:
        return plan.env.make(num_robots, device=run.device, seed=run.seed, final_obs=False)

    return [TrainingFilms(env_of_film, run.algorithm, run.video_interval, run.video_length)]
