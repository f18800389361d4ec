"""Both algorithms learn, at small size, what no untrained population does."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest

from myriad_lab.cli.study_cell import evaluate_cell
from myriad_lab.cli.train import train
from myriad_lab.evaluation.study import EvaluationCfg
from myriad_lab.runners.rollout import random_policy, rollout_episodes
from myriad_lab.tasks.registry import make_env

pytestmark = pytest.mark.slow

NETWORK = ["agent.actor.trunk=[32,32]", "agent.actor.adapter_dim=32"]


def measure(runs: Path, cfg: EvaluationCfg, *, untrained: bool, seed: int = 0) -> dict[str, float]:
    request = {"runs": str(runs), "evaluation": asdict(cfg), "untrained": untrained, "seed": seed, "curves": []}
    return evaluate_cell(request)["metrics"]


@pytest.mark.parametrize("seed", [0, 1])
def test_a_population_learns_to_cover_the_maze(tmp_path: Path, seed: int) -> None:
    """Measured: 2.7 nats and a quarter of the cells before, 4.5 nats and three quarters after."""
    flags = {"task": "Myriad-PointMaze-Maze", "algorithm": "kmyriad", "num_envs": 128, "num_policies": 4}
    settings = ["agent.actor.init_log_std=0.5", "agent.k=20", "agent.statistics_interval=10"]
    train(
        {**flags, "seed": seed, "max_iterations": 15, "runs_root": str(tmp_path), "logger": "none"}, NETWORK + settings
    )
    cfg = EvaluationCfg(num_envs=128, pool_size=4096, k=20)
    before = measure(tmp_path, cfg, untrained=True, seed=seed)
    after = measure(tmp_path, cfg, untrained=False, seed=seed)
    assert after["entropy_pool"] > before["entropy_pool"] + 1.0
    assert after["coverage"] > 2.0 * before["coverage"]
    assert after["coverage"] > 0.5
    assert after["diversity"] > before["diversity"] + 0.4, "the heads specialise"


def test_parallel_q_finds_a_near_goal_from_nothing(tmp_path: Path) -> None:
    """Measured: always there after 5 steps; the mean of an untrained policy never is, random actions rarely are."""
    task, goal = "Myriad-PointMaze-Maze-Goal", {"goal": [0.8, -1.8], "episode_steps": 50}
    flags = {"task": task, "algorithm": "pql", "num_envs": 32, "num_policies": 1, "max_iterations": 12, "seed": 0}
    settings = ["agent.critic.hidden=[64,64]", "agent.batch_size=256"]
    settings += ["agent.runner.num_steps_per_iteration=50", "env.goal=[0.8,-1.8]", "env.episode_steps=50"]
    train({**flags, "runs_root": str(tmp_path), "logger": "none"}, NETWORK + settings)
    cfg = EvaluationCfg(kind="task", episodes_per_head=64)
    env = make_env(task, num_envs=256, overrides=goal)
    by_chance = rollout_episodes(env, random_policy(env, 0), 1, 256, features=None, num_obs_rows=0)
    assert by_chance.success is not None
    assert by_chance.success.mean() < 0.4
    assert measure(tmp_path, cfg, untrained=True)["success_best"] < 0.4
    after = measure(tmp_path, cfg, untrained=False)
    assert after["success_best"] > 0.9
    assert after["length_mean"] < 15
