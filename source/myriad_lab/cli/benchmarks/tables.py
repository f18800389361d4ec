"""Lines as a table of text for the terminal, and as Markdown for the documentation."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from myriad_lab.cli.benchmarks.line import BenchmarkLine
from myriad_lab.cli.list_tasks import format_table
from myriad_lab.errors import ConfigurationError
from myriad_lab.portfolio.atomic import write_bytes

COLUMNS = ("what", "size", "median [ms]", "p95 [ms]", "floor [ms]", "x floor", "peer [ms]", "x peer", "peak [MB]")
KINDS = ("cpu", "cuda")
"""Kinds of device that have columns in the pages, measured or not."""


def text_table(lines: Sequence[BenchmarkLine]) -> str:
    """Return the table of the terminal; "x" columns say how many times floor and peer were needed."""
    columns = (*COLUMNS, "floor is", "peer is", "note")
    return format_table(columns, [[*_row(line), line.floor or "-", line.peer or "-", line.note] for line in lines])


def markdown_tables(contents: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return a table for each benchmark, with the columns of each kind of device beside each other.

    Args:
        contents: Of one file for each kind of device at most, as ``record.read_record`` returns it.

    Raises:
        ConfigurationError: If two files are of the same kind of device.
    """
    found: dict[str, dict[tuple[str, str], dict[str, BenchmarkLine]]] = {}
    kinds: list[str] = []
    for content in contents:
        kinds.append(kind := torch.device(content["device"]).type)
        for result in content["results"]:
            rows = found.setdefault(result["benchmark"], {})
            for line in result["lines"]:
                rows.setdefault((line.name, line.size), {})[kind] = line
    if len(set(kinds)) < len(kinds):
        raise ConfigurationError(f"two of the files are of the same kind of device ({', '.join(kinds)}); give one each")
    return {name: _markdown(rows, kinds) for name, rows in found.items()}


def fill_page(page: Path, tables: Mapping[str, str]) -> None:
    """Replace what stands between ``<!-- table NAME -->`` and ``<!-- end -->`` in a page by the table of that name.

    Where there is no such table the page says so, for an older one would be taken for a part of the records.

    Raises:
        ConfigurationError: If the page is not there, or has no place for a table.
    """
    if not page.is_file():
        raise ConfigurationError(f"there is no {page}; --page wants a Markdown file with places for the tables")
    text = page.read_text()
    for name in dict.fromkeys([*tables, *re.findall(r"<!-- table (\S+) -->", text)]):
        table = tables.get(name, "Not in the records.")
        start, end = f"<!-- table {name} -->\n", "<!-- end -->"
        head, found, rest = text.partition(start)
        _, closed, tail = rest.partition(end)
        if not found or not closed:
            raise ConfigurationError(f"{page} has no place for the table {name}: write {start.strip()} and {end} there")
        text = f"{head}{start}\n{table}\n\n{end}{tail}"
    write_bytes(page, text.encode())


def machine_line(content: Mapping[str, Any]) -> str:
    """Return device, hardware and versions in one line, with dates, commits and the load that was beside."""
    machine = ", ".join(f"{key} {value}" for key, value in content["machine"].items())
    results = content["results"]
    if not results:
        return f"{content['device']}: {machine}; nothing measured"
    days, loads = sorted({r["at"][:10] for r in results}), [r["load"] for r in results]
    commits = sorted({(r["commit"] or "unknown")[:10] for r in results})
    return (
        f"{content['device']}: {machine}; {' and '.join(days)}, commit {', '.join(commits)}, "
        f"load of the machine {min(loads):g} to {max(loads):g}"
    )


def _markdown(rows: Mapping[tuple[str, str], Mapping[str, BenchmarkLine]], kinds: Sequence[str]) -> str:
    columns = ["what", "size"]
    for kind in KINDS:
        names = ("median (p95) [ms]", "floor [ms]", "x floor", "peer [ms]", "peak [MB]", "note")
        columns += [f"{kind}: {name}" for name in names] if kind in kinds else [kind]
    table = [columns, ["---"] * len(columns)]
    for (name, size), by_kind in rows.items():
        cells = [name, size]
        for kind in KINDS:
            cells += _cells(by_kind.get(kind)) if kind in kinds else ["not measured"]
        table.append(cells)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in table)


def _cells(line: BenchmarkLine | None) -> list[str]:
    if line is None:
        return ["", "", "", "", "", ""]
    _, _, median, p95, floor, times, peer, _, peak = (f"{x:g}" if isinstance(x, float) else str(x) for x in _row(line))
    return [
        f"{median} ({p95})",
        f"{floor} {line.floor}" if line.floor else "-",
        times,
        f"{peer} {line.peer}" if line.peer else "-",
        peak,
        line.note,
    ]


def _row(line: BenchmarkLine) -> list[Any]:
    def ms(seconds: float | None) -> float | str:
        return "-" if seconds is None else float(f"{1000 * seconds:.3g}")

    def times(ratio: float | None) -> float | str:
        return "-" if ratio is None else round(ratio, 2)

    peak = "-" if line.peak_bytes is None else round(line.peak_bytes / 1e6)
    return [
        line.name,
        line.size,
        ms(line.measured_s),
        ms(line.p95_s),
        ms(line.floor_s),
        times(line.floor_ratio),
        ms(line.peer_s),
        times(line.peer_ratio),
        peak,
    ]
