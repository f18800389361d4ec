"""Run the cells of a study, each as processes of its own on cores of its own, and keep what they brought."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import Queue
from typing import Any

from myriad_lab.cli.arguments import split_overrides
from myriad_lab.cli.machine import hardware, versions
from myriad_lab.cli.peers.checkouts import Checkout
from myriad_lab.cli.peers.requests import describe_peer, peer_request
from myriad_lab.envs.cores import usable_cores
from myriad_lab.errors import ConfigurationError
from myriad_lab.evaluation.study import (
    Cell,
    StudyCfg,
    VariantCfg,
    cell_settings,
    make_cells,
    read_result,
    signature,
    train_arguments,
)
from myriad_lab.portfolio.run_folder import git_state

INTERRUPTED = 130
"""Exit status of a command that a signal asked to stop."""
ERROR_CHARACTERS = 4000
"""How much of the end of a failed cell's output its result keeps."""


class CellError(RuntimeError):
    """A subprocess of a cell failed; the message is the end of its output."""


def run_cells(
    study: StudyCfg,
    goals: dict[str, dict[str, Any]],
    out: Path,
    jobs: int,
    only: str,
    checkouts: Mapping[str, Checkout],
    minutes: float | None,
) -> None:
    """Run the cells that have no up-to-date result, prerequisites first; a failed one does not stop the others.

    Those of peers without a checkout, and of Isaac Lab where it is not installed, are left out; none is started after
    ``minutes``.

    Raises:
        ConfigurationError: If none is left.
    """
    cells = _runnable(study, [cell for cell in make_cells(study) if only in cell.id], checkouts)
    if not cells:
        raise ConfigurationError("none of these cells can be run here, for the reasons told above")
    wanted = {name for cell in cells for name in cell.needs}
    before = [c for c in make_cells(study) if c.is_prerequisite and (c in cells or c.id in wanted)]
    marks = make_signatures(study, goals)
    started, left = time.monotonic(), []
    slots: Queue[list[int]] = Queue()
    for cores in split_cores(usable_cores(), jobs):
        slots.put(cores)

    def work(cell: Cell) -> None:
        cores = slots.get()
        try:
            if _is_done(out, cell, marks[cell.id]):
                return
            if minutes is not None and time.monotonic() - started > 60.0 * minutes:
                left.append(cell.id)
                return
            arguments = cell_arguments(study, cell, goals, out)
            checkout = checkouts.get(variant_of(study, cell).peer)
            request = peer_request(study, cell, goals[cell.case], checkout, _folder(out, cell)) if checkout else None
            _run_cell(study, cell, _Work(arguments, marks[cell.id], cores, checkout, request), out)
        finally:
            slots.put(cores)

    for stage in (before, [cell for cell in cells if not cell.is_prerequisite]):
        with ThreadPoolExecutor(jobs) as pool:
            list(pool.map(work, stage))
    if left:
        print(f"{minutes:g} minutes are over, {len(left)} cells are left; the same command goes on with them")


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
        variant = variant_of(study, cell)
        if variant.peer:
            marks[cell.id] = _peer_signature(study, cell, _case_overrides(cell, goals))
            continue
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


def cell_arguments(study: StudyCfg, cell: Cell, goals: dict[str, dict[str, Any]], out: Path) -> list[str]:
    """Return the training arguments; the bundle of a prerequisite is named by its stable link."""
    variant, portfolio = variant_of(study, cell), ""
    if variant.peer:
        return describe_peer(study, cell, goals[cell.case])
    if variant.portfolio:
        portfolio = str(out / "cells" / Cell(variant.portfolio, "", cell.seed, is_prerequisite=True).id / "bundle")
    return train_arguments(study, cell, _case_overrides(cell, goals), portfolio)


def variant_of(study: StudyCfg, cell: Cell) -> VariantCfg:
    """Return the variant, or the prerequisite, that a cell trains."""
    return (study.prerequisites if cell.is_prerequisite else study.variants)[cell.variant]


def code_commit() -> str:
    """Return the commit of the code that is running, and whether it was changed since."""
    commit, difference = git_state(Path(__file__).parent)
    return f"{commit or 'none'}{', with uncommitted changes' if difference else ''}"


def _runnable(study: StudyCfg, chosen: Sequence[Cell], checkouts: Mapping[str, Checkout]) -> list[Cell]:
    """Return the cells that can be run here, and say which cannot."""
    foreign = [cell for cell in chosen if variant_of(study, cell).peer not in ("", *checkouts)]
    if foreign:
        print(f"note: {len(foreign)} cells of others' learners are left out: --peers says where their code lies")
    flags = {cell.id: cell_settings(study, cell, {})[0] for cell in chosen}
    absent = [cell for cell in chosen if flags[cell.id].get("backend") == "isaaclab" and "isaaclab" not in versions()]
    if absent:
        print(f"note: {len(absent)} cells of Isaac Lab are left out: run the same command in its environment")
    return [cell for cell in chosen if cell not in (*foreign, *absent)]


