"""Aggregate the cells of a study over seeds, and write the result down as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from myriad_lab.evaluation.study import Cell, StudyCfg, make_cells
from myriad_lab.functional.statistics import bootstrap_interval

Result = Mapping[str, Any]


def summarise(study: StudyCfg, results: Iterable[Result]) -> dict[str, Any]:
    """Return rows (case x variant) with means and bootstrap 95 % intervals over seeds, and what failed or is missing.

    Args:
        study: The study.
        results: Results of its cells, as read from ``result.json``.

    Returns:
        ``rows``: one per case and variant, each with ``metrics``, ``difference`` (to the reference variant, paired by
        seed), ``crossing`` (of the threshold) and ``failed`` seeds; ``failed``: id and error of each failed cell;
        ``missing``: ids of the cells without a result.
    """
    by_id = {result["id"]: result for result in results}
    cells = make_cells(study)
    rows = []
    for case in study.cases:
        reference = _done(by_id, study, case, study.reference) if study.reference else {}
        for variant in study.variants:
            done = _done(by_id, study, case, variant)
            row = {
                "case": case,
                "variant": variant,
                "seeds": sorted(done),
                "failed": [s for s in study.seeds if _status(by_id, Cell(variant, case, s).id) == "failed"],
                "metrics": {name: _interval(_values(done, name)) for name in study.metrics},
                "difference": {},
            }
            if reference and variant != study.reference:
                pairs = sorted(done.keys() & reference.keys())
                row["difference"] = {
                    name: _interval(_differences([done[s] for s in pairs], [reference[s] for s in pairs], name))
                    for name in study.metrics
                }
            level = _level(study, reference)
            if level is not None:
                row["crossing"] = _crossing(study, level, list(done.values()))
            rows.append(row)
    return {
        "study": study.name,
        "title": study.title,
        "question": study.question,
        "rows": rows,
        "failed": [
            {"id": cell.id, "error": by_id[cell.id].get("error", "")}
            for cell in cells
            if _status(by_id, cell.id) == "failed"
        ],
        "missing": [cell.id for cell in cells if cell.id not in by_id],
    }


def first_crossing(curve: Sequence[Mapping[str, float]], key: str, threshold: float) -> Mapping[str, float] | None:
    """Return the first point of a curve with ``point[key] >= threshold``, ``None`` if there is none."""
    return next((point for point in curve if point.get(key, float("-inf")) >= threshold), None)


def to_markdown(
    study: StudyCfg, summary: Mapping[str, Any], context: Mapping[str, str], figures: Sequence[str] = ()
) -> str:
    """Return the page of a study: question, command, hardware, tables, figures, failures.

    Args:
        study: The study.
        summary: What ``summarise`` returned.
        context: Lines of the preamble: name -> text, e.g. command, hardware, versions.
        figures: Paths of pictures, relative to the page.
    """
    lines = [f"# {study.title}", "", study.question, ""]
    lines += [f"- {name}: {text}" for name, text in context.items()]
    lines += [
        "",
        f"{_seeds_text(study)} {_evaluation_text(study)}",
        "",
    ]
    for case in study.cases:
        rows = [row for row in summary["rows"] if row["case"] == case]
        if not any(row["seeds"] or row["failed"] for row in rows):
            continue
        if case:
            lines += [f"## {study.cases[case].label or case}", ""]
        lines += _table(study, rows, "metrics", list(study.metrics.values()))
        if study.reference and any(row["difference"] for row in rows):
            name = _label(study, study.reference)
            lines += ["", f"Difference to *{name}*, paired by seed:", ""]
            compared = [row for row in rows if row["variant"] != study.reference]
            lines += _table(study, compared, "difference", list(study.metrics.values()), signed=True)
        if any("crossing" in row for row in rows):
            lines += ["", *_crossing_table(study, rows)]
        lines.append("")
    lines += [f"![{figure}]({figure})\n" for figure in figures]
    if summary["failed"]:
        lines += ["## Failed cells", "", "They are left out of the means above.", ""]
        lines += [f"- `{cell['id']}`: {_last_line(cell['error'])}" for cell in summary["failed"]]
        lines.append("")
    if summary["missing"]:
        lines += [f"Not run: {', '.join(f'`{name}`' for name in summary['missing'])}.", ""]
    return "\n".join(lines)


def _done(by_id: Mapping[str, Result], study: StudyCfg, case: str, variant: str) -> dict[int, Result]:
    """Return seed -> result of the finished cells of a variant."""
    ids = {seed: Cell(variant, case, seed).id for seed in study.seeds}
    return {seed: by_id[name] for seed, name in ids.items() if _status(by_id, name) == "done"}


def _status(by_id: Mapping[str, Result], name: str) -> str:
    return by_id[name]["status"] if name in by_id else "missing"


def _values(done: Mapping[int, Result], name: str) -> list[float]:
    return [result["metrics"][name] for result in done.values() if result["metrics"].get(name) is not None]


def _differences(ours: Sequence[Result], theirs: Sequence[Result], name: str) -> list[float]:
    pairs = zip((r["metrics"].get(name) for r in ours), (r["metrics"].get(name) for r in theirs), strict=True)
    return [a - b for a, b in pairs if a is not None and b is not None]


def _interval(values: Sequence[float]) -> dict[str, Any] | None:
    if not values:
        return None
    mean, low, high = bootstrap_interval(values)
    return {"mean": float(mean), "low": float(low), "high": float(high), "values": [float(v) for v in values]}


def _level(study: StudyCfg, reference: Mapping[int, Result]) -> float | None:
    """Return the level whose first crossing counts in a case; a share of a return of 0 or less means nothing."""
    if study.threshold_of_reference is None:
        return study.threshold
    values = _values(reference, next(iter(study.curves)))
    mean = sum(values) / len(values) if values else 0.0
    return study.threshold_of_reference * mean if mean > 0.0 else None


def _crossing(study: StudyCfg, level: float, results: Sequence[Result]) -> dict[str, Any]:
    """Return where the first curve first reaches a level, without and with the cost of pre-training."""
    key = next(iter(study.curves))
    found = [(r, first_crossing(r["curve"], key, level)) for r in results]
    reached = [(r, point) for r, point in found if point is not None]
    out: dict[str, Any] = {"level": level, "reached": len(reached), "of": len(results)}
    for axis in ("env_steps", "wall_time"):
        apart = [point[axis] for _, point in reached]
        included = [point[axis] + r.get("pretrain", {}).get(axis, 0.0) for r, point in reached]
        out[axis], out[f"{axis}_included"] = _interval(apart), _interval(included)
    return out


def _table(
    study: StudyCfg, rows: Sequence[Mapping[str, Any]], part: str, headings: Sequence[str], signed: bool = False
) -> list[str]:
    lines = ["| variant | seeds | " + " | ".join(headings) + " |", "| --- " * (len(headings) + 2) + "|"]
    for row in rows:
        failed = f" ({len(row['failed'])} failed)" if row["failed"] else ""
        entries = [_show(row[part].get(name), signed) for name in study.metrics]
        label = _label(study, row["variant"])
        lines.append(f"| {label} | {len(row['seeds'])}{failed} | " + " | ".join(entries) + " |")
    return lines


def _crossing_table(study: StudyCfg, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    label, share = next(iter(study.curves.values())), study.threshold_of_reference
    level = next(row["crossing"]["level"] for row in rows if "crossing" in row)
    what = "" if share is None else f" ({100 * share:g} % of what *{_label(study, study.reference)}* reaches)"
    columns = {"env_steps": "env steps", "wall_time": "seconds"}
    if study.prerequisites:
        columns |= {"env_steps_included": "env steps with pre-training", "wall_time_included": "seconds with it"}
    lines = [
        f"First evaluation with {label} >= {level:.4g}{what}, over the runs that reached it:",
        "",
        "| variant | runs that reached it | " + " | ".join(columns.values()) + " |",
        "| --- " * (len(columns) + 2) + "|",
    ]
    for row in rows:
        crossing = row["crossing"]
        entries = " | ".join(_show(crossing[key]) for key in columns)
        lines.append(f"| {_label(study, row['variant'])} | {crossing['reached']} of {crossing['of']} | {entries} |")
    return lines


def _show(interval: Mapping[str, Any] | None, signed: bool = False) -> str:
    if interval is None:
        return "-"
    mean, low, high = (_number(interval[name], signed) for name in ("mean", "low", "high"))
    return mean if len(interval["values"]) == 1 else f"{mean} [{low}, {high}]"


def _number(value: float, signed: bool) -> str:
    sign = "+" if signed else ""
    if abs(value) >= 1e6:
        return f"{value / 1e6:{sign}.3g} M"
    return f"{value:{sign},.0f}" if abs(value) >= 1000 else f"{value:{sign}.3g}"


def _label(study: StudyCfg, variant: str) -> str:
    return study.variants[variant].label or variant


def _last_line(text: str) -> str:
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return lines[-1] if lines else "no message"


def _seeds_text(study: StudyCfg) -> str:
    """Say how many seeds, and what a bootstrap of few is: of 3, one resample in 27 holds the lowest value alone."""
    if len(study.seeds) == 1:
        return "One seed, so that there are no intervals."
    few = ": of so few the interval is the range from the lowest to the highest" if len(study.seeds) <= 3 else ""
    return f"Means over seeds with bootstrap 95 % intervals, {len(study.seeds)} seeds{few}."


def _evaluation_text(study: StudyCfg) -> str:
    cfg = study.evaluation
    if cfg.kind == "exploration":
        return (
            f"Final evaluation from the saved bundle: fresh env with seed {cfg.seed}, {cfg.num_envs} envs shared by "
            f"all heads, pool of {cfg.pool_size} particles whatever m, k = {cfg.k}, features in metres; entropies in "
            "nats."
        )
    return (
        f"Final evaluation from the saved bundle: fresh envs with seed {cfg.seed}, {cfg.episodes_per_head} "
        f"deterministic episodes per head, {cfg.curve_episodes} for each point of a curve. The best head is chosen by "
        "every other of them and measured on the rest, and so is a head that is alone."
    )
