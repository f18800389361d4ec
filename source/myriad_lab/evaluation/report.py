"""One self-contained HTML page of a run, made from the run folder alone."""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from myriad_lab.evaluation import plots
from myriad_lab.evaluation import report_format as fmt
from myriad_lab.evaluation.report_style import CSS
from myriad_lab.portfolio.atomic import read_json, write_bytes
from myriad_lab.portfolio.manifest import Manifest
from myriad_lab.portfolio.recording import load_arrays, select_visits
from myriad_lab.portfolio.run_folder import RunFolder

CURVES = {
    "Population/entropy_pool": "Entropy of the pool [nats]",
    "Population/coverage": "Coverage of one batch",
    "Population/coverage_cumulative": "Coverage since the start",
    "Population/diversity": "Diversity [nats]",
    "Train/success": "Success in training",
    "Evaluation/success": "Success, deterministic",
    "Train/mean_reward": "Return of an episode",
    "Train/mean_episode_length": "Episode length [steps]",
    "Loss/critic": "Critic loss",
    "Loss/actor": "Actor loss",
    "Loss/surrogate": "Surrogate loss",
    "Policy/entropy": "Entropy of the actions [nats]",
    "Policy/mean_std": "Standard deviation of the actions",
    "Population/ess": "Effective sample size",
    "Perf/env_steps_per_second": "Env steps per second",
}
"""Metric -> title of its panel, in the order of the panels."""
CARDS = (
    ("success", "success of all heads", True),
    ("return", "return of all heads", False),
    ("coverage", "coverage", True),
    ("entropy_pool", "entropy of the pool [nats]", False),
    ("diversity", "diversity [nats]", False),
)
"""Key, title and whether it is a share, of the numbers at the top."""
COLUMNS = (
    ("success", "success", True),
    ("return", "return", False),
    ("length", "length [steps]", False),
    ("coverage", "coverage", True),
    ("entropy", "entropy [nats]", False),
    ("kl", "KL to the rest [nats]", False),
)
"""The same for the columns of the table of heads."""
VISITS_PER_HEAD = 20_000
"""States of each head that are drawn."""
MAPS = 24
"""Heads that get a small map of their own."""
TABLE_ROWS = 128
"""Heads in the table; the best ones, if there are more."""
MAX_VIDEO_BYTES = 40 * 2**20
"""Longer videos are named, not embedded."""


@dataclass
class RunData:
    """What the report is made of."""

    run: RunFolder
    manifest: Manifest
    metrics: list[dict[str, Any]]
    info: dict[str, Any]
    evaluation: dict[str, Any] = field(default_factory=dict)
    contract: dict[str, Any] = field(default_factory=dict)
    visits: list[np.ndarray] | None = None
    visits_source: str = ""
    visits_before: list[np.ndarray] | None = None


def read_run(path: str | Path) -> RunData:
    """Read a run folder.

    Raises:
        CheckpointError: If it holds no checkpoint, or a file in it is damaged.
    """
    run = RunFolder.open(path)
    contract = next(iter(sorted(run.export.glob("**/contract.json"))), None)
    data = RunData(
        run=run,
        manifest=Manifest.load(run.latest()),
        metrics=run.read_metrics(),
        info=run.read_info(),
        evaluation=read_json(run.evaluation_file) if run.evaluation_file.is_file() else {},
        contract=read_json(contract) if contract else {},
    )
    for name in ("evaluation_visits.npz", "visits.npz"):
        data.visits = _read_visits(run.recordings / name)
        if data.visits is not None:
            data.visits_source = name
            break
    data.visits_before = _read_visits(run.recordings / "visits_before.npz")
    return data


def write_report(path: str | Path, others: Sequence[str | Path] = (), out: str | Path | None = None) -> Path:
    """Write the page of a run.

    Args:
        path: Run folder, or a bundle in it.
        others: Runs of the same settings with other seeds; the learning curves become means with intervals.
        out: File to write; ``report.html`` in the run folder by default.

    Raises:
        CheckpointError: If the run or a file in it cannot be read.
    """
    data = read_run(path)
    siblings = [RunFolder.open(other).read_metrics() for other in others]
    target = Path(out) if out is not None else data.run.path / "report.html"
    write_bytes(target, render(data, siblings).encode())
    return target


def render(data: RunData, siblings: Sequence[Sequence[Mapping[str, Any]]] = ()) -> str:
    """Return the page as HTML text."""
    manifest = data.manifest
    parts: list[Callable[[], str]] = [
        lambda: _header(data),
        lambda: _cards(data),
        lambda: _map_section(data),
        lambda: _videos(data),
        lambda: _curves(data, siblings),
        lambda: _heads_maps(data),
        lambda: _table(data),
        lambda: _export(data),
        lambda: _facts(data),
    ]
    body = "\n".join(part() for part in parts)
    title = html.escape(f"{manifest.task}, {manifest.algorithm}")
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{CSS}</style></head><body><main>\n{body}\n"
        f"<footer>Made by Myriad Lab {html.escape(manifest.package_version)} from the run folder alone.</footer>"
        "</main></body></html>\n"
    )


