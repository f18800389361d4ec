"""Going on with a run through the command line: the same as never having stopped."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from myriad_lab.cli.main import main
from myriad_lab.cli.train import train
from myriad_lab.portfolio.bundle import load_bundle
from myriad_lab.portfolio.manifest import Manifest
from myriad_lab.portfolio.run_folder import RunFolder
from myriad_lab.runners.callbacks import Callback
from myriad_lab.runners.population_runner import PopulationRunner

TASK = "Myriad-PointMaze-Maze"
FLAGS: dict[str, Any] = {"task": TASK, "num_envs": 8, "num_policies": 2, "logger": "none"}
SHORT = ["env.episode_steps=10", "agent.runner.save_interval=2"]
KMYRIAD = [*SHORT, "agent.k=4"]
SMALL = [*KMYRIAD, "agent.actor.trunk=[8]", "agent.actor.adapter_dim=8"]
PQL = [*SHORT, "agent.batch_size=8", "agent.warmup_steps=4", "agent.critic_warmup=6", "agent.replay_capacity=4096"]
PQL += ["agent.critic.hidden=[8]", "agent.runner.num_steps_per_iteration=12", "agent.runner.save_replay=true"]
PRIOR = [*PQL, "agent.prior_fraction=0.5", "agent.prior_bootstrap=true", "agent.prior_weight=0.1"]
HALVED = [*PRIOR, "agent.runner.halving_iterations=[1]", "env.goal=[-0.8,-0.3]", "env.goal_radius=0.4"]
PPO = [*SHORT, "agent.num_steps_per_env=8", "agent.critic_hidden_dims=[8]"]


@pytest.fixture(scope="module")
def portfolio(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the folder of explorers whose networks are smaller than any preset's."""
    root = str(tmp_path_factory.mktemp("portfolio"))
    return str(train({**FLAGS, "max_iterations": 1, "runs_root": root}, SMALL).folder)


