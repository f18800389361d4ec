from __future__ import annotations

import json
import os
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from myriad_lab.cli import plan, study_cell
from myriad_lab.cli import study as command
from myriad_lab.cli import study_cells as cells
from myriad_lab.cli.main import main, parser_of
from myriad_lab.errors import ConfigurationError
from myriad_lab.evaluation.study import Cell, StudyCfg, load_study, make_cells, read_result, train_arguments
from myriad_lab.evaluation.study_plots import curve_band, line_style
from myriad_lab.evaluation.study_summary import first_crossing, summarise, to_markdown
from myriad_lab.portfolio.bundle import save_bundle
from portfolio.helpers import make_actor, make_manifest

SHIPPED = sorted(Path(command.study_path("x")).parent.glob("*.yaml"))

SMALL = """
title: A small study
question: Does it work?
seeds: [0, 1, 2]
budget: {max_env_steps: 1000}
reference: a
flags: {task: Myriad-PointMaze-Maze-Goal, num_envs: 4}
overrides: {agent.gamma: 0.9}
prerequisites:
  portfolio:
    flags: {task: Myriad-PointMaze-Maze, num_policies: 2}
    budget: {max_env_steps: 500}
cases:
  near: {label: near goal, goal_percentile: 30}
  far: {}
variants:
  a: {label: method A}
  b: {portfolio: portfolio, flags: {deterministic: true}, overrides: {agent.k: 3}}
evaluation: {kind: task}
metrics: {score: the score}
curves: {success: success}
threshold: 0.5
"""


def write(tmp_path: Path, text: str = SMALL) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(text)
    return path


def result(cell: Cell, score: float, curve: list[dict[str, float]] | None = None, **more: Any) -> dict[str, Any]:
    base = {"id": cell.id, "variant": cell.variant, "case": cell.case, "seed": cell.seed, "status": "done"}
    return {**base, "metrics": {"score": score}, "curve": curve or [], "pretrain": {}, **more}


def flags(path: Path, out: Path, **changes: Any) -> Namespace:
    args = parser_of("study").parse_args([str(path), "--out", str(out)])
    return Namespace(**{**vars(args), **changes})