def _header(data: RunData) -> str:
    m = data.manifest
    heads = f"{m.num_policies} {'policy' if m.num_policies == 1 else 'policies'}"
    text = f"{m.algorithm}, {heads} on {m.num_envs:,} envs, iteration {m.iteration:,}. {data.run.path.name}"
    return f'<h1>{html.escape(m.task)}</h1><p class="sub">{html.escape(text)}</p>'


def _cards(data: RunData) -> str:
    found, metrics = data.evaluation.get("portfolio", {}), data.manifest.metrics
    cards = [fmt.card("env steps", fmt.count(data.manifest.env_steps), f"in {fmt.duration(data.manifest.wall_time)}")]
    held_out = data.evaluation.get("held_out_best") or {}
    if held_out.get("success"):
        remark = (
            f"head {held_out['head']}, chosen on the other half of the episodes; "
            f"{fmt.interval(held_out['success'], as_percent=True)}"
        )
        cards.append(fmt.card("success of one head", fmt.show(held_out["success"], as_percent=True), remark))
    for key, name, as_percent in CARDS:
        value = found.get(key, metrics.get(f"Population/{key}"))
        if value is None or (key == "return" and fmt.mean_of(value) == 0.0):
            continue
        remark = fmt.interval(value, as_percent) if isinstance(value, Mapping) else _card_note(key, data)
        cards.append(fmt.card(name, fmt.show(value, as_percent), remark))
    best = data.evaluation.get("best_head")
    if best and not held_out.get("success"):
        cards.append(fmt.card("best head", str(best["head"]), f"by {best['metric']}"))
    return f'<div class="cards">{"".join(cards)}</div>{_which_checkpoint(data)}'


def _which_checkpoint(data: RunData) -> str:
    """Return a note where the evaluation is of another checkpoint than the one the page names."""
    evaluated, newest = data.evaluation.get("checkpoint"), data.run.latest().name
    if evaluated in (None, newest):
        return ""
    return fmt.note(
        f"What was evaluated, heads, success, coverage, diversity and the map, is {evaluated}; curves and env steps are"
        f" of {newest}. `myriad evaluate` measures the newest."
    )


def _card_note(key: str, data: RunData) -> str:
    if key == "coverage" and "reachable_cells" in data.evaluation.get("portfolio", {}):
        return f"of {data.evaluation['portfolio']['reachable_cells']} reachable cells"
    return "at the last checkpoint" if key not in data.evaluation.get("portfolio", {}) else ""


def _map_section(data: RunData) -> str:
    if data.visits is None:
        return ""
    goal = _goal(data)
    figure = plots.visitation_map(data.visits, data.manifest.arena, labels=_labels(data), **goal)
    caption = (
        "States visited by the population, coloured by head; the stronger, the more often (logarithmic). "
        "Circle: start. " + ("Star: goal. " if goal["goal"] else "") + f"From {data.visits_source}."
    )
    body = fmt.figure(plots.to_png(figure), caption)
    if data.visits_before is not None:
        before = plots.visitation_map(data.visits_before, data.manifest.arena, labels=_labels(data), legend=False)
        body += fmt.figure(plots.to_png(before, dpi=75), "The same before training.")
    return fmt.section("Where the population goes", body)


def _heads_maps(data: RunData) -> str:
    if data.visits is None or len(data.visits) < 2:
        return ""
    total = len(data.visits)
    heads = [round(i) for i in np.linspace(0, total - 1, min(MAPS, total))]
    rows = data.evaluation.get("heads", [])
    titles = [_map_title(head, rows[head] if head < len(rows) else {}) for head in heads]
    figure = plots.head_maps(data.visits, data.manifest.arena, heads=heads, titles=titles, **_goal(data))
    some = f" {len(heads)} of {total} heads, evenly chosen." if len(heads) < total else ""
    caption = f"Each head alone, over the visits of the others in grey.{some}"
    return fmt.section("Head by head", fmt.figure(plots.to_png(figure, dpi=110), caption))


def _map_title(head: int, row: Mapping[str, Any]) -> str:
    for key, name in (("success", "success"), ("coverage", "coverage")):
        if row.get(key) is not None:
            return f"head {head}: {name} {fmt.show(row[key], as_percent=True)}"
    return f"head {head}"


def _videos(data: RunData) -> str:
    items = []
    for path in sorted(data.run.videos.glob("*.mp4")):
        size = path.stat().st_size
        if size > MAX_VIDEO_BYTES:
            items.append(fmt.note(f"videos/{path.name}: {size / 2**20:.0f} MiB, too large to embed"))
        else:
            items.append(fmt.video(path.read_bytes(), path.stem.replace("_", " ")))
    return fmt.section("Video", "".join(items)) if items else ""


def _curves(data: RunData, siblings: Sequence[Sequence[Mapping[str, Any]]]) -> str:
    runs = [data.metrics, *siblings]
    figure = plots.learning_curves(runs, CURVES)
    if figure is None:
        return ""
    caption = "Against env steps; strong line: moving average."
    if siblings:
        caption = f"Mean of {len(runs)} seeds with bootstrap 95 % interval; thin lines: the seeds."
    return fmt.section("Learning curves", fmt.figure(plots.to_png(figure), caption))


