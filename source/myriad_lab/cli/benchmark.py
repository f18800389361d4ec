"""``myriad benchmark``: measure the hot paths, each beside its floor and its peer, and go on where a record ended."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from myriad_lab.cli.arguments import positive_float, refuse_overrides
from myriad_lab.cli.compiler import check_compiler
from myriad_lab.errors import ConfigurationError

if TYPE_CHECKING:
    from myriad_lab.cli.benchmarks.line import Case
    from myriad_lab.cli.benchmarks.record import Record

BENCHMARKS = ("env", "knn", "population", "learner", "replay", "overlap", "ranks", "isaaclab")
"""Each is a module of ``myriad_lab.cli.benchmarks``."""
ELSEWHERE = ("isaaclab",)
"""Those that ``all`` leaves out: they need an environment of their own."""
COMPARED = ("scipy", "scikit-learn", "faiss-cpu", "faiss-gpu", "faiss-gpu-cu12", "mujoco-warp", "warp-lang", "triton")
"""Packages whose versions change the times, beside those that every run tells."""
END2END = "end2end"
"""A study of whole training runs, with cells and a page instead of lines; ``all`` leaves it out too."""
TABLE = "table"
"""Measures nothing: prints the tables of records, writes them into a page, draws their plots."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``myriad benchmark``."""
    names = (*BENCHMARKS, "all", END2END, TABLE)
    parser.add_argument("name", nargs="?", default="all", choices=names, help="which one, or the table of a record")
    parser.add_argument("--device", default="cpu", help="device of the tensors, e.g. cuda:0 (default: cpu)")
    parser.add_argument("--quick", action="store_true", help="small sizes and few repetitions, to see that it works")
    parser.add_argument(
        "--json",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="record there; what it holds already is not measured again (default of all: benchmark_<device>.json)",
    )
    parser.add_argument("--minutes", type=positive_float, help="start nothing new after so long; call again to go on")
    parser.add_argument("--peers", type=Path, help="of end2end: folder with checkouts of the public learners")
    parser.add_argument("--plot", type=Path, metavar="FOLDER", help="draw the plots of all that was recorded")
    parser.add_argument("--page", type=Path, metavar="FILE", help="with table: the Markdown page to write them into")