SCALED_BY_HAND = "agent.normalize_returns=false"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return the folders of runs of two iterations, by algorithm."""
    root = str(tmp_path_factory.mktemp("finished"))
    small = ["agent.actor.trunk=[8]", "agent.actor.adapter_dim=8"]
    overrides = {"kmyriad": SMALL, "pql": [*PQL, *small, SCALED_BY_HAND], "ppo": [*PPO, "agent.actor_hidden_dims=[8]"]}
    flags = {"num_envs": 8, "logger": "none", "max_iterations": 2, "runs_root": root}
    tasks = {"kmyriad": {"task": TASK, "num_policies": 2}, "pql": {"task": f"{TASK}-Goal", "num_policies": 2}}
    return {
        name: train({**flags, "algorithm": name, **tasks.get(name, {"task": f"{TASK}-Goal"})}, words).folder
        for name, words in overrides.items()
    }


def assert_same_state(first: Any, second: Any, where: str = "") -> None:
    assert type(first) is type(second), where
    if isinstance(first, dict):
        assert first.keys() == second.keys(), where
        for key in first:
            assert_same_state(first[key], second[key], f"{where}.{key}")
    elif isinstance(first, list | tuple):
        assert len(first) == len(second), where
        for i, (ours, theirs) in enumerate(zip(first, second, strict=True)):
            assert_same_state(ours, theirs, f"{where}[{i}]")
    elif isinstance(first, torch.Tensor):
        assert torch.equal(first.nan_to_num(nan=-7.0), second.nan_to_num(nan=-7.0)), where
    elif "wall_time" not in where:
        assert first == second, where


@pytest.mark.parametrize(
    ("algorithm", "overrides"),
    [("kmyriad", KMYRIAD), ("pql", PQL), ("pql", PRIOR), ("pql", HALVED), ("ppo", PPO)],
    ids=["kmyriad", "pql", "prior", "halved", "ppo"],
)
def test_a_resumed_run_from_a_portfolio_equals_one_that_went_through(
    portfolio: str, algorithm: str, overrides: list[str]
) -> None:
    task = TASK if algorithm == "kmyriad" else f"{TASK}-Goal"
    flags = {"task": task, "algorithm": algorithm, "num_envs": 8, "logger": "none", "portfolio": portfolio}
    whole = train({**flags, "max_iterations": 4, "run_name": "whole"}, overrides)
    half = train({**flags, "max_iterations": 2, "run_name": "half"}, overrides)
    torch.rand(7)  # the global generators have moved on meanwhile
    resumed = train({"checkpoint": str(half.folder), "max_iterations": 4})
    ours, theirs = (load_bundle(result.checkpoint) for result in (whole, resumed))
    assert ours.actor.cfg == theirs.actor.cfg
    assert ours.actor.cfg.trunk == [8]
    assert ours.manifest.num_policies == (1 if algorithm == "ppo" or overrides is HALVED else 2)
    assert_same_state(ours.load_train_state(), theirs.load_train_state())
    assert ours.has_replay == theirs.has_replay == (algorithm == "pql")
    if ours.has_replay:
        assert_same_state(ours.load_replay(), theirs.load_replay())
        assert "prior" in theirs.load_train_state()["algorithm"]
    assert theirs.manifest.parent == ours.manifest.parent
    assert RunFolder(resumed.folder).read_info()["portfolio"] == ours.manifest.parent


class SignalInIteration(Callback):
    """Sends this process a signal at the end of an iteration, before it is saved."""

    def __init__(self, iteration: int) -> None:
        self.iteration = iteration

    def on_iteration(self, runner: Any, metrics: dict[str, float]) -> None:
        if runner.iteration + 1 == self.iteration:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("asked", [{"max_iterations": 2}, {"max_iterations": 9, "max_env_steps": 160}])
def test_a_signal_in_the_last_iteration_interrupts_nothing(asked: dict[str, int]) -> None:
    result = train({**FLAGS, **asked}, SMALL, callbacks=[SignalInIteration(2)])
    assert (result.iteration, result.interrupted) == (2, False)
    assert RunFolder(result.folder).read_info()["finished"]


@pytest.mark.parametrize(
    "asked", [{"max_iterations": 2}, {"max_iterations": 9, "max_env_steps": 160}, {"max_seconds": 1e-3}]
)
def test_going_on_with_a_run_that_was_killed_at_its_very_end_finishes_it(
    asked: dict[str, int], capsys: pytest.CaptureFixture[str]
) -> None:
    first = train({**FLAGS, **asked}, SMALL)
    folder = RunFolder(first.folder)
    result_file = folder.path / "result.json"
    told = json.loads(result_file.read_text())
    result_file.unlink()
    folder.write_info({"finished": False})
    again = train({"checkpoint": str(first.folder)})
    assert again.done_before
    assert not again.interrupted
    assert (again.iteration, again.env_steps) == (first.iteration, first.env_steps)
    assert again.checkpoint == first.checkpoint.resolve()
    assert folder.read_info()["finished"]
    assert json.loads(result_file.read_text()) == told
    info = folder.read_info()
    capsys.readouterr()
    assert main(["train", "--checkpoint", str(first.folder)]) == 0
    assert "the run was done before" in capsys.readouterr().out
    assert folder.read_info() == info
    assert len(folder.list_checkpoints()) == 1


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("algorithm", "asked", "says"),
    [
        ("kmyriad", ["--max_iterations", "1"], ["has done 2 of max_iterations=1"]),
        ("kmyriad", ["--num_envs", "16"], ["num_envs: 8 in the bundle, 16 asked for"]),
        ("kmyriad", ["--num_policies", "4"], ["num_policies: 2 in the bundle, 4 asked for", "--portfolio"]),
        ("kmyriad", ["--algorithm", "pql"], ["algorithm: kmyriad in the bundle, pql asked for"]),
        ("kmyriad", ["--task", "Myriad-AntMaze-Maze"], [f"task: {TASK} in the bundle, Myriad-AntMaze-Maze asked for"]),
        ("kmyriad", ["env.episode_steps=12"], ["max_episode_length: 10 in the bundle, 12 in the env"]),
        ("kmyriad", ["env.arena=cave"], ["env.arena=cave", "has maze and keeps its map"]),
        ("kmyriad", ["env.arena_scale=0.8"], ["env.arena_scale=0.8", "has 0.4 and keeps its map"]),
        ("pql", ["env.goal=[1.0,3.7]"], ["env.goal=[1.0, 3.7]", "has None and keeps its map and its goal"]),
        ("kmyriad", ["--seed", "3"], ["--seed 3", "with seed=0; leave it out"]),
        ("kmyriad", ["--runs_root", "elsewhere"], ["--runs_root elsewhere", "goes on where and as it began"]),
        ("kmyriad", ["--experiment_name", "other"], ["--experiment_name other"]),
        ("kmyriad", ["--run_name", "other"], ["--run_name other", "run_name=''"]),
        ("kmyriad", ["agent.actor.trunk=[16]"], ["agent.actor.trunk=[16]", "has [8] and keeps its networks"]),
        ("kmyriad", ["--device", "cuda:0"], ["--device cuda:0", "was trained on cpu", "--portfolio"]),
        (
            "pql",
            ["agent.normalize_returns=true"],
            ["agent.normalize_returns=True", "has False and critics"],
        ),
        ("kmyriad", ["--logger", "wandb"], ["needs the package wandb"]),
        ("pql", ["agent.critic.hidden=[16]"], ["agent.critic.hidden=[16]", "has [8] and keeps its networks"]),
        ("pql", ["agent.critic.activation=tanh"], ["agent.critic.activation=tanh", "has relu and keeps its networks"]),
        ("pql", ["--seeding", "best"], ["--seeding best", "began with --seeding all", "leave it out"]),
        ("pql", ["agent.replay_capacity=80"], ["replay memory"]),
        ("pql", ["--num_envs", "16"], ["num_envs: 8 in the bundle, 16 asked for"]),
        ("pql", ["agent.prior_fraction=0.5"], ["prior_fraction=0.5", "portfolio"]),
        ("ppo", ["agent.critic_hidden_dims=[16]"], ["agent.critic_hidden_dims=[16]", "keeps its networks"]),
        ("ppo", ["agent.activation=tanh"], ["agent.activation=tanh", "has elu and keeps its networks"]),
        ("ppo", ["agent.actor_hidden_dims=[16]"], ["agent.actor_hidden_dims=[16]", "keeps its networks"]),
    ],
)
def test_a_refused_resume_leaves_the_run_as_it_was(
    finished: dict[str, Path],
    algorithm: str,
    asked: list[str],
    says: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # as where it is not installed
    folder = finished[algorithm]
    before = contents(folder)
    last = [] if "--max_iterations" in asked else ["--max_iterations", "4"]
    assert main(["train", "--checkpoint", str(folder), *last, *asked]) == 2
    line = capsys.readouterr().err
    assert "Traceback" not in line
    assert all(text in line for text in says), line
    assert contents(folder) == before


def test_the_least_noise_of_a_head_may_change_when_it_goes_on(portfolio: str, tmp_path: Path) -> None:
    flags = {"task": f"{TASK}-Goal", "algorithm": "ppo", "num_envs": 8, "logger": "none", "runs_root": str(tmp_path)}
    folder = train({**flags, "portfolio": portfolio, "max_iterations": 1}, [*PPO, "env.goal=[-0.8,-0.3]"]).folder
    result = train({"checkpoint": str(folder), "max_iterations": 2}, ["agent.min_log_std=-0.5"])
    assert Manifest.load(result.checkpoint).config["agent"]["min_log_std"] == -0.5


def test_what_is_given_again_is_no_other_setting(finished: dict[str, Path]) -> None:
    folder = finished["kmyriad"]
    same = {
        "seed": 0,
        "seeding": "all",
        "runs_root": str(folder.parents[1]),
        "experiment_name": folder.parent.name,
        "run_name": "",
    }
    assert train({**same, "checkpoint": str(folder)}, ["env.arena=maze", "env.arena_scale=0.4"]).done_before


@pytest.mark.parametrize("name", ["weights.pt", "train_state.pt", "replay/replay.pt"])
def test_a_resume_from_a_cut_file_leaves_the_run_as_it_was(
    finished: dict[str, Path], name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(finished["pql"], folder)
    (file,) = folder.glob(f"checkpoints/*/{name}")
    file.write_bytes(file.read_bytes()[:-100])
    before = contents(folder)
    assert main(["train", "--checkpoint", str(folder), "--max_iterations", "4"]) == 2
    assert f"{name} is truncated" in capsys.readouterr().err
    assert contents(folder) == before


def test_the_best_bundle_that_a_kill_left_unmarked_is_marked_by_a_resume(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PopulationRunner, "_score", lambda self: 1.0 / self.iteration)
    every = [*SMALL, "agent.runner.save_interval=1"]
    folder = RunFolder(train({**FLAGS, "max_iterations": 1}, every).folder)
    best = folder.checkpoints / "best.json"
    best.unlink()  # as if the kill had come before it was written
    train({"checkpoint": str(folder.path), "max_iterations": 2})
    assert json.loads(best.read_text())["name"] == "iteration_000001"


def test_going_on_from_an_older_bundle_sets_what_came_after_it_aside(caplog: pytest.LogCaptureFixture) -> None:
    every = [*SMALL, "agent.runner.save_interval=1", "agent.runner.keep_checkpoints=2"]
    folder = RunFolder(train({**FLAGS, "max_iterations": 4}, every).folder)
    folder.mark_best("iteration_000004")
    folder.evaluation_file.write_text(json.dumps({"checkpoint": "iteration_000004"}))
    older = folder.checkpoint_path(3)
    whole = contents(folder.checkpoint_path(4))

    resumed = train({"checkpoint": str(older), "max_iterations": 5}, ["agent.learning_rate=0.01"])

    assert "after iteration 3 is in" in caplog.text
    abandoned = folder.path / "abandoned/1"
    assert contents(abandoned / "iteration_000004") == whole
    assert {path.name for path in abandoned.iterdir()} == {
        "iteration_000004", "best.json", "evaluation.json", "metrics.jsonl"
    }  # fmt: skip
    assert not folder.evaluation_file.exists()
    assert len((abandoned / "metrics.jsonl").read_text().splitlines()) == 4
    assert folder.latest().resolve() == resumed.checkpoint.resolve() == folder.checkpoint_path(5).resolve()
    assert Manifest.load(folder.checkpoint_path(4)).config["agent"]["learning_rate"] == 0.01
    assert folder.best() in folder.list_checkpoints()

    again = train({"checkpoint": str(folder.path), "max_iterations": 6})
    assert again.iteration == 6
    assert [path.name for path in (folder.path / "abandoned").iterdir()] == ["1"]
