"""``myriad list_tasks``: the registered tasks with their sizes and backends."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

from myriad_lab.cli.arguments import refuse_overrides
from myriad_lab.errors import ConfigurationError

COLUMNS = ("task", "backends", "policy obs", "critic obs", "features", "actions", "steps", "step [s]", "description")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``myriad list_tasks``."""
    parser.add_argument("--filter", default="", help="list only tasks whose id contains this text")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(args: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Print the table.

    Raises:
        ConfigurationError: If no task fits the filter.
    """
    from myriad_lab.tasks import registry

    refuse_overrides("list_tasks", overrides)
    rows = [describe(entry) for entry in registry.list_tasks() if args.filter.lower() in entry.id.lower()]
    if not rows:
        raise ConfigurationError(f"no task contains {args.filter!r}; leave --filter out to see all")
    print(
        json.dumps(rows, indent=1) if args.json else format_table(COLUMNS, [[row[c] for c in COLUMNS] for row in rows])
    )
    return 0


def describe(entry: Any) -> dict[str, Any]:
    """Return one row of the table for a ``TaskEntry``; sizes are numbers per env, the control step is in seconds."""
    task = entry.make_task(entry.cfg)
    terms = task.observation_terms()
    sizes = {
        group: sum(_size(term.shape) for term in terms.get(group, ())) for group in ("policy", "critic", "features")
    }
    return {
        "task": entry.id,
        "backends": ", ".join(entry.backends),
        "policy obs": sizes["policy"],
        "critic obs": sizes["critic"],
        "features": sizes["features"],
        "actions": len(task.robot.action.names),
        "steps": task.cfg.episode_steps,
        "step [s]": round(task.robot.control_period, 4),
        "description": entry.description,
    }


def format_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return rows as a table of text: numbers to the right, all else to the left."""
    cells = [[str(value) for value in row] for row in rows]
    widths = [max(len(row[i]) for row in [list(columns), *cells]) for i in range(len(columns))]
    right = [bool(rows) and all(isinstance(row[i], int | float) for row in rows) for i in range(len(columns))]

    def line(values: Sequence[str]) -> str:
        pairs = zip(values, widths, right, strict=True)
        return "  ".join(value.rjust(width) if flush else value.ljust(width) for value, width, flush in pairs).rstrip()

    return "\n".join([line(columns), line(["-" * width for width in widths]), *map(line, cells)])


def _size(shape: Sequence[int]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size
