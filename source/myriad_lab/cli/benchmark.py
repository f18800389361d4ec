"""``myriad benchmark``: run benchmarks and print each line beside its floor or its bare library."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from myriad_lab.cli.arguments import refuse_overrides

BENCHMARKS = ("env", "knn", "population", "learner", "replay", "isaaclab")
"""Each is a module of ``myriad_lab.cli.benchmarks``."""
ELSEWHERE = ("isaaclab",)
"""Those that ``all`` leaves out: they need an environment of their own."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``myriad benchmark``."""
    parser.add_argument("name", nargs="?", default="all", choices=(*BENCHMARKS, "all"), help="which one (default: all)")
    parser.add_argument("--device", default="cpu", help="device of the tensors, e.g. cuda:0 (default: cpu)")
    parser.add_argument("--quick", action="store_true", help="small sizes and few repetitions, to see that it works")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the lines and the hardware there as well")


def run(args: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Run the benchmarks and print one table for each.

    Raises:
        ConfigurationError: If the device is not there or the file cannot be written.
    """
    import importlib

    from myriad_lab.cli.checkpoints import check_out_file
    from myriad_lab.cli.list_tasks import format_table
    from myriad_lab.cli.machine import hardware
    from myriad_lab.tasks.registry import check_device

    refuse_overrides("benchmark", overrides)
    check_device(args.device)
    if args.json:
        check_out_file(args.json)
    machine = hardware()
    print(", ".join(f"{key} {value}" for key, value in machine.items()))
    names = [name for name in BENCHMARKS if name not in ELSEWHERE] if args.name == "all" else [args.name]
    results: dict[str, Any] = {}
    for name in names:
        lines = importlib.import_module(f"myriad_lab.cli.benchmarks.{name}").run(args.device, args.quick)
        results[name] = [{**asdict(line), "ratio": line.ratio} for line in lines]
        print(f"\n{name}")
        print(format_table(COLUMNS, [_row(line) for line in lines]), flush=True)
    if args.json:
        args.json.write_text(json.dumps({"hardware": machine, "quick": args.quick, "lines": results}, indent=1) + "\n")
        print(f"\nwritten: {args.json}")
    return 0


COLUMNS = ("what", "size", "median [ms]", "p95 [ms]", "reference [ms]", "ratio", "reference is", "note")


def _row(line: Any) -> list[Any]:
    times = [float(f"{1000 * seconds:.4g}") for seconds in (line.measured_s, line.p95_s, line.reference_s)]
    return [line.name, line.size, *times, round(line.ratio, 2), line.peer, line.note]
