from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from evaluation.test_plots import ARENA, blob
from myriad_lab.errors import CheckpointError
from myriad_lab.evaluation.report import read_run, write_report
from myriad_lab.portfolio.bundle import save_bundle
from myriad_lab.portfolio.recording import save_arrays
from myriad_lab.portfolio.run_folder import RunFolder
from portfolio.helpers import make_actor, make_manifest


def make_run(root: Path, seed: int = 0, num_policies: int = 3) -> RunFolder:
    run = RunFolder.create(root, "maze", f"seed{seed}")
    actor = make_actor(num_policies)
    config = {"env": {"goal_radius": 0.5}, "agent": {"note": "<script>alert(1)</script>"}}
    manifest = make_manifest(actor, 20, arena=ARENA, config=config, env_steps=1_200_000, wall_time=90.0)
    save_bundle(run.checkpoint_path(20), actor, manifest)
    lines = [{"iteration": i, "env_steps": 1000 * i, "Population/coverage": 0.01 * i + seed} for i in range(20)]
    run.metrics_file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    run.write_info({"command": ["myriad train --task <b>"], "seed": seed, "versions": {"torch": "2"}})
    return run


def add_recording(run: RunFolder, name: str = "visits.npz", num_policies: int = 3) -> None:
    points = np.stack([blob(x, -1.0, 400) for x in np.linspace(-3, 3, num_policies)]).astype(np.float32)
    features = points.reshape(num_policies, 4, 100, 2)
    save_arrays(run.recordings / name, {"features": features, "valid": np.ones(features.shape[:3], dtype=bool)})


def add_evaluation(run: RunFolder, num_policies: int = 3) -> None:
    heads = [
        {"head": i, "success": {"mean": 0.1 * i, "low": 0.0, "high": 0.9, "n": 9}, "coverage": 0.2}
        for i in range(num_policies)
    ]
    evaluation = {
        "goal": [2.0, -2.0],
        "task": "Myriad-PointMaze-Maze-Goal",
        "settings": {"text": "As it was."},
        "portfolio": {
            "success": {"mean": 0.5, "low": 0.4, "high": 0.6, "n": 9},
            "coverage": 0.625,
            "reachable_cells": 77,
        },
        "best_head": {"head": 2, "metric": "success", "value": 0.2},
        "held_out_best": {"head": 2, "success": {"mean": 0.75, "low": 0.7, "high": 0.8, "n": 9}},
        "heads": heads,
    }
    run.evaluation_file.write_text(json.dumps(evaluation))


class Outline(HTMLParser):
    """Collects headings, sources, and checks that tags are balanced."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []
        self.headings: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "img"):
            self.open.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)


def read(path: Path) -> tuple[str, Outline]:
    text = path.read_text()
    outline = Outline()
    outline.feed(text)
    assert outline.open == []
    return text, outline


def test_full_page_is_self_contained(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    add_recording(run)
    add_evaluation(run)
    run.videos.mkdir()
    (run.videos / "all_heads.mp4").write_bytes(b"film")
    text, outline = read(write_report(run.path))
    assert outline.headings == [
        "Where the population goes",
        "Video",
        "Learning curves",
        "Head by head",
        "Heads",
        "The run",
    ]
    assert len(outline.sources) == 4
    assert all(source.startswith("data:") for source in outline.sources)
    assert not re.search(r"https?://", text)
    assert "<script" not in text
    assert "62.5 %" in text
    assert "of 77 reachable cells" in text
    assert "75.0 %" in text, "the best head is reported on episodes it was not chosen by"
    assert "head 2, chosen on the other half of the episodes; 70 to 80 %" in text
    assert "2 (best)" in text
    assert "Best: by success over all episodes." in text
    assert "1.2 M" in text
    assert "Evaluated on Myriad-PointMaze-Maze-Goal." in text
    assert "&lt;b&gt;" in text


def test_page_of_a_bare_run(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    _, outline = read(write_report(run.latest(), out=tmp_path / "page.html"))
    assert outline.headings == ["Learning curves", "The run"]
    assert not (run.path / "report.html").exists()


def test_evaluation_recording_comes_before_the_one_of_training(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    add_recording(run)
    assert read_run(run.path).visits_source == "visits.npz"
    add_recording(run, "evaluation_visits.npz")
    assert read_run(run.path).visits_source == "evaluation_visits.npz"


def test_an_evaluation_of_an_older_checkpoint_is_named(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    add_evaluation(run)
    evaluation = json.loads(run.evaluation_file.read_text())
    for checkpoint, named in (("iteration_000020", False), ("iteration_000010", True)):
        run.evaluation_file.write_text(json.dumps({**evaluation, "checkpoint": checkpoint}))
        text, _ = read(write_report(run.path))
        assert ("is iteration_000010; curves and env steps are of iteration_000020" in " ".join(text.split())) == named


def test_map_before_training_is_shown_beside_the_one_after(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    add_recording(run)
    _, outline = read(write_report(run.path))
    add_recording(run, "visits_before.npz")
    text, with_before = read(write_report(run.path))
    assert len(with_before.sources) == len(outline.sources) + 1
    assert "The same before training." in text


def test_other_seeds_become_an_interval(tmp_path: Path) -> None:
    runs = [make_run(tmp_path, seed) for seed in range(3)]
    text, _ = read(write_report(runs[0].path, [runs[1].path, runs[2].path]))
    assert "Mean of 3 seeds with bootstrap 95 % interval" in text


def test_many_heads_are_summarised(tmp_path: Path) -> None:
    run = make_run(tmp_path, num_policies=200)
    add_recording(run, num_policies=200)
    add_evaluation(run, 200)
    text, _ = read(write_report(run.path))
    assert "24 of 200 heads" in text
    assert "The 128 best of 200 heads by success." in text
    assert text.count("<tr>") < 140


def test_contract_is_shown(tmp_path: Path) -> None:
    from myriad_lab.export.policy import export_policy
    from myriad_lab.portfolio.bundle import load_bundle

    run = make_run(tmp_path)
    export_policy(load_bundle(run.latest()), run.export, 1)
    text, outline = read(write_report(run.path))
    assert "Export" in outline.headings
    assert "5 numbers: base_pos 2, joint_vel 3" in text


def test_unreadable_runs_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no run folder"):
        write_report(tmp_path)
    run = make_run(tmp_path)
    run.evaluation_file.write_text("{")
    with pytest.raises(CheckpointError, match=r"evaluation\.json is not readable"):
        write_report(run.path)
