"""``myriad study``: run a grid of training commands at an equal budget and write its page."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

from myriad_lab.cli.arguments import non_empty_path, positive_float, positive_int
from myriad_lab.cli.peers.requests import resolve_checkouts
from myriad_lab.cli.study_cells import cell_arguments, run_cells, variant_of
from myriad_lab.cli.study_page import write_report
from myriad_lab.errors import ConfigurationError
from myriad_lab.evaluation.study import (
    StudyCfg,
    load_study,
    make_cells,
    override_arguments,
)
from myriad_lab.portfolio.atomic import check_writable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``myriad study``."""
    parser.add_argument("name", help="study in config/study/, or the path of a YAML file")
    parser.add_argument("--out", type=non_empty_path, help="folder of cells and page (default: runs/studies/NAME)")
    parser.add_argument(
        "--jobs", type=positive_int, default=1, help="cells at a time; keep 1 where wall-clock is compared"
    )
    parser.add_argument("--only", default="", help="run only the cells whose id contains this text")
    parser.add_argument("--minutes", type=positive_float, help="start no cell after so long; call again to go on")
    parser.add_argument("--peers", type=Path, help="folder with a checkout of each public learner that the study names")
    parser.add_argument("--num_seeds", type=positive_int, help="use only the first seeds of the study")
    parser.add_argument("--scale", type=positive_float, default=1.0, help="multiply every budget, to try a study out")
    parser.add_argument("--report_only", action="store_true", help="run nothing; aggregate what is there")
    parser.add_argument("--list", action="store_true", help="print the commands of the cells and stop")


def run(args: argparse.Namespace, overrides: Sequence[str] = ()) -> int:
    """Run the missing cells, then aggregate; returns 1 where a cell failed.

    Raises:
        ConfigurationError: Where the study is unknown or does not validate, an override was given, or ``--out``
            cannot be written.
    """
    if overrides:
        raise ConfigurationError(f"{overrides[0]!r}: overrides of a study belong in its YAML file.")
    study = _scaled(load_study(study_path(args.name)), args.scale, args.num_seeds)
    out = (args.out or Path("runs/studies") / study.name).resolve()
    goals = resolve_goals(study)
    checkouts = resolve_checkouts(study, args.peers)
    if args.list:
        for cell in make_cells(study):
            how = "" if variant_of(study, cell).peer else "myriad train "
            print(f"{cell.id}: {how}{shlex.join(cell_arguments(study, cell, goals, out))}")
        return 0
    if not any(args.only in cell.id for cell in make_cells(study)):
        raise ConfigurationError(f"--only {args.only}: no cell's id contains it; --list shows the ids")
    check_writable(out)
    if not args.report_only:
        if args.jobs > 1 and study.budget.max_seconds is not None:
            print(f"note: each of {args.jobs} cells at a time gets its share of the cores for its wall-clock")
        run_cells(study, goals, out, args.jobs, args.only, checkouts, args.minutes)
    return write_report(study, goals, out, _command(args))


def study_path(name: str) -> Path:
    """Return the file of a study, given by name or as a path."""
    if name.endswith(".yaml"):
        return Path(name)
    return Path(str(resources.files("myriad_lab.config"))) / "study" / f"{name}.yaml"


def resolve_goals(study: StudyCfg) -> dict[str, dict[str, Any]]:
    """Return case -> overrides, with goals given as percentiles turned into positions on the map of the case."""
    resolved = {}
    for name, case in study.cases.items():
        resolved[name] = dict(case.overrides)
        if case.goal_percentile is not None:
            from myriad_lab.cli.plan import make_task

            words = override_arguments({**study.overrides, **case.overrides})
            goal = make_task({**study.flags, **case.flags}, words).arena.far_goal(percentile=case.goal_percentile)
            resolved[name]["env.goal"] = [round(float(x), 3) for x in goal]
    return resolved


def _scaled(study: StudyCfg, scale: float, num_seeds: int | None) -> StudyCfg:
    prerequisites = {
        name: replace(variant, budget=variant.budget.scaled(scale) if variant.budget else None)
        for name, variant in study.prerequisites.items()
    }
    seeds = study.seeds[:num_seeds]
    cases = {
        name: replace(case, budget=case.budget.scaled(scale) if case.budget else None)
        for name, case in study.cases.items()
    }
    return replace(study, budget=study.budget.scaled(scale), prerequisites=prerequisites, cases=cases, seeds=seeds)


def _command(args: argparse.Namespace) -> str:
    """Return the command that makes these results; what only chooses or lists cells is left out."""
    parts = ["myriad", "study", args.name]
    for name, default in (("num_seeds", None), ("scale", 1.0), ("jobs", 1)):
        value = getattr(args, name)
        parts += [f"--{name}", str(value)] if value != default else []
    parts += ["--peers", "PEERS"] if args.peers else []  # where they lie is this machine's affair
    return shlex.join(parts)
