"""``myriad study``: run a grid of training commands at an equal budget and write its page."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from importlib import resources
from pathlib import Path
from queue import Queue
from typing import Any

from myriad_lab.cli.arguments import non_empty_path, positive_float, positive_int, split_overrides
from myriad_lab.cli.machine import hardware, versions
from myriad_lab.envs.cores import usable_cores
from myriad_lab.errors import ConfigurationError
from myriad_lab.evaluation.study import (
    Cell,
    StudyCfg,
    VariantCfg,
    load_study,
    make_cells,
    override_arguments,
    read_result,
    signature,
    train_arguments,
)
from myriad_lab.portfolio.atomic import check_writable
from myriad_lab.portfolio.run_folder import git_state

INTERRUPTED = 130
"""Exit status of a command that a signal asked to stop."""
ERROR_CHARACTERS = 4000
"""How much of the end of a failed cell's output its result keeps."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``myriad study``."""
    parser.add_argument("name", help="study in config/study/, or the path of a YAML file")
    parser.add_argument("--out", type=non_empty_path, help="folder of cells and page (default: runs/studies/NAME)")
    parser.add_argument(
        "--jobs", type=positive_int, default=1, help="cells at a time; keep 1 where wall-clock is compared"
    )
    parser.add_argument("--only", default="", help="run only the cells whose id contains this text")
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
    if args.list:
        for cell in make_cells(study):
            print(f"{cell.id}: myriad train {shlex.join(_arguments(study, cell, goals, out))}")
        return 0
    check_writable(out)
    if not args.report_only:
        if args.jobs > 1 and study.budget.max_seconds is not None:
            print(f"note: each of {args.jobs} cells at a time gets its share of the cores for its wall-clock")
        run_cells(study, goals, out, args.jobs, args.only)
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


def run_cells(study: StudyCfg, goals: dict[str, dict[str, Any]], out: Path, jobs: int, only: str) -> None:
    """Run the cells that have no up-to-date result, prerequisites first; a failed one does not stop the others."""
    cells = [cell for cell in make_cells(study) if only in cell.id]
    wanted = {name for cell in cells for name in cell.needs}
    before = [c for c in make_cells(study) if c.is_prerequisite and (c in cells or c.id in wanted)]
    marks = make_signatures(study, goals)
    slots: Queue[list[int]] = Queue()
    for cores in split_cores(usable_cores(), jobs):
        slots.put(cores)

    def work(cell: Cell) -> None:
        cores = slots.get()
        try:
            _run_cell(study, cell, _arguments(study, cell, goals, out), marks[cell.id], out, cores)
        finally:
            slots.put(cores)

    for stage in (before, [cell for cell in cells if not cell.is_prerequisite]):
        with ThreadPoolExecutor(jobs) as pool:
            list(pool.map(work, stage))