class Fake:
    """Stands for the subprocesses of the cells: writes the evaluation, or fails where told."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.failing = "nothing"

    def __call__(self, call: list[str], folder: Path, cores: list[int], log: str) -> None:
        if call[1] == "train":
            self.calls.append(folder.name)
            if self.failing in folder.name:
                raise cells.CellError("Traceback\nRuntimeError: the physics exploded")
            return
        evaluated = {"metrics": {"score": 1.0}, "curve": [], "cost": {"env_steps": 7, "wall_time": 2.0}}
        (folder / "evaluation.json").write_text(json.dumps(evaluated))


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    fake = Fake()
    monkeypatch.setattr(cells, "_call", fake)
    return fake


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_studies_ask_for_runs_that_exist(path: Path, tmp_path: Path) -> None:
    study = load_study(path)
    actor = make_actor(num_policies=8)
    portfolio = str(save_bundle(tmp_path / "portfolio_1", actor, make_manifest(actor)))
    goals = command.resolve_goals(study)
    parser = parser_of("train")
    seen = set()
    if "device" in study.flags:  # a study of a GPU asks for a GPU; all else of it is looked at here too
        study.flags |= {"device": "cpu", "backend": "mujoco"}
    runnable = cells._runnable(study, make_cells(study), {})
    ours = {name for name, variant in study.variants.items() if not variant.peer}
    assert {cell.variant for cell in runnable if not cell.is_prerequisite} == ours
    for cell in runnable:
        if (cell.variant, cell.case, cell.is_prerequisite) in seen:
            continue
        seen.add((cell.variant, cell.case, cell.is_prerequisite))
        case = {} if cell.is_prerequisite else goals[cell.case]
        arguments = train_arguments(study, cell, case, portfolio if cell.needs else "")
        args, overrides = parser.parse_known_args(arguments)
        run = plan.make_plan(plan.given_flags(args), overrides).run
        assert run.seed == cell.seed
        if study.evaluation.kind == "exploration":
            assert study.evaluation.num_envs % (run.num_policies or 0) == 0
            assert study.evaluation.pool_size % (run.num_policies or 0) == 0
    assert len(SHIPPED) == 13


def test_grid_runs_prerequisites_first_and_seeds_in_turn(tmp_path: Path) -> None:
    cells = make_cells(load_study(write(tmp_path)))
    assert [cell.id for cell in cells[:5]] == [
        "pre-portfolio-seed0",
        "pre-portfolio-seed1",
        "pre-portfolio-seed2",
        "a-near-seed0",
        "b-near-seed0",
    ]
    assert len(cells) == 3 + 2 * 2 * 3
    assert cells[4].needs == ("pre-portfolio-seed0",)
    assert cells[3].needs == ()


def test_arguments_of_a_cell(tmp_path: Path) -> None:
    study = load_study(write(tmp_path))
    cell = Cell("b", "far", 2)
    expected = (
        "--task Myriad-PointMaze-Maze-Goal --num_envs 4 --deterministic --seed 2 --portfolio P --max_env_steps 1000"
    )
    overrides = ["agent.gamma=0.9", "env.goal=[1.5,2]", "agent.k=3"]
    assert train_arguments(study, cell, {"env.goal": [1.5, 2]}, "P") == [*expected.split(), *overrides]
    before = train_arguments(study, Cell("portfolio", "", 0, is_prerequisite=True), {})
    assert before[-2:] == ["--max_env_steps", "500"]
    assert "agent.gamma=0.9" not in before


def test_goals_are_placed_by_percentile(tmp_path: Path) -> None:
    goals = command.resolve_goals(load_study(write(tmp_path)))
    assert goals["far"] == {}
    assert len(goals["near"]["env.goal"]) == 2


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("goal_percentile: 30", "goal_percentile: 30, overrides: {env.arena_scale: 0.8}"),
        ("overrides: {agent.gamma: 0.9}", "overrides: {agent.gamma: 0.9, env.arena_scale: 0.8}"),
    ],
)
def test_goals_are_placed_on_the_map_of_the_case(tmp_path: Path, old: str, new: str) -> None:
    assert SMALL.count(old) == 1
    goals = command.resolve_goals(load_study(write(tmp_path, SMALL.replace(old, new))))
    arena = plan.make_task({"task": "Myriad-PointMaze-Maze-Goal"}, ["env.arena_scale=0.8"]).arena
    assert goals["near"]["env.goal"] == pytest.approx(arena.far_goal(30.0), abs=1e-3)
    assert goals["near"]["env.goal"] != command.resolve_goals(load_study(write(tmp_path)))["near"]["env.goal"]


def test_the_map_of_a_case_may_come_from_a_preset(tmp_path: Path) -> None:
    text = SMALL.replace("flags: {task: Myriad-PointMaze-Maze-Goal, num_envs: 4}", "flags: {num_envs: 4}")
    text = text.replace("goal_percentile: 30", "goal_percentile: 30, overrides: {experiment: pointmaze_goal}")
    goals = command.resolve_goals(load_study(write(tmp_path, text)))
    assert goals["near"]["env.goal"] == command.resolve_goals(load_study(write(tmp_path)))["near"]["env.goal"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("variants:", "varints:", "unknown key 'varints' in study. Did you mean variants"),
        ("portfolio: portfolio", "portfolio: portfolo", "prerequisite 'portfolo'. Did you mean portfolio"),
        ("reference: a", "reference: c", "Known: a, b"),
        ("kind: task", "kind: tasks", "must be 'exploration' or 'task'"),
        ("budget: {max_env_steps: 500}", "budget:", "give a budget"),
        ("seeds: [0, 1, 2]", "seeds: []", "at least one seed"),
        ("{label: method A}", "{lable: method A}", "unknown key 'lable' in variants.a"),
    ],
)
def test_a_wrong_study_is_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in SMALL
    with pytest.raises(ConfigurationError, match=message):
        load_study(write(tmp_path, SMALL.replace(old, new)))


def test_wrong_flags_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="pretrain_pointmaze"):
        command.run(flags(Path("pretrain_pointmase"), tmp_path))
    for flag, value in (("jobs", "0"), ("num_seeds", "0"), ("num_seeds", "-1"), ("scale", "nan"), ("scale", "0")):
        with pytest.raises(ConfigurationError, match=f"--{flag}.*'{value}' is not a"):
            parser_of("study").parse_args(["pretrain_pointmaze", f"--{flag}", value])
    with pytest.raises(ConfigurationError, match="belong in its YAML file"):
        command.run(flags(write(tmp_path), tmp_path), ["agent.k=3"])
    with pytest.raises(ConfigurationError, match="--only near-a: no cell"):
        command.run(flags(write(tmp_path), tmp_path / "out", only="near-a"))
    assert not (tmp_path / "out").exists()


def test_resumes_and_reruns_only_what_changed(tmp_path: Path, fake: Fake) -> None:
    path, out = write(tmp_path), tmp_path / "out"
    args = flags(path, out, only="near-seed0")
    assert command.run(args) == 0
    assert fake.calls == ["pre-portfolio-seed0", "a-near-seed0", "b-near-seed0"]
    assert command.run(flags(path, out, num_seeds=1, jobs=2)) == 0
    assert fake.calls[3:] == ["a-far-seed0", "b-far-seed0"] or fake.calls[3:] == ["b-far-seed0", "a-far-seed0"]
    fake.calls.clear()
    write(tmp_path, SMALL.replace("agent.k: 3", "agent.k: 4"))
    command.run(flags(path, out, num_seeds=1))
    assert fake.calls == ["b-near-seed0", "b-far-seed0"]
    page = (out / "study.md").read_text()
    assert f"`myriad study {path} --num_seeds 1`" in page
    assert "method A" in page
    assert "Not run" not in page
    stored = json.loads((out / "study.json").read_text())
    assert stored["results"][0]["hardware"]["cores of the cell"] >= 1
    b = read_result(out / "cells" / "b-near-seed0")
    assert b is not None
    assert b["pretrain"] == {"env_steps": 7, "wall_time": 2.0}


@pytest.mark.parametrize(
    ("old", "new", "rerun"),
    [
        # what a prerequisite is made with counts for all that start from it
        ("max_env_steps: 500", "max_env_steps: 600", ["pre-portfolio-seed0", "b-near-seed0"]),
        ("{success: success}", "{success: success, return: R}", ["a-near-seed0", "b-near-seed0"]),
    ],
)
def test_what_a_result_depends_on_makes_it_stale(
    tmp_path: Path, fake: Fake, old: str, new: str, rerun: list[str]
) -> None:
    path, out = write(tmp_path), tmp_path / "out"
    chosen = flags(path, out, only="near-seed0")
    command.run(chosen)
    assert "out of date" not in (out / "study.md").read_text()
    fake.calls.clear()
    assert old in SMALL
    write(tmp_path, SMALL.replace(old, new))
    command.run(flags(path, out, report_only=True))
    line = f"- out of date: the settings, presets or prerequisites of {len(rerun)} of 3 results"
    page = (out / "study.md").read_text()
    assert line in page
    assert "| method A | 1 |" in page, "results that are out of date are aggregated all the same"
    command.run(chosen)
    assert fake.calls == rerun
    assert "out of date" not in (out / "study.md").read_text()


def test_a_changed_preset_makes_results_stale(tmp_path: Path, fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    path, out = write(tmp_path), tmp_path / "out"
    command.run(flags(path, out, num_seeds=1))
    fake.calls.clear()
    command.run(flags(path, out, num_seeds=1))
    assert fake.calls == []
    load = plan.load_preset

    def changed(group: str, name: str) -> dict[str, Any]:
        return {**load(group, name), "env": {"episode_steps": 77}} if group == "task" else load(group, name)

    monkeypatch.setattr(plan, "load_preset", changed)
    command.run(flags(path, out, num_seeds=1))
    assert len(fake.calls) == 5


def test_a_moved_study_is_not_stale(tmp_path: Path, fake: Fake) -> None:
    path = write(tmp_path)
    command.run(flags(path, tmp_path / "out", num_seeds=1))
    fake.calls.clear()
    (tmp_path / "out").rename(tmp_path / "moved")
    command.run(flags(path, tmp_path / "moved", num_seeds=1))
    assert fake.calls == []


def test_page_names_the_commit(tmp_path: Path, fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    path, out = write(tmp_path), tmp_path / "out"
    monkeypatch.setattr(cells, "git_state", lambda folder: ("abc123", "a difference"))
    command.run(flags(path, out, only="a-near-seed0"))
    monkeypatch.setattr(cells, "git_state", lambda folder: ("def456", ""))
    command.run(flags(path, out, only="a-near-seed1"))
    file = out / "cells" / "a-near-seed2" / "result.json"
    old = json.loads((out / "cells" / "a-near-seed1" / "result.json").read_text())
    del old["git_commit"]
    file.parent.mkdir()
    file.write_text(json.dumps({**old, "id": "a-near-seed2", "seed": 2}))
    command.run(flags(path, out, report_only=True))
    page = (out / "study.md").read_text()
    assert "- git commit: abc123, with uncommitted changes; def456; not recorded" in page
    assert "1 of 3 results" in page


def test_list_and_report_run_nothing(tmp_path: Path, fake: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = write(tmp_path), tmp_path / "out"
    assert command.run(flags(path, out, list=True, scale=0.1)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 15
    assert lines[0].startswith("pre-portfolio-seed0: myriad train --task Myriad-PointMaze-Maze --num_envs 4")
    assert lines[4].endswith("agent.k=3")
    assert "--max_env_steps 100 " in lines[3]
    out.mkdir()
    assert command.run(flags(path, out, report_only=True)) == 0
    assert "Not run" in (out / "study.md").read_text()
    assert fake.calls == []


def test_failed_cells_are_reported_not_hidden_and_tried_again(tmp_path: Path, fake: Fake) -> None:
    path, out = write(tmp_path), tmp_path / "out"
    fake.failing = "a-near-seed1"
    assert command.run(flags(path, out)) == 1
    page = (out / "study.md").read_text()
    assert "## Failed cells" in page
    assert "`a-near-seed1`: RuntimeError: the physics exploded" in page
    assert "| method A | 2 (1 failed) |" in page
    fake.calls.clear()
    fake.failing = "nothing"
    assert command.run(flags(path, out)) == 0
    assert fake.calls == ["a-near-seed1"]
    assert "Failed" not in (out / "study.md").read_text()


def test_a_failed_prerequisite_fails_what_needs_it(tmp_path: Path, fake: Fake) -> None:
    fake.failing = "pre-portfolio-seed0"
    assert command.run(flags(write(tmp_path), tmp_path / "out", num_seeds=1)) == 1
    page = (tmp_path / "out" / "study.md").read_text()
    assert "`b-near-seed0`: the prerequisite pre-portfolio-seed0 has not finished" in page
    assert "`pre-portfolio-seed0`: RuntimeError" in page
    assert fake.calls == ["pre-portfolio-seed0", "a-near-seed0", "a-far-seed0"]


def test_a_dying_subprocess_leaves_its_last_words(tmp_path: Path) -> None:
    with pytest.raises(cells.CellError, match=r"exit status 2(?s:.)*unknown command 'trian'"):
        cells._call(["myriad_lab.cli.main", "trian"], tmp_path, sorted(os.sched_getaffinity(0))[:1], "log")


def test_a_signal_is_named(tmp_path: Path) -> None:
    (tmp_path / "dying.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")
    with pytest.raises(cells.CellError, match=r"exit status -9\n+a signal ended it"):
        cells._call(["dying"], tmp_path, sorted(os.sched_getaffinity(0))[:1], "log")


def test_a_process_that_waits_used_less_of_its_core(tmp_path: Path) -> None:
    (tmp_path / "waiting.py").write_text("import time\ntime.sleep(2.0)\n")
    (tmp_path / "working.py").write_text("import time\nwhile time.process_time() < 0.5: pass\n")
    core = sorted(os.sched_getaffinity(0))[:1]
    waiting, working = (cells._call([name], tmp_path, core, "log") for name in ("waiting", "working"))
    assert 0.0 < waiting < working <= 1.05


def test_cores_are_shared_out() -> None:
    assert cells.split_cores([0, 1, 2, 3], 2) == [[0, 1], [2, 3]]
    assert cells.split_cores([5], 2) == [[5], [5]]
    assert cells.split_cores([0, 1], 1) == [[0, 1]]


def golden(tmp_path: Path) -> tuple[StudyCfg, dict[str, Any]]:
    study = load_study(write(tmp_path))
    curve = [{"env_steps": 10.0 * i, "wall_time": i, "success": i / 4} for i in range(5)]
    results = [result(Cell("a", "near", seed), float(seed), curve) for seed in (0, 1, 2)]
    cost = {"env_steps": 100, "wall_time": 50.0}
    results += [result(Cell("b", "near", seed), seed + 2.0, curve[:2], pretrain=cost) for seed in (0, 1)]
    results.append(result(Cell("b", "near", 2), 0.0, status="failed", error="first\nlast words\n"))
    return study, summarise(study, results)


def test_aggregation_golden(tmp_path: Path) -> None:
    study, summary = golden(tmp_path)
    a, b = summary["rows"][:2]
    assert (a["case"], a["variant"], a["seeds"], a["failed"]) == ("near", "a", [0, 1, 2], [])
    assert a["metrics"]["score"]["mean"] == 1.0
    assert a["metrics"]["score"]["low"] == 0.0
    assert a["metrics"]["score"]["high"] == 2.0
    assert (b["seeds"], b["failed"]) == ([0, 1], [2])
    # paired by seed: both differences are exactly 2, whatever the spread over seeds
    assert b["difference"]["score"] == {"mean": 2.0, "low": 2.0, "high": 2.0, "values": [2.0, 2.0]}
    assert a["difference"] == {}
    assert (a["crossing"]["reached"], a["crossing"]["of"]) == (3, 3)
    assert a["crossing"]["env_steps"]["mean"] == 20.0
    assert (b["crossing"]["reached"], b["crossing"]["of"], b["crossing"]["env_steps"]) == (0, 2, None)
    assert summary["failed"] == [{"id": "b-near-seed2", "error": "first\nlast words\n"}]
    assert "a-far-seed0" in summary["missing"]
    assert len(summary["missing"]) == 6 + 3
    page = to_markdown(study, summary, {"command": "`myriad study small`"}, ["curve.png"])
    assert "| method A | 3 | 1 [0, 2] |" in page
    assert "| b | 2 (1 failed) | +2 [+2, +2] |" in page
    assert "| method A | 3 of 3 | 20 [20, 20] | 2 [2, 2] | 20 [20, 20] | 2 [2, 2] |" in page
    assert "- `b-near-seed2`: last words" in page
    assert "![curve.png](curve.png)" in page
    assert "3 seeds: of so few the interval is the range" in page


def test_one_seed_has_no_interval(tmp_path: Path) -> None:
    study = replace(load_study(write(tmp_path)), seeds=[0])
    summary = summarise(study, [result(Cell("a", "near", 0), 3.0, [])])
    page = to_markdown(study, summary, {}, [])
    assert "| method A | 1 | 3 |" in page
    assert "One seed, so that there are no intervals. Final evaluation" in page


def test_lines_of_many_variants_differ() -> None:
    assert len({line_style(number) for number in range(32)}) == 32


def test_crossing_counts_pretraining(tmp_path: Path) -> None:
    study = load_study(write(tmp_path))
    curve = [{"env_steps": 5.0, "wall_time": 1.0, "success": 0.2}, {"env_steps": 9.0, "wall_time": 3.0, "success": 0.5}]
    assert first_crossing(curve, "success", 0.5) == curve[1]
    assert first_crossing(curve, "success", 0.6) is None
    cost = {"env_steps": 100, "wall_time": 50.0}
    crossing = summarise(study, [result(Cell("b", "near", 0), 1.0, curve, pretrain=cost)])["rows"][1]["crossing"]
    assert crossing["wall_time"]["mean"] == 3.0
    assert crossing["wall_time_included"]["mean"] == 53.0
    assert crossing["env_steps_included"]["mean"] == 109.0


def test_band_of_curves_lies_on_their_common_range() -> None:
    first = [{"t": 0.0, "y": 0.0}, {"t": 10.0, "y": 10.0}]
    second = [{"t": 2.0, "y": 4.0}, {"t": 8.0, "y": 10.0}]
    band = curve_band([first, second], "t", "y", num_points=3)
    assert band is not None
    grid, mean, low, high = band
    np.testing.assert_allclose(grid, [2.0, 5.0, 8.0])
    np.testing.assert_allclose(mean, [3.0, 6.0, 9.0])
    np.testing.assert_allclose(low, [2.0, 5.0, 8.0])
    np.testing.assert_allclose(high, [4.0, 7.0, 10.0])
    shifted = curve_band([first], "t", "y", num_points=2, offsets=[100.0])
    assert shifted is not None
    np.testing.assert_allclose(shifted[0], [100.0, 110.0])
    assert curve_band([[]], "t", "y") is None
    assert curve_band([first[:1], second], "t", "y") is None


TINY = """
title: Tiny
question: Does the whole chain run?
seeds: [0]
budget: {max_env_steps: 160}
flags: {task: Myriad-PointMaze-Maze, num_envs: 8, algorithm: kmyriad}
overrides: &small
  env.episode_steps: 20
  agent.actor.trunk: [8]
  agent.actor.adapter_dim: 8