@dataclass(frozen=True)
class _Work:
    """What it takes to run a cell."""

    arguments: list[str]
    mark: str
    cores: list[int]
    checkout: Checkout | None
    request: dict[str, Any] | None


def _folder(out: Path, cell: Cell) -> Path:
    return out / "cells" / cell.id


def _is_done(out: Path, cell: Cell, mark: str) -> bool:
    result = read_result(_folder(out, cell))
    return result is not None and result["status"] == "done" and result["signature"] == mark


def _run_cell(study: StudyCfg, cell: Cell, work: _Work, out: Path) -> None:
    folder = _folder(out, cell)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    started = time.time()
    record = {"id": cell.id, **asdict(cell), "signature": work.mark, "arguments": work.arguments}
    machine = {name: value for name, value in hardware().items() if name in ("cpu", "cores", "gpu")}
    record |= {"hardware": machine | {"cores of the cell": len(work.cores)}, "versions": versions()}
    record |= {"git_commit": code_commit(), "peer": work.checkout.describe() if work.checkout else ""}
    try:
        evaluated = _run_peer(work, folder) if work.request else _train_and_evaluate(study, cell, work, folder, out)
        record |= evaluated | {"status": "done", "error": ""}
    except CellError as error:
        record |= {"status": "failed", "error": str(error)[-ERROR_CHARACTERS:], "metrics": {}, "curve": []}
    record["seconds"] = time.time() - started
    partial = folder / "result.json.part"
    partial.write_text(json.dumps(record, indent=1))
    partial.replace(folder / "result.json")
    print(f"{cell.id}: {record['status']} in {record['seconds']:.0f} s", flush=True)


def _run_peer(work: _Work, folder: Path) -> dict[str, Any]:
    """Train by a peer's code, then evaluate what it left; each is a process of its own."""
    request = folder / "request.json"
    request.write_text(json.dumps(work.request, indent=1))
    used, _ = (
        _call(["myriad_lab.cli.peers.cell", what, str(request)], folder, work.cores, log)
        for what, log in (("train", "train.log"), ("evaluate", "evaluation.log"))
    )
    return {**json.loads((folder / "evaluation.json").read_text()), "pretrain": {}, "cores_used": used}


def _train_and_evaluate(study: StudyCfg, cell: Cell, work: _Work, folder: Path, out: Path) -> dict[str, Any]:
    needed = {}
    for name in cell.needs:
        result = read_result(out / "cells" / name)
        if result is None or result["status"] != "done":
            raise CellError(f"the prerequisite {name} has not finished")
        needed[name] = result
    train = ["train", *work.arguments, "--runs_root", str(folder / "runs"), "--logger", "none"]
    used = _call(["myriad_lab.cli.main", *train], folder, work.cores, "train.log")
    variant = variant_of(study, cell)
    request = {
        "runs": str(folder / "runs"),
        "out": str(folder / "evaluation.json"),
        "seed": cell.seed,
        "untrained": variant.untrained,
        "evaluation": asdict(study.evaluation) if not cell.is_prerequisite else None,
        "curves": list(study.curves),
    }
    (folder / "request.json").write_text(json.dumps(request, indent=1))
    _call(["myriad_lab.cli.study_cell", str(folder / "request.json")], folder, work.cores, "evaluation.log")
    evaluated = json.loads((folder / "evaluation.json").read_text())
    cost = {axis: sum(r["cost"][axis] for r in needed.values()) for axis in ("env_steps", "wall_time")}
    return {**evaluated, "pretrain": cost if needed else {}, "cores_used": used}


def _call(module_and_arguments: list[str], folder: Path, cores: list[int], log: str) -> float:
    """Run a module of this package in ``folder``, its output in ``log``; raises with the end of it.

    Returns:
        How many cores it used on average: less than its own where it had to share them, or to wait.
    """
    started = time.perf_counter()
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
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = code = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - started
    if code != 0:
        tail = (folder / log).read_text(errors="replace")[-ERROR_CHARACTERS:]
        signalled = code < 0 or code == INTERRUPTED
        last = "a signal ended it; start the study again to run it anew" if signalled else ""
        raise CellError(f"exit status {code}\n{tail}\n{last}")
    return (usage.ru_utime + usage.ru_stime) / seconds


def _peer_signature(study: StudyCfg, cell: Cell, case_overrides: dict[str, Any]) -> str:
    """Return the fingerprint of a peer's cell; where its checkout lies is not in it, presets of the task are."""
    from myriad_lab.cli.plan import make_layers

    flags, overrides = cell_settings(study, cell, case_overrides)
    settings = {"peer": study.variants[cell.variant].peer, "layers": make_layers(flags, {}), "overrides": overrides}
    budget, evaluation = asdict(study.budget_of(cell)), asdict(study.evaluation)
    return signature(settings | {"budget": budget, "evaluation": evaluation})


def _case_overrides(cell: Cell, goals: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {} if cell.is_prerequisite else goals[cell.case]
