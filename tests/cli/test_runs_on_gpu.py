"""On a CUDA device: train, go on, and evaluate the bundle on a CPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from myriad_lab.cli.main import main

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores"),  # of the compiler
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of the compiler
]

DEVICE = "cuda"
ELSEWHERE = ["agent.runner.mode=parallel", "agent.runner.value_device=cuda", "agent.runner.policy_device=cuda"]
TASK = "Myriad-PointMaze-Maze"
POPULATION = ["--num_policies", "2", "agent.actor.trunk=[8]", "agent.actor.adapter_dim=8"]
PQL = ["agent.batch_size=8", "agent.warmup_steps=4", "agent.critic_warmup=6", "agent.replay_capacity=4096"]
PQL += ["agent.critic.hidden=[8]", "agent.runner.num_steps_per_iteration=12", "agent.noise_repeat=4"]
RUNS = {
    "kmyriad": [TASK, "--algorithm", "kmyriad", *POPULATION, "agent.k=4"],
    "one step of kmyriad": [TASK, "--algorithm", "kmyriad", *POPULATION, "agent=kmyriad_paper", "agent.k=4"],
    "pql": [f"{TASK}-Goal", "--algorithm", "pql", *POPULATION, *PQL],
    "ppo": [f"{TASK}-Goal", "--algorithm", "ppo", "agent.num_steps_per_env=8"],
}

ANY_ORDER = {
    "pql in three processes": [*RUNS["pql"], "--device", DEVICE, "agent.runner.mode=parallel"],
    "pql with collection on a CPU": [*RUNS["pql"], "--device", "cpu", *ELSEWHERE],
    "mujoco_warp": ["Myriad-Ant", "--backend", "mujoco_warp", "--algorithm", "pql", *POPULATION, *PQL],
}


@pytest.fixture(autouse=True)
def back_to_any_order():
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("order", [[], ["--deterministic"]], ids=["any order", "deterministic"])
@pytest.mark.parametrize("name", RUNS)
def test_train_go_on_and_evaluate_elsewhere(name: str, order: list[str], tmp_path: Path) -> None:
    check([*RUNS[name], "--device", DEVICE, *order], tmp_path)


@pytest.mark.parametrize("name", ANY_ORDER)
def test_what_no_order_can_be_asked_of(name: str, tmp_path: Path) -> None:
    check(ANY_ORDER[name], tmp_path)


def check(words: list[str], tmp_path: Path) -> None:
    """Train, go on and evaluate on a CPU."""
    root = ["--runs_root", str(tmp_path), "--logger", "none"]
    words = [*words, "env.episode_steps=10", "--num_envs", "8"]
    assert main(["train", "--task", *words, *root, "--max_iterations", "2"]) == 0
    assert main(["train", "--checkpoint", "latest", *root, "--max_iterations", "3"]) == 0
    report = tmp_path / "report.json"
    evaluation = ["--checkpoint", "latest", "--device", "cpu", "--num_envs", "8", "--episodes", "8"]
    assert main(["evaluate", "--runs_root", str(tmp_path), *evaluation, "--out", str(report)]) == 0
    assert json.loads(report.read_text())["iteration"] == 3