variants:
  m2: {flags: {num_policies: 2}}
  untrained: {flags: {num_policies: 2}, untrained: true}
evaluation: {kind: exploration, num_envs: 8, pool_size: 64, k: 3}
metrics: {entropy_pool: H, coverage: covered, diversity: diversity, cost/env_steps: env steps}
curves: {Population/entropy_pool: H}
"""

TINY_TASK = """
title: Tiny
question: Does the whole chain run?
seeds: [0]
budget: {max_env_steps: 160}
flags: {task: Myriad-PointMaze-Maze-Goal, num_envs: 8}
prerequisites:
  portfolio:
    flags: {task: Myriad-PointMaze-Maze, num_policies: 2, algorithm: kmyriad}
    overrides: {env.episode_steps: 20, "agent.actor.trunk": [8], agent.actor.adapter_dim: 8}
    budget: {max_env_steps: 160}
cases: {near: {goal_percentile: 5, overrides: {env.episode_steps: 20}}}
variants:
  ppo:
    portfolio: portfolio
    flags: {algorithm: ppo}
    overrides: {agent.num_steps_per_env: 10, agent.runner.save_interval: 1}
evaluation: {kind: task, episodes_per_head: 8, num_checkpoints: 2, curve_episodes: 4}
metrics: {success_best: success, length_mean: length, cost/env_steps: env steps}
curves: {success_best: success}
curve_axes: [env_steps, wall_time]
threshold: 0.5
"""


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path, str], dict[str, Any]]:
    """Run the modules of a cell in this process, and return the summary of a study."""

    def call(call: list[str], folder: Path, cores: list[int], log: str) -> None:
        code = main(call[1:]) if call[0].endswith("main") else study_cell.main(call[1:])
        assert code == 0

    monkeypatch.setattr(cells, "_call", call)

    def run(tmp_path: Path, text: str) -> dict[str, Any]:
        assert command.run(flags(write(tmp_path, text), tmp_path / "out")) == 0
        return json.loads((tmp_path / "out" / "study.json").read_text())

    return run


def test_whole_chain_of_an_exploration_study(tmp_path: Path, in_process: Callable[[Path, str], Any]) -> None:
    summary = in_process(tmp_path, TINY)
    trained, untrained = summary["rows"]
    assert trained["metrics"]["cost/env_steps"]["mean"] == 160
    assert untrained["metrics"]["cost/env_steps"]["mean"] == 0
    for row in (trained, untrained):
        assert 0.0 < row["metrics"]["coverage"]["mean"] < 1.0
    # one iteration on another population: the two cannot agree
    assert trained["metrics"]["entropy_pool"]["mean"] != untrained["metrics"]["entropy_pool"]["mean"]
    assert (tmp_path / "out" / "population_entropy_pool_env_steps.png").stat().st_size > 5000


def test_whole_chain_of_a_finetuning_study(tmp_path: Path, in_process: Callable[[Path, str], Any]) -> None:
    summary = in_process(tmp_path, TINY_TASK)
    (row,) = summary["rows"]
    assert 0.0 <= row["metrics"]["success_best"]["mean"] <= 1.0
    ppo = next(r for r in summary["results"] if r["variant"] == "ppo")
    assert [point["env_steps"] for point in ppo["curve"]] == [0, 80, 160]
    assert ppo["pretrain"]["env_steps"] == 160
    assert ppo["metrics"]["best_head"] == 0
    assert (tmp_path / "out" / "success_best_wall_time_with_pretraining.png").is_file()
