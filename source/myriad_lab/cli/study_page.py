"""The page of a study: what its cells brought, aggregated, with all that one must know to make it again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from myriad_lab.cli.machine import hardware, versions
from myriad_lab.cli.study_cells import code_commit, make_signatures
from myriad_lab.evaluation.study import StudyCfg, make_cells, read_result


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


def _budgets(study: StudyCfg) -> str:
    """Return the budget of all runs, or that of each case where they differ."""
    texts = {}
    for name, case in study.cases.items():
        limits = asdict(case.budget or study.budget).items()
        texts[case.label or name] = ", ".join(f"{key} {value:,}" for key, value in limits if value is not None)
    if len(set(texts.values())) == 1:
        return next(iter(texts.values()))
    return "; ".join(f"{name}: {text}" for name, text in texts.items())


def _context(
    study: StudyCfg, results: Sequence[dict[str, Any]], command: str, stale: Sequence[str] = ()
) -> dict[str, str]:
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
    peers = sorted({r["peer"] for r in results if r.get("peer")})
    if peers:
        lines["others' code"] = "; ".join(peers)
    if used := [r["cores_used"] for r in results if r.get("cores_used")]:
        lines["cores used by a training"] = f"{min(used):.2f} to {max(used):.2f}, on average over its time"
    return lines | {
        "budget of each run": _budgets(study),
        "hardware": plain(machines),
        "versions": plain(packages),
        "git commit": "; ".join(sorted({r.get("git_commit", "not recorded") for r in results})) or code_commit(),
        "time of all cells": f"{sum(r['seconds'] for r in results) / 60:.0f} min",
    }
