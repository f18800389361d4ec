"""What the command line writes into a run folder: who, what, with which versions, and how it ended."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import myriad_lab
from myriad_lab.cli.configuration import to_yaml
from myriad_lab.cli.machine import hardware, versions
from myriad_lab.portfolio.atomic import check_writable, write_json
from myriad_lab.portfolio.run_folder import RunFolder, git_state

if TYPE_CHECKING:
    from myriad_lab.cli.plan import TrainPlan
    from myriad_lab.cli.train import TrainResult

RESULT_FILE = "result.json"
GIT_DIFF_FILE = "git.diff"


def folder_of(plan: TrainPlan) -> RunFolder:
    """Return the folder of a run: that of the resumed bundle, or a new one.

    Raises:
        ConfigurationError: If it cannot be written.
    """
    run = plan.run
    if plan.resume is not None and plan.resume.path.parent.name == "checkpoints":
        folder = RunFolder.open(plan.resume.path)
        check_writable(folder.checkpoints)
        return folder
    return RunFolder.create(run.runs_root, run.experiment_name or run.task, run.run_name)


def open_run(folder: RunFolder, plan: TrainPlan, command: Sequence[str], seeding: Mapping[str, Any]) -> None:
    """Write down what a run is: configuration, source, command, versions, and how its heads were chosen."""
    run = plan.run
    config = folder.path / "config"
    config.mkdir(exist_ok=True)
    for section, values in plan.config().items():
        (config / f"{section}.yaml").write_text(to_yaml(values))
    commit, difference = git_state(_source_folder())
    if difference:
        (folder.path / GIT_DIFF_FILE).write_text(difference)
    folder.write_info(
        {
            "command": [*folder.read_info().get("command", []), shlex.join(command)],
            "task": run.task,
            "backend": run.backend,
            "algorithm": run.algorithm,
            "num_envs": run.num_envs,
            "num_policies": run.num_policies,
            "seed": run.seed,
            "device": run.device,
            "portfolio": _parent(plan),
            "git_commit": commit,
            "hardware": hardware(),
            "versions": versions(),
            "started": folder.read_info().get("started") or datetime.now().isoformat(timespec="seconds"),
            "finished": False,
            **seeding,
        }
    )


def manifest_entries(plan: TrainPlan) -> dict[str, Any]:
    """Return the entries of the bundles' manifest that only the command line knows."""
    return {
        "config": plan.config(),
        "parent": _parent(plan),
        "git_commit": git_state(_source_folder())[0],
        "backend": plan.run.backend,
    }


def finish_run(folder: RunFolder, result: TrainResult) -> None:
    """Write ``result.json`` and how the run ended."""
    counters = {"iteration": result.iteration, "env_steps": result.env_steps, "wall_time": result.wall_time}
    write_json(
        folder.path / RESULT_FILE,
        {**counters, "checkpoint": str(result.checkpoint.relative_to(folder.path)), "metrics": result.metrics},
    )
    now = datetime.now().isoformat(timespec="seconds")
    folder.write_info({"finished": not result.interrupted, "ended": now})


def _parent(plan: TrainPlan) -> str | None:
    """Return the portfolio that the run started from, also where it goes on."""
    if plan.resume is not None:
        return plan.resume.manifest.parent
    return None if plan.seed_from is None else str(plan.seed_from.path)


def _source_folder() -> str:
    return str(myriad_lab.__path__[0])