def split_cores(cores: Sequence[int], jobs: int) -> list[list[int]]:
    """Return the cores of each of ``jobs`` cells run at a time: equal shares, so that wall-clock stays comparable."""
    share = max(1, len(cores) // jobs)
    return [[cores[(job * share + i) % len(cores)] for i in range(share)] for job in range(jobs)]


def make_signatures(study: StudyCfg, goals: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Return id -> fingerprint of all that a cell was asked to do, presets and prerequisites included.

    Code and the defaults it holds are not in it: after a change of those, another ``--out`` makes the cells again.
    """
    from myriad_lab.cli.configuration import parse_overrides
    from myriad_lab.cli.main import parser_of
    from myriad_lab.cli.plan import given_flags, make_layers

    parser = parser_of("train")
    marks: dict[str, str] = {}
    for cell in make_cells(study):
        variant = _variant(study, cell)
        # The name of the prerequisite stands for its bundle, so that the folder of the study may move.
        arguments = train_arguments(study, cell, _case_overrides(cell, goals), variant.portfolio)
        args, rest = parser.parse_known_args(arguments)
        overrides = parse_overrides(split_overrides(rest, parser.flags()))
        settings: dict[str, Any] = {
            "layers": make_layers(given_flags(args), overrides.groups),
            "overrides": overrides.values,
            "needs": [marks[name] for name in cell.needs],
        }
        if not cell.is_prerequisite:
            settings |= {"evaluation": asdict(study.evaluation), "curves": list(study.curves)}
        marks[cell.id] = signature(settings | {"untrained": variant.untrained})
    return marks


def write_report(study: StudyCfg, goals: dict[str, dict[str, Any]], out: Path, command: str) -> int:
    """Aggregate the results under ``out`` into ``study.json``, ``study.md`` and figures; 1 where a cell failed."""
    from myriad_lab.evaluation.study_plots import plot_curves
    from myriad_lab.evaluation.study_summary import summarise, to_markdown

    found = [read_result(out / "cells" / cell.id) for cell in make_cells(study)]
    results = [result for result in found if result is not None]
    summary = summarise(study, results)
    figures = plot_curves(study, results, out) if any(r["status"] == "done" for r in results) else []
    marks = make_signatures(study, goals)
    stale = [result["id"] for result in results if result["signature"] != marks[result["id"]]]
    context = _context(study, results, command, stale)
    (out / "study.json").write_text(json.dumps({**summary, "context": context, "results": results}, indent=1))
    page = to_markdown(study, summary, context, figures)
    (out / "study.md").write_text(page)
    print(page)
    print(f"written: {out / 'study.md'}, study.json and {len(figures)} figures")
    return 1 if summary["failed"] else 0


def _run_cell(study: StudyCfg, cell: Cell, arguments: list[str], mark: str, out: Path, cores: list[int]) -> None:
    folder = out / "cells" / cell.id
    result = read_result(folder)
    if result is not None and result["status"] == "done" and result["signature"] == mark:
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    started = time.time()
    record = {"id": cell.id, **asdict(cell), "signature": mark, "arguments": arguments}
    machine = {name: value for name, value in hardware().items() if name in ("cpu", "cores", "gpu")}
    record |= {"hardware": machine | {"cores of the cell": len(cores)}, "versions": versions(), "git_commit": _commit()}
    try:
        record |= _train_and_evaluate(study, cell, arguments, folder, out, cores) | {"status": "done", "error": ""}
    except _CellError as error:
        record |= {"status": "failed", "error": str(error)[-ERROR_CHARACTERS:], "metrics": {}, "curve": []}
    record["seconds"] = time.time() - started
    partial = folder / "result.json.part"
    partial.write_text(json.dumps(record, indent=1))
    partial.replace(folder / "result.json")
    print(f"{cell.id}: {record['status']} in {record['seconds']:.0f} s", flush=True)


class _CellError(RuntimeError):
    """A subprocess of a cell failed; the message is the end of its output."""


def _train_and_evaluate(
    study: StudyCfg, cell: Cell, arguments: list[str], folder: Path, out: Path, cores: list[int]
) -> dict[str, Any]:
    needed = {}
    for name in cell.needs:
        result = read_result(out / "cells" / name)
        if result is None or result["status"] != "done":
            raise _CellError(f"the prerequisite {name} has not finished")
        needed[name] = result
    train = ["train", *arguments, "--runs_root", str(folder / "runs"), "--logger", "none"]
    _call(["myriad_lab.cli.main", *train], folder, cores, "train.log")
    variant = _variant(study, cell)
    request = {
        "runs": str(folder / "runs"),
        "out": str(folder / "evaluation.json"),
        "seed": cell.seed,
        "untrained": variant.untrained,
        "evaluation": asdict(study.evaluation) if not cell.is_prerequisite else None,
        "curves": list(study.curves),
    }
    (folder / "request.json").write_text(json.dumps(request, indent=1))
    _call(["myriad_lab.cli.study_cell", str(folder / "request.json")], folder, cores, "evaluation.log")
    evaluated = json.loads((folder / "evaluation.json").read_text())
    cost = {axis: sum(r["cost"][axis] for r in needed.values()) for axis in ("env_steps", "wall_time")}
    return {**evaluated, "pretrain": cost if needed else {}}


def _call(module_and_arguments: list[str], folder: Path, cores: list[int], log: str) -> None:
    """Run a module of this package in ``folder``, its output in ``log``; raises with the end of it."""
    with (folder / log).open("w") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", *module_and_arguments],
            cwd=folder,
            # One thread of torch, as in `myriad train`: numbers must not depend on the cores. Physics uses them all.
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=stream,
            stderr=subprocess.STDOUT,
        )
        # Before it starts threads of its own: they inherit the cores.
        if hasattr(os, "sched_setaffinity"):  # macOS lets nobody choose
            os.sched_setaffinity(process.pid, cores)
        code = process.wait()
    if code != 0:
        tail = (folder / log).read_text(errors="replace")[-ERROR_CHARACTERS:]
        signalled = code < 0 or code == INTERRUPTED
        last = "a signal ended it; start the study again to run it anew" if signalled else ""
        raise _CellError(f"exit status {code}\n{tail}\n{last}")


def _arguments(study: StudyCfg, cell: Cell, goals: dict[str, dict[str, Any]], out: Path) -> list[str]:
    """Return the training arguments; the bundle of a prerequisite is named by its stable link."""
    variant, portfolio = _variant(study, cell), ""
    if variant.portfolio:
        portfolio = str(out / "cells" / Cell(variant.portfolio, "", cell.seed, is_prerequisite=True).id / "bundle")
    return train_arguments(study, cell, _case_overrides(cell, goals), portfolio)


def _variant(study: StudyCfg, cell: Cell) -> VariantCfg:
    return (study.prerequisites if cell.is_prerequisite else study.variants)[cell.variant]


def _case_overrides(cell: Cell, goals: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {} if cell.is_prerequisite else goals[cell.case]


def _commit() -> str:
    """Return the commit of the code that is running, and whether it was changed since."""
    commit, difference = git_state(Path(__file__).parent)
    return f"{commit or 'none'}{', with uncommitted changes' if difference else ''}"


def _scaled(study: StudyCfg, scale: float, num_seeds: int | None) -> StudyCfg:
    prerequisites = {
        name: replace(variant, budget=variant.budget.scaled(scale) if variant.budget else None)
        for name, variant in study.prerequisites.items()
    }
    seeds = study.seeds[:num_seeds]
    return replace(study, budget=study.budget.scaled(scale), prerequisites=prerequisites, seeds=seeds)


def _command(args: argparse.Namespace) -> str:
    """Return the command that makes these results; what only chooses or lists cells is left out."""
    parts = ["myriad", "study", args.name]
    for name, default in (("num_seeds", None), ("scale", 1.0), ("jobs", 1)):
        value = getattr(args, name)
        parts += [f"--{name}", str(value)] if value != default else []
    return shlex.join(parts)


def _context(
    study: StudyCfg, results: Sequence[dict[str, Any]], command: str, stale: Sequence[str] = ()
) -> dict[str, str]:
    budget = ", ".join(f"{key} {value:,}" for key, value in asdict(study.budget).items() if value is not None)
    machines = {json.dumps(r["hardware"]) for r in results} or {json.dumps(hardware())}
    packages = {json.dumps(r["versions"]) for r in results} or {json.dumps(versions())}

    def plain(texts: set[str]) -> str:
        return "; ".join(", ".join(f"{k} {v}" for k, v in json.loads(t).items()) for t in sorted(texts))

    lines = {"command": f"`{command}`"}
    if stale:
        lines["out of date"] = (
            f"the settings, presets or prerequisites of {len(stale)} of {len(results)} results, or how they are "
            f"recorded, have changed since they were made ({', '.join(stale[:3])}{', ...' if len(stale) > 3 else ''})"
        )
    return lines | {
        "budget of each run": budget,
        "hardware": plain(machines),
        "versions": plain(packages),
        "git commit": "; ".join(sorted({r.get("git_commit", "not recorded") for r in results})) or _commit(),
        "time of all cells": f"{sum(r['seconds'] for r in results) / 60:.0f} min",
    }
