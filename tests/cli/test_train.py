"""Training through the command line, at the smallest size."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from myriad_lab.cli.main import main
from myriad_lab.cli.plan import make_plan
from myriad_lab.cli.train import train
from myriad_lab.portfolio.bundle import load_bundle
from myriad_lab.portfolio.manifest import Manifest
from myriad_lab.portfolio.run_folder import RunFolder
from myriad_lab.runners.callbacks import Callback

TASK = "Myriad-PointMaze-Maze"
FLAGS: dict[str, Any] = {"task": TASK, "num_envs": 8, "num_policies": 2, "logger": "none"}
NETWORK = ["agent.actor.trunk=[8]", "agent.actor.adapter_dim=8", "env.episode_steps=10"]
TINY = [*NETWORK, "agent.k=4"]
TINY_PQL = [*NETWORK, "agent.batch_size=8", "agent.warmup_steps=4", "agent.replay_capacity=4096"]
TINY_PQL += ["agent.critic.hidden=[8]", "agent.runner.num_steps_per_iteration=12"]


def weights(bundle: Path) -> dict[str, torch.Tensor]:
    return load_bundle(bundle).actor.state_dict()


def assert_equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_too_few_particles_for_the_entropy_of_a_head_are_told_once(caplog: pytest.LogCaptureFixture) -> None:
    train({**FLAGS, "max_iterations": 1}, [*NETWORK, "agent.k=40", "agent.particle_stride=1"])
    assert caplog.text.count("k=40 is not below the 40 particles of a head") == 1


def test_a_run_leaves_a_folder_that_explains_itself() -> None:
    result = train({**FLAGS, "max_iterations": 2, "run_name": "first", "seed": 3}, TINY)
    folder = RunFolder(result.folder)
    assert result.folder.parent == Path("runs/myriad-pointmaze-maze_kmyriad")
    assert result.folder.name.endswith("_first")
    assert (result.iteration, result.env_steps, result.interrupted) == (2, 2 * 8 * 10, False)
    info = folder.read_info()
    assert (info["task"], info["backend"], info["seed"], info["finished"]) == (TASK, "torch", 3, True)
    assert info["hardware"]["cpu"]
    assert info["versions"]["torch"] == torch.__version__
    assert "episode_steps: 10" in (result.folder / "config/env.yaml").read_text()
    assert "k: 4" in (result.folder / "config/agent.yaml").read_text()
    assert "max_iterations: 2" in (result.folder / "config/run.yaml").read_text()
    rows = folder.read_metrics()
    assert [row["iteration"] for row in rows] == [0, 1]
    assert rows[-1]["env_steps"] == 160
    manifest = Manifest.load(result.checkpoint)
    assert manifest.config["env"]["episode_steps"] == 10
    assert manifest.backend == "torch"
    assert json.loads((result.folder / "result.json").read_text())["iteration"] == 2


def test_flags_beat_presets_and_presets_beat_defaults() -> None:
    plan = make_plan({"num_envs": 64, "seed": 7}, ["experiment=pointmaze", "agent.actor.adapter_dim=16"])
    assert (plan.run.task, plan.run.algorithm, plan.run.seed) == (TASK, "kmyriad", 7)
    assert (plan.run.num_envs, plan.run.num_policies) == (64, 16)
    assert plan.agent_cfg.actor.adapter_dim == 16
    assert plan.agent_cfg.actor.trunk == [64, 64]
    assert plan.agent_cfg.runner.save_interval == 25
    assert plan.env.values == {}


def test_a_resumed_run_equals_one_that_went_through() -> None:
    whole = train({**FLAGS, "max_iterations": 4, "run_name": "whole"}, TINY)
    half = train({**FLAGS, "max_iterations": 2, "run_name": "half"}, TINY)
    resumed = train({"checkpoint": str(half.folder), "max_iterations": 4})
    assert resumed.folder.resolve() == half.folder.resolve()
    assert (resumed.iteration, resumed.env_steps) == (4, whole.env_steps)
    assert_equal(weights(whole.checkpoint), weights(resumed.checkpoint))
    assert [row["iteration"] for row in RunFolder(resumed.folder).read_metrics()] == [0, 1, 2, 3]
    assert len(RunFolder(resumed.folder).read_info()["command"]) == 2


def test_the_seed_decides() -> None:
    first, again, other = [train({**FLAGS, "max_iterations": 1, "seed": s}, TINY) for s in (1, 1, 2)]
    assert_equal(weights(first.checkpoint), weights(again.checkpoint))
    name = next(iter(weights(first.checkpoint)))
    assert not torch.equal(weights(first.checkpoint)[name], weights(other.checkpoint)[name])


def test_a_portfolio_starts_every_algorithm() -> None:
    parent = train({**FLAGS, "max_iterations": 1}, TINY)
    goal = {"task": f"{TASK}-Goal", "num_envs": 8, "logger": "none", "max_iterations": 1, "portfolio": "latest"}
    tuned = train({**goal, "algorithm": "pql"}, TINY_PQL)
    manifest = Manifest.load(tuned.checkpoint)
    assert (manifest.algorithm, manifest.num_policies) == ("pql", 2)
    assert manifest.parent is not None
    assert Path(manifest.parent).resolve() == parent.checkpoint.resolve()
    best = train({**goal, "algorithm": "pql", "seeding": "best", "num_policies": 4}, TINY_PQL)
    assert Manifest.load(best.checkpoint).num_policies == 4
    head = train({**goal, "algorithm": "ppo", "portfolio": str(parent.folder)}, ["env.episode_steps=10"])
    assert Manifest.load(head.checkpoint).num_policies == 1


def test_the_choice_of_heads_is_told_and_its_env_steps_are_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    parent = train({**FLAGS, "max_iterations": 1}, TINY)
    goal = {"task": f"{TASK}-Goal", "num_envs": 8, "logger": "none", "max_iterations": 1}
    flags = {**goal, "algorithm": "pql", "seeding": "best", "portfolio": str(parent.folder)}
    caplog.set_level("INFO")
    info = RunFolder(train(flags, TINY_PQL).folder).read_info()  # no head reaches the far goal in 10 steps
    assert (info["seeding_heads"], info["seeding_scores"]) == ([0], [0.0, 0.0])
    assert info["seeding_env_steps"] == 2 * 32 * 10
    assert f"Starts from {parent.checkpoint} (kmyriad, 2 heads, iteration 1)" in caplog.text
    assert "that start: 0 (0)" in caplog.text
    assert "All 2 heads of the portfolio have the zero-shot return 0: the choice is arbitrary" in caplog.text
    caplog.clear()
    every = RunFolder(train({**flags, "seeding": "all"}, TINY_PQL).folder).read_info()
    assert (every["seeding_heads"], every["seeding_env_steps"]) == ([0, 1], 0)
    assert "zero-shot" not in caplog.text


def test_halving_is_spread_over_the_first_half() -> None:
    train({**FLAGS, "num_policies": 8, "max_iterations": 1}, TINY)
    flags = {"task": f"{TASK}-Goal", "algorithm": "pql", "num_envs": 8, "portfolio": "latest", "max_iterations": 60}
    plan = make_plan({**flags, "seeding": "halving"}, TINY_PQL)
    assert plan.run.num_policies == 8
    assert plan.agent_cfg.runner.halving_iterations == [10, 20, 30]


@pytest.mark.parametrize("budget", [{"max_env_steps": 160}, {"max_seconds": 1e-3}])
def test_budgets_end_a_run(budget: dict[str, float]) -> None:
    result = train({**FLAGS, "max_iterations": 50, **budget}, TINY)
    assert result.iteration == (2 if "max_env_steps" in budget else 1)
    assert not result.interrupted


class Signal(Callback):
    """Sends this process a signal in the middle of an iteration, as Ctrl-C does."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.steps = 0

    def on_step(self, runner: Any, step: Any) -> None:
        self.steps += 1
        if self.steps == 15:
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_iteration_and_saves(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(number)
    result = train({**FLAGS, "max_iterations": 5}, TINY, callbacks=[Signal(number)])
    assert (result.interrupted, result.iteration) == (True, 2)
    assert signal.getsignal(number) is before
    assert not RunFolder(result.folder).read_info()["finished"]
    assert "the iteration is finished and saved first" in capsys.readouterr().err
    resumed = train({"checkpoint": "latest"})
    assert (resumed.iteration, resumed.interrupted) == (5, False)
    whole = train({**FLAGS, "max_iterations": 5, "run_name": "whole"}, TINY)
    assert_equal(weights(whole.checkpoint), weights(resumed.checkpoint))


def test_ctrl_c_from_outside_says_how_to_go_on(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "myriad_lab.cli.main", "train", "--task", TASK, "--num_envs", "8"]
    command += ["--num_policies", "2", "--logger", "none", "--max_iterations", "100000", *TINY]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob("runs/*/*/metrics.jsonl")) and time.monotonic() < deadline:
            time.sleep(0.1)
        while not next(tmp_path.glob("runs/*/*/metrics.jsonl")).read_text() and time.monotonic() < deadline:
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    (folder,) = tmp_path.glob("runs/*/*")
    assert f"go on with: myriad train --checkpoint {folder.relative_to(tmp_path)}" in out
    assert RunFolder(folder).list_checkpoints()


def test_the_command_prints_where_things_are(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--task", TASK, "--num_envs", "8", "--num_policies", "2", "--max_iterations", "1", "--logger", "none"]
    assert main(["train", *arguments, *TINY]) == 0
    out = capsys.readouterr().out
    assert "1 iterations, 80 env steps" in out
    assert "run folder: runs/myriad-pointmaze-maze_kmyriad/" in out
