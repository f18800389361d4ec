"""The story: its goal, and that it goes on where it was interrupted."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from myriad_lab.cli import story as story_module
from myriad_lab.cli import train as train_module
from myriad_lab.cli.goal import candidates, choose_goal
from myriad_lab.cli.main import main
from myriad_lab.cli.plan import make_plan
from myriad_lab.cli.story import ANT_STAGES, STAGES, StageCfg, StoryCfg, load_story
from myriad_lab.cli.story_state import StoryState
from myriad_lab.errors import ConfigurationError
from myriad_lab.portfolio.manifest import Manifest
from myriad_lab.portfolio.run_folder import RunFolder
from myriad_lab.runners.callbacks import Callback

GOAL_TASK = "Myriad-PointMaze-Maze-Goal"


def test_candidates_begin_at_the_percentile_and_end_at_the_farthest_cell() -> None:
    assert candidates(80.0) == [80.0, 84.0, 88.0, 92.0, 96.0, 100.0]
    assert candidates(93.0) == [93.0, 97.0, 100.0]
    assert candidates(100.0) == [100.0]


def test_a_goal_is_chosen_on_the_map_of_the_run() -> None:
    flags = {"task": GOAL_TASK, "algorithm": "pql", "num_envs": 8}
    plans = [make_plan(flags, ["env.episode_steps=5", f"env.arena_scale={scale}"]) for scale in (0.4, 0.8)]
    small, large = (choose_goal(plan, percentile=60.0, episodes=4) for plan in plans)
    assert (small.percentile, small.random_episodes) == (60.0, 4)
    assert large.goal == plans[1].env.task.arena.far_goal(60.0)
    assert large.goal != small.goal


def test_a_goal_that_chance_meets_is_moved_farther() -> None:
    plan = make_plan({"task": GOAL_TASK, "algorithm": "pql", "num_envs": 8}, ["env.episode_steps=60"])
    chosen = choose_goal(plan, percentile=1.0, episodes=64)
    assert chosen.percentile > 1.0
    assert chosen.percentile in candidates(1.0)


@pytest.mark.parametrize("percentile", [0.0, -3.0, 100.5, float("nan")])
def test_a_goal_percentile_out_of_range(percentile: float, monkeypatch: pytest.MonkeyPatch) -> None:
    from myriad_lab.cli import configuration

    preset: dict[str, Any] = {"goal_percentile": percentile}
    monkeypatch.setattr(configuration, "read_preset", lambda group, name: preset)
    with pytest.raises(ConfigurationError, match=r"goal_percentile=.*expected a number in \(0, 100\]"):
        load_story("point")


def test_shipped_stories() -> None:
    assert {name: load_story(name).goal_percentile for name in ("point", "ant", "quick")} == {
        "point": 80.0,
        "ant": 30.0,
        "quick": 80.0,
    }


class CtrlC(Callback):
    """Sends this process the signal of Ctrl-C in the first iteration of finetuning."""

    def on_iteration(self, runner: Any, metrics: dict[str, float]) -> None:
        if "finetune" in runner.run_folder.path.name and runner.iteration == 0:
            os.kill(os.getpid(), signal.SIGINT)


def runs_of(root: Path) -> dict[str, RunFolder]:
    """Return stage -> its run; each must have been trained in one folder."""
    runs = [RunFolder(path) for path in root.iterdir() if path.is_dir()]
    stages = {run.path.name.split("_")[2].split("-")[0]: run for run in runs}
    assert len(stages) == len(runs)
    return stages


def test_an_interrupted_story_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "runs/story_quick"
    with monkeypatch.context() as patched:
        patched.setattr(train_module, "_videos", lambda plan: [CtrlC()])
        assert main(["story", "quick"]) == 130
    assert "interrupted; what was done is saved" in capsys.readouterr().out
    assert list(json.loads((root / "story.json").read_text())) == ["pretrain", "explorers", "goal"]
    assert [len(run.read_metrics()) for run in runs_of(root).values()].count(1) == 1
    # As if it had been killed after the last checkpoint of finetuning, before the run was marked as finished.
    before = runs_of(root)["finetune"]
    train_module.train({"checkpoint": str(before.path)})
    before.write_info({"finished": False})
    marks = {name: run.latest().stat().st_mtime_ns for name, run in runs_of(root).items()}

    assert main(["story", "quick"]) == 0
    told = capsys.readouterr().out
    assert [told.count(f"[{place}/10]") for place in range(1, 11)] == [1] * 3 + [2] * 7
    assert told.count("done before") == 3
    assert "percentile 80 of geodesic distance" in told
    assert list(json.loads((root / "story.json").read_text())) == [*STAGES, *ANT_STAGES]
    runs = runs_of(root)
    assert set(runs) == {"pretrain", "finetune", "ant"}
    assert {name: runs[name].latest().stat().st_mtime_ns for name in marks} == marks
    for run in runs.values():
        assert run.read_info()["finished"]
        assert (run.path / "report.html").stat().st_size > 10_000
        assert list(run.videos.glob("*.mp4"))
    assert (runs["finetune"].export / "policy.onnx").is_file()


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("budget", [{"max_iterations": 2}, {"max_iterations": 50, "max_seconds": 1e-3}])
def test_a_training_killed_at_its_very_end_is_not_done_again(
    budget: dict[str, float], finished: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path("runs/story_quick")
    quick = load_story("quick").pretrain
    cfg = StageCfg(quick.preset, {**quick.flags, **budget}, quick.overrides)
    first = story_module._train(StoryState(root, ["pretrain"]), "pretrain", "", cfg)
    RunFolder(first["folder"]).write_info({"finished": finished})
    (root / "story.json").unlink()
    monkeypatch.setattr(train_module, "_learn", lambda *arguments: pytest.fail("it was trained again"))
    again = story_module._train(StoryState(root, ["pretrain"]), "pretrain", "", cfg)
    assert again == first
    assert RunFolder(first["folder"]).read_info()["finished"]


def test_a_fresh_story_begins_in_an_empty_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "runs/story_quick"
    (root / "a_run").mkdir(parents=True)
    monkeypatch.setattr(story_module, "story", lambda cfg, root: [str(root.exists())])
    assert main(["story", "quick", "--fresh"]) == 0
    assert capsys.readouterr().out.endswith("False\n")
    (aside,) = (tmp_path / "runs").iterdir()
    assert aside.name.startswith("story_quick_until_")
    assert (aside / "a_run").is_dir()
    assert main(["story", "quikc", "--fresh"]) == 2
    assert "there is no preset story=quikc. Did you mean quick" in capsys.readouterr().err


def test_a_larger_story_is_cut_to_size() -> None:
    from myriad_lab.cli.story_sizes import resized

    given = {"num_envs": 65_536, "backend": "mujoco_warp", "device": "cpu"}
    ant = resized(load_story("ant"), given)
    for stage in (ant.pretrain, ant.finetune):
        assert given.items() <= stage.flags.items()
    assert ant.pretrain.overrides == ["agent.num_minibatches=19"]  # 65536 * 300 rows, a million each
    assert ant.finetune.overrides == ["agent.replay_capacity=8388608", "agent.batch_size=8192"]
    assert ant.device == "cpu"
    point = resized(load_story("point"), {"num_envs": 16_384})
    assert point.pretrain.overrides == []
    assert point.finetune.overrides == ["agent.replay_capacity=2097152", "agent.batch_size=512"]
    assert not point.ant.preset
    with pytest.raises(ConfigurationError, match="no backend 'mujoco_warp'"):
        resized(load_story("point"), {"backend": "mujoco_warp"})


def test_a_story_with_flags_has_a_folder_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["story", "quick", "--num_envs", "32", "--max_iterations", "1"]) == 0
    told = capsys.readouterr().out
    root = Path("runs/story_quick_32_1")
    assert list(json.loads((root / "story.json").read_text())) == list(STAGES)
    assert {Manifest.load(run.latest()).env_steps for run in runs_of(root).values()} == {32 * 20}
    ahead, _, trainings = told.partition("[1/")
    for stage in ("pretrain", "finetune"):  # both are told before the first begins, and each as it begins
        assert f"{stage}: memory for 32 envs on cpu" in ahead
    assert trainings.count("memory for 32 envs on cpu") == 2
    assert main(["story", "quick", "--device", "cuda:77"]) == 2
    assert "cuda:77" in capsys.readouterr().err


@pytest.mark.slow
def test_the_story_of_the_ant_on_mujoco_warp(capsys: pytest.CaptureFixture[str]) -> None:
    """Every stage at the smallest size; on a CPU it is the kernels that take their time, not the robots."""
    from myriad_lab.cli.story_sizes import resized

    tiny = ["env.episode_steps=6", "agent.runner.nan_guard_interval=0"]
    short = ["agent.runner.num_steps_per_iteration=8", "agent.warmup_steps=2"]
    cfg = StoryCfg(
        pretrain=StageCfg("antmaze", {"num_policies": 2, "logger": "none"}, [*tiny, "agent.k=2"]),
        finetune=StageCfg("antmaze_goal", {"logger": "none"}, [*tiny, *short]),
        goal_percentile=90.0,
        random_episodes=2,
        evaluation_episodes=2,
        evaluation_pool=16,
    )
    root = Path("runs/story_ant_mujoco_warp")
    given = {"backend": "mujoco_warp", "device": "cpu", "num_envs": 16, "max_iterations": 1}
    lines = story_module.story(resized(cfg, given), root)
    assert "2 policies, 96 env steps" in "\n".join(lines)
    runs = runs_of(root)
    assert {Manifest.load(run.latest()).backend for run in runs.values()} == {"mujoco_warp"}
    assert "simulator" in capsys.readouterr().out
    assert (runs["finetune"].export / "scene.xml").is_file()
