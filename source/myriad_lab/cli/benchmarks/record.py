"""The file of a benchmark: what was measured, on which machine; grown case by case, so that it can be gone on with."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from myriad_lab.cli.benchmarks.line import BenchmarkLine
from myriad_lab.errors import ConfigurationError
from myriad_lab.portfolio.atomic import read_json, write_json


class Record:
    """Lines of benchmarks, kept in memory and, where there is a path, in a JSON file.

    Args:
        machine: Hardware and versions, name -> value.
        device: Device of the tensors.
        quick: Whether sizes are small.
        path: The file; what it holds already is taken over.
        commit: Of the code that measures, noted with each case.

    Raises:
        ConfigurationError: If the file is of another machine, other versions, another device or other sizes.
        CheckpointError: If the file is damaged.
    """

    def __init__(
        self,
        machine: Mapping[str, Any],
        device: str,
        quick: bool,
        path: Path | None = None,
        commit: str | None = None,
    ) -> None:
        self._head = {"machine": dict(machine), "device": device, "quick": quick}
        self._results: list[dict[str, Any]] = []
        self._unfinished: dict[str, int] = {}
        self._path, self._commit = path, commit
        if path is not None and path.exists():
            known = read_record(path)
            self._check(known, path)
            self._results, self._unfinished = known["results"], known["unfinished"]

    def lines(self, benchmark: str, case: str) -> list[BenchmarkLine] | None:
        """Return the lines of a case, ``None`` if it was not measured yet."""
        for result in self._results:
            if (result["benchmark"], result["case"]) == (benchmark, case):
                return result["lines"]
        return None

    def attempts(self, benchmark: str, case: str) -> int:
        """Return how often a case was begun that is not recorded."""
        return self._unfinished.get(f"{benchmark}, {case}", 0)

    def begin(self, benchmark: str, case: str) -> None:
        """Note that a case is begun, for the next call to know if this process does not come back from it."""
        self._unfinished[f"{benchmark}, {case}"] = self.attempts(benchmark, case) + 1
        self._write()

    def add(self, benchmark: str, case: str, lines: list[BenchmarkLine]) -> None:
        """Take over the lines of a case, with time, commit and load of the machine, and write the file."""
        self._unfinished.pop(f"{benchmark}, {case}", None)
        self._results.append(
            {
                "benchmark": benchmark,
                "case": case,
                "at": datetime.now(UTC).isoformat(timespec="seconds"),
                "commit": self._commit,
                "load": round(os.getloadavg()[0], 2),
                "lines": lines,
            }
        )
        self._write()

    def content(self) -> dict[str, Any]:
        """Return what ``read_record`` would: machine, device, quick, results, and how often what is not there began."""
        return {**self._head, "results": self._results, "unfinished": self._unfinished}

    def _write(self) -> None:
        if self._path is not None:
            plain = [{**result, "lines": [asdict(line) for line in result["lines"]]} for result in self._results]
            write_json(self._path, self.content() | {"results": plain})

    def _check(self, known: Mapping[str, Any], path: Path) -> None:
        theirs, ours = _flat(known), _flat(self._head)
        other = [
            f"{key} {theirs.get(key)!r} there, {ours.get(key)!r} here"
            for key in sorted(theirs.keys() | ours.keys())
            if theirs.get(key) != ours.get(key)
        ]
        if other:
            raise ConfigurationError(
                f"{path} was measured elsewhere or otherwise: {'; '.join(other)}. Times of both do not belong into one "
                "file: name another one, or remove this."
            )


def read_record(path: Path) -> dict[str, Any]:
    """Return the content of a file of lines, with the lines as ``BenchmarkLine``.

    Raises:
        ConfigurationError: If there is no such file, or it is another kind of file.
        CheckpointError: If it is damaged.
    """
    if not path.is_file():
        raise ConfigurationError(f"there is no {path}; make it with: python scripts/benchmark.py all --json {path}")
    content = read_json(path)
    if not {"machine", "device", "quick", "results"} <= content.keys():
        raise ConfigurationError(f"{path} is no record of scripts/benchmark.py; name another file")
    results = [{**r, "lines": [BenchmarkLine(**line) for line in r["lines"]]} for r in content["results"]]
    return {"unfinished": {}, **content, "results": results}


def _flat(content: Mapping[str, Any]) -> dict[str, Any]:
    return {**content.get("machine", {}), **{key: content.get(key) for key in ("device", "quick")}}
