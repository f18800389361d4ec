"""The flags of ``myriad train``: one dataclass, from which the parser is made."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

from myriad_lab.cli.arguments import non_empty, positive_float, positive_int, seed_int
from myriad_lab.errors import ConfigurationError, nearest

BACKENDS = ("torch", "mujoco", "mujoco_warp", "isaaclab")
ALGORITHMS = ("kmyriad", "pql", "ppo")
SEEDINGS = ("all", "best", "halving")
LOGGERS = ("tensorboard", "wandb", "none")
NOT_YET = {
    "algorithm": ("pgpse", "sac", "impala", "arac", "maac", "ald"),
}
"""What the design names and nobody has built; asking for it is an error of its own kind."""


def _flag(default: Any, help: str, parse: Callable[[str], Any] = non_empty, choices: tuple[str, ...] = ()) -> Any:
    """Return a dataclass field that carries its flag."""
    return field(default=default, metadata={"help": help, "parse": parse, "choices": choices})


@dataclass
class RunCfg:
    """What one training run was asked for; every field is a flag of the same name, saved as ``config/run.yaml``.

    ``None`` means: as the presets of the task and of the experiment say.
    """

    task: str = _flag("", "registered task id, see `myriad list_tasks`")
    backend: str | None = _flag(None, "simulator (default: the first one of the task)", choices=BACKENDS)
    algorithm: str = _flag("kmyriad", "what to train with (default: kmyriad)", choices=ALGORITHMS)
    num_envs: int | None = _flag(None, "parallel envs; num_policies must divide it", positive_int)
    num_policies: int | None = _flag(None, "policies of the population", positive_int)
    portfolio: str | None = _flag(None, "bundle or run folder to start the policies from")
    seeding: str = _flag("all", "which of its heads start the policies (default: all)", choices=SEEDINGS)
    checkpoint: str | None = _flag(None, "bundle or run folder to go on with, or latest, or best")
    max_iterations: int | None = _flag(None, "iterations in all, those before a resume included", positive_int)
    max_env_steps: int | None = _flag(None, "stop after this many env steps, summed over envs", positive_int)
    max_seconds: float | None = _flag(None, "stop after this time of training [s]", positive_float)
    seed: int = _flag(0, "seed of everything random (default: 0)", seed_int)
    device: str = _flag("cpu", "device of networks and buffers, and of GPU simulators (default: cpu)")
    deterministic: bool = _flag(False, "refuse operations that are not bitwise repeatable")
    distributed: bool = _flag(False, "one of the processes that torchrun starts; they share out policies and envs")
    logger: str = _flag("tensorboard", "beside the console and metrics.jsonl (default: tensorboard)", choices=LOGGERS)
    experiment_name: str | None = _flag(None, "folder under runs/ (default: task and algorithm)")
    run_name: str = _flag("", "added to the name of the run folder", str)
    runs_root: str = _flag("runs", "where run folders are made (default: runs)")
    video: bool = _flag(False, "record a video of the population every video_interval iterations")
    video_length: int = _flag(300, "length of a video in control steps (default: 300)", positive_int)
    video_interval: int = _flag(50, "iterations between two videos (default: 50)", positive_int)
    viz: str | None = _flag(None, "viewers on backend isaaclab, e.g. viser or newton_gl,rerun")


def add_run_flags(parser: argparse.ArgumentParser) -> None:
    """Add one flag per field of ``RunCfg``; flags that are not given stay ``None``."""
    for spec in fields(RunCfg):
        help = spec.metadata["help"]
        if isinstance(spec.default, bool):
            parser.add_argument(f"--{spec.name}", action="store_true", default=None, help=help)
            continue
        choices = spec.metadata["choices"]
        metavar = f"{{{','.join(choices)}}}" if choices else spec.name.split("_")[-1].upper()
        parser.add_argument(f"--{spec.name}", type=spec.metadata["parse"], metavar=metavar, help=help)


def check_choices(run: RunCfg) -> None:
    """Refuse unknown choices and what is not available yet.

    Raises:
        ConfigurationError: Naming the value, and the choices there are.
    """
    if run.distributed:
        _check_distributed(run)
    if run.viz and run.backend != "isaaclab":
        raise ConfigurationError(
            f"--viz {run.viz}: training is watched on --backend isaaclab alone; record films with --video, or look at "
            "the run afterwards with `myriad play`"
        )
    for spec in fields(RunCfg):
        choices, value = spec.metadata["choices"], getattr(run, spec.name)
        if not choices or value is None or value in choices:
            continue
        if value in NOT_YET.get(spec.name, ()):
            raise ConfigurationError(f"{spec.name}={value} is not available yet; available: {', '.join(choices)}")
        raise ConfigurationError(f"unknown {spec.name} {value!r}. {nearest(value, choices)}")
    for name in ("experiment_name", "run_name"):
        value = getattr(run, name)
        if value and ("/" in value or value.startswith(".")):
            raise ConfigurationError(f"{name}={value!r} is no folder name; leave out slashes and dots in front")
    if run.portfolio and run.checkpoint:
        raise ConfigurationError("--checkpoint goes on with a run, --portfolio starts a new one; give one of them")


def _check_distributed(run: RunCfg) -> None:
    """Refuse what several processes cannot do together yet."""
    if run.algorithm == "ppo":
        raise ConfigurationError("--distributed shares out policies, and ppo trains a single one; leave it out")
    if run.seeding == "halving":
        raise ConfigurationError("--distributed has no --seeding halving: heads stay on their rank; take --seeding all")
    if run.backend == "isaaclab":
        raise ConfigurationError("--distributed has no --backend isaaclab yet; take mujoco or torch, or leave it out")
    if run.video:
        raise ConfigurationError(
            "--video: with --distributed no process has all policies; leave it out, and film the run afterwards with "
            "`myriad play --video`"
        )