def run(args: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Run benchmarks and print a table for each, or print the tables of records; 1 if a case failed.

    Raises:
        ConfigurationError: If the device is not there, flags do not fit each other, a file cannot be written, or the
            record is of another machine.
        CheckpointError: If a record is damaged.
    """
    from myriad_lab.cli.benchmarks.record import Record
    from myriad_lab.cli.checkpoints import check_out_file
    from myriad_lab.cli.machine import hardware, installed, versions
    from myriad_lab.portfolio.run_folder import git_state
    from myriad_lab.tasks.registry import check_device

    refuse_overrides("benchmark", overrides)
    _check_flags(args)
    if args.name == TABLE:
        return _table(args)
    found = check_device(args.device)
    if found.type == "cuda":
        check_compiler()
    device = "cpu" if found.type == "cpu" else f"cuda:{found.index or 0}"
    if args.name == END2END:
        from myriad_lab.cli.benchmarks import end2end

        return end2end.run(device, args.quick, args.minutes, args.peers)
    path = args.json[0] if args.json else None
    if path is None and args.name == "all" and not args.quick:  # so long a measurement is not to be lost
        path = Path(f"benchmark_{found.type}.json")
    if path:
        check_out_file(path)
    machine = hardware(device) | versions() | installed(COMPARED)
    record = Record(machine, device, args.quick, path, git_state(Path(__file__).parent)[0])
    print(", ".join(f"{key} {value}" for key, value in machine.items()), flush=True)
    names = [name for name in BENCHMARKS if name not in ELSEWHERE] if args.name == "all" else [args.name]
    todo, failed = _cases(names, device, args.quick)
    failed += _measure(todo, record, device, args.minutes)
    if path:
        print(f"\nwritten: {path}")
    if args.plot:
        _plot(record.content(), args.plot)
    if args.name == "all" and not args.quick:
        print(f"whole training runs against the clock are a study: myriad benchmark {END2END} --device {device}")
    if failed:
        print(f"failed, and to be tried again by the next call: {'; '.join(failed)}")
    return 1 if failed else 0


def _check_flags(args: argparse.Namespace) -> None:
    from myriad_lab.portfolio.atomic import check_writable

    table = args.name == TABLE
    if table and (args.minutes or args.quick or args.device != "cpu"):
        raise ConfigurationError("table measures nothing: leave --device, --minutes and --quick out")
    if table and not args.json:
        raise ConfigurationError("table needs --json FILE [FILE]: the records, one of a CPU and one of a GPU at most")
    if not table and args.json and len(args.json) > 1:
        raise ConfigurationError(f"--json {' '.join(map(str, args.json))}: one file can be recorded to, not several")
    if not table and args.page:
        raise ConfigurationError("--page belongs to: benchmark table --json FILE --page PAGE")
    study = args.name == END2END
    if study and (args.json or args.plot):
        raise ConfigurationError("end2end writes a page of its own under runs/studies; leave --json and --plot out")
    if args.peers and not study:
        raise ConfigurationError(f"--peers {args.peers} belongs to: benchmark end2end")
    kept = args.json or args.name == END2END or (args.name == "all" and not args.quick)
    if args.minutes and not kept:
        raise ConfigurationError("--minutes without --json FILE leaves nothing to go on with: name a file")
    if args.plot:
        if importlib.util.find_spec("matplotlib") is None:
            raise ConfigurationError("--plot needs matplotlib: pip install 'myriad-lab[viz]', or leave --plot out")
        check_writable(args.plot)


def _cases(names: Sequence[str], device: str, quick: bool) -> tuple[dict[str, list[Case]], list[str]]:
    """Return the cases of each benchmark, and the names of those that cannot say what theirs are.

    A broken package that one of them needs must not keep the others from running.
    """
    todo: dict[str, list[Case]] = {}
    failed: list[str] = []
    for name in names:
        try:
            todo[name] = importlib.import_module(f"myriad_lab.cli.benchmarks.{name}").cases(device, quick)
        except Exception as error:
            if len(names) == 1 and isinstance(error, ConfigurationError):
                raise
            traceback.print_exc()
            failed.append(name)
    return todo, failed


def _measure(todo: dict[str, list[Case]], record: Record, device: str, minutes: float | None) -> list[str]:
    """Run the cases that are not recorded yet, print a table per benchmark, and return the names of those that failed.

    One that fails does not stop the others, whose machine may be at hand for minutes only; one that failed, or did not
    come back, in an earlier call has its turn after the others.
    """
    from myriad_lab.cli.benchmarks.tables import text_table

    queue = [(name, case) for name, cases in todo.items() for case in cases if record.lines(name, case.name) is None]
    queue.sort(key=lambda entry: record.attempts(entry[0], entry[1].name))
    start, failed = time.monotonic(), []
    for position, (name, case) in enumerate(queue):
        if minutes and time.monotonic() - start > 60.0 * minutes:
            left = len(queue) - position
            print(f"\n{minutes:g} minutes are over, {left} cases are left; the same command goes on with them")
            break
        print(f"{position + 1} of {len(queue)}: {name}, {case.name}", flush=True)
        if not _run_case(name, case, record, device):
            failed.append(f"{name}, {case.name}")
            if not _answers(device):
                print(f"\n{device} is lost to this process; the same command goes on with what is left")
                break
    for name, cases in todo.items():
        if lines := [line for case in cases for line in record.lines(name, case.name) or []]:
            print(f"\n{name}\n{text_table(lines)}", flush=True)
    return failed


def _run_case(name: str, case: Case, record: Record, device: str) -> bool:
    """Run and record a case, and say whether it did not fail; one that does not fit is left out."""
    import torch

    from myriad_lab.cli.benchmarks.memory import free_bytes

    for where, needed in ((device, case.needs_bytes), ("cpu", case.needs_host_bytes)):
        free = free_bytes(where)
        if free is not None and needed > 0.9 * free:
            print(f"  left out: it needs {needed / 2**30:.1f} GiB of {where}, and {free / 2**30:.1f} GiB are free")
            return True
    record.begin(name, case.name)
    threads = torch.get_num_threads()
    try:
        lines = case.run()
    except Exception:
        traceback.print_exc()
        return False
    finally:
        torch.set_num_threads(threads)  # MuJoCo's envs take torch's for themselves, for good
    record.add(name, case.name, lines)
    return True


def _answers(device: str) -> bool:
    """Say whether a device still works: an error inside a kernel takes a GPU from the process that met it."""
    from myriad_lab.cli.benchmarks.line import wait

    try:
        wait(device)
    except RuntimeError:
        return False
    return True


def _table(args: argparse.Namespace) -> int:
    from myriad_lab.cli.benchmarks.record import read_record
    from myriad_lab.cli.benchmarks.tables import fill_page, machine_line, markdown_tables

    contents = [read_record(path) for path in args.json]
    tables = markdown_tables(contents)
    tables["machines"] = "\n".join(f"- {machine_line(content)}" for content in contents)
    if args.page:
        fill_page(args.page, tables)
        print(f"written: {args.page}")
    else:
        print("\n\n".join(f"## {name}\n\n{table}" for name, table in tables.items()))
    if args.plot:
        for content in contents:
            _plot(content, args.plot)
    return 0


def _plot(content: Mapping[str, Any], folder: Path) -> None:
    from myriad_lab.cli.benchmarks.plots import plot

    for path in plot(content, folder):
        print(f"written: {path}")