def _table(data: RunData) -> str:
    rows = data.evaluation.get("heads", [])
    if not rows:
        return ""
    columns = [column for column in COLUMNS if any(row.get(column[0]) is not None for row in rows)]
    best = data.evaluation["best_head"]
    ranked = sorted(range(len(rows)), key=lambda i: -fmt.mean_of(rows[i].get(best["metric"])))
    colors = plots.head_colors(len(rows))
    lines = []
    for i in sorted(ranked[:TABLE_ROWS]):
        swatch = "#" + "".join(f"{round(255 * channel):02x}" for channel in colors[i])
        is_best = i == best["head"]
        label = f'<span class="swatch" style="background:{swatch}"></span>{i}{" (best)" if is_best else ""}'
        cells = "".join(f"<td>{fmt.cell(rows[i].get(key), as_percent)}</td>" for key, _, as_percent in columns)
        lines.append(f"<tr{' class=best' if is_best else ''}><td>{label}</td>{cells}</tr>")
    head = "".join(f"<th>{html.escape(name)}</th>" for _, name, _ in columns)
    table = f'<div class="scroll"><table><tr><th>head</th>{head}</tr>{"".join(lines)}</table></div>'
    text = f"Best: by {best['metric']} over all episodes. "
    text += f"Bootstrap 95 % intervals. {data.evaluation.get('settings', {}).get('text', '')}"
    if data.evaluation.get("task", data.manifest.task) != data.manifest.task:
        text = f"Evaluated on {data.evaluation['task']}. {text}"
    if len(rows) > TABLE_ROWS:
        text += f" The {TABLE_ROWS} best of {len(rows)} heads by {best['metric']}."
    return fmt.section("Heads", table + fmt.note(text))


def _export(data: RunData) -> str:
    if not data.contract:
        return ""
    policy, parity, action = (data.contract[key] for key in ("policy", "parity", "action"))
    terms = ", ".join(f"{t['name']} {t['slice'][1] - t['slice'][0]}" for t in data.contract["observation"]["terms"])
    facts = {
        "policy": "all heads, with an index input" if policy["head"] is None else f"head {policy['head']}",
        "observation": f"{data.contract['observation']['size']} numbers: {terms}",
        "actions": f"{len(action['names'])}, {action['kind']} [{action['unit']}]: {', '.join(action['names'])}",
        "control period": f"{data.contract['control_period']['value']:.6g} s",
        "largest difference to torch": f"ONNX {parity['onnx_max_abs_error']:.2g}, TorchScript "
        f"{parity['torchscript_max_abs_error']:.2g}, on {parity['rows']} {parity['observations']} observations",
    }
    return fmt.section("Export", fmt.definitions(facts))


def _facts(data: RunData) -> str:
    m, info = data.manifest, data.info
    command = info.get("command")
    facts = {
        "command": " ".join(command) if isinstance(command, list) else command,
        "seed": info.get("seed", m.config.get("run", {}).get("seed")),
        "backend": m.backend,
        "commit": m.git_commit,
        "parent": m.parent,
        "newest checkpoint": data.run.latest().name,
        "evaluated checkpoint": data.evaluation.get("checkpoint"),
        "written": m.created,
        "versions": fmt.flat(info.get("versions")),
        "machine": fmt.flat(info.get("hardware", info.get("host"))),
    }
    parts = [fmt.definitions({name: value for name, value in facts.items() if value not in (None, "", {})})]
    for section, values in m.config.items():
        text = html.escape(json.dumps(values, indent=2))
        parts.append(f"<details><summary>{html.escape(section)} configuration</summary><pre>{text}</pre></details>")
    return fmt.section("The run", "".join(parts))


def _labels(data: RunData) -> tuple[str, str]:
    names = [
        (f"{term['name']} {i}" if np.prod(term["shape"]) > 2 else "xy"[i], term["unit"])
        for term in data.manifest.spec["observations"].get("features", [])
        for i in range(int(np.prod(term["shape"])))
    ]
    first, second = ([*names, ("0", "1"), ("1", "1")])[:2]
    return f"{first[0]} [{first[1]}]", f"{second[0]} [{second[1]}]"


def _goal(data: RunData) -> dict[str, Any]:
    env = data.manifest.config.get("env", {})
    goal = data.evaluation.get("goal") or env.get("goal")
    return {"goal": goal, "goal_radius": float(env.get("goal_radius") or 0.0) if goal else 0.0}


def _read_visits(path: Path) -> list[np.ndarray] | None:
    """Return the states of each head, ``None`` where nothing was recorded or there are no two features to draw."""
    if not path.is_file():
        return None
    arrays, _ = load_arrays(path)
    if "features" not in arrays or arrays["features"].shape[-1] < 2:
        return None
    return select_visits(arrays["features"], arrays["valid"], VISITS_PER_HEAD)
