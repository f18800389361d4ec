"""The commands on the real Isaac Lab: pre-train, finetune, resume, evaluate, play, export, and from sim to sim."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from myriad_lab.cli.main import main
from myriad_lab.portfolio.run_folder import RunFolder, list_runs

pytestmark = pytest.mark.isaaclab
ENGINES = ("newton_mjwarp", "ovphysx")
SMALL = ["--num_envs", "8", "--num_policies", "2", "--logger", "none"]
TINY = ["agent.actor.trunk=[16]", "agent.actor.adapter_dim=8", "agent.k=3"]
LEARNER = ["agent.warmup_steps=4", "agent.critic_warmup=2", "agent.replay_capacity=4096", "agent.critic.hidden=[16]"]
MAZE, ANT = "Myriad-AntMaze-Maze", "Isaac-Ant-Direct"
LENGTH = {MAZE: "env.episode_steps=20", f"{MAZE}-Goal": "env.episode_steps=20", ANT: "env.episode_length_s=0.325"}
"""Task -> what makes its episodes 20 steps long."""


def myriad(*arguments: str) -> None:
    assert main(list(arguments)) == 0


def train(root: Path, task: str, engine: str, *arguments: str) -> RunFolder:
    place = ["--backend", "isaaclab", f"physics={engine}", LENGTH[task], "--runs_root", str(root)]
    myriad("train", "--task", task, *SMALL, *place, *arguments)
    return list_runs(root)[-1]


@pytest.fixture(scope="module", params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module", params=[MAZE, ANT])
def portfolio(request: pytest.FixtureRequest, engine: str, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """Return a run of two iterations of K-Myriad."""
    root = tmp_path_factory.mktemp(engine)
    return train(root, request.param, engine, "--algorithm", "kmyriad", "--max_iterations", "2", *TINY)


def test_a_portfolio_is_trained_and_goes_on(portfolio: RunFolder, engine: str):
    info = portfolio.read_info()
    assert (info["backend"], info["finished"], info["versions"]["isaaclab"]) == ("isaaclab", True, "3.0.0")
    config = (portfolio.path / "config" / "isaaclab_env.yaml").read_text()
    assert "episode_length_s" in config
    assert engine in (portfolio.path / "config" / "isaaclab.yaml").read_text()
    myriad("train", "--checkpoint", str(portfolio.path), "--max_iterations", "3")
    assert portfolio.latest().name == "iteration_000003"
    metrics = portfolio.read_metrics()[-1]
    assert math.isfinite(metrics["Population/entropy_pool"])


def test_it_is_finetuned_played_and_exported(portfolio: RunFolder, engine: str, tmp_path: Path):
    task = portfolio.read_info()["task"]
    goal = f"{task}-Goal" if task == MAZE else task
    loop = ["agent.runner.num_steps_per_iteration=20", "--max_iterations", "2", "--algorithm", "pql"]
    run = train(tmp_path, goal, engine, *loop, *LEARNER, "--portfolio", str(portfolio.path))
    assert run.read_info()["portfolio"] is not None
    if task == MAZE:  # a film needs a viewer of Isaac Lab where the task is not ours
        myriad("play", "--checkpoint", str(run.path), "--video_length", "6", "--out", str(tmp_path / "film.mp4"))
        assert (tmp_path / "film.mp4").stat().st_size > 1000
    sizes = ["--episodes", "4", "--num_envs", "8", "--pool_size", "64", "--k", "3"]
    myriad("evaluate", "--checkpoint", str(run.path), *sizes)
    assert (run.path / "evaluation.json").is_file()
    myriad("export", "--checkpoint", str(run.path), "--policy", "1")
    contract = json.loads((run.path / "export" / "contract.json").read_text())
    assert contract["parity"]["onnx_max_abs_error"] < 1e-5
    assert contract["parity"]["observations"] == "recorded"


def test_a_head_is_chosen_in_the_env_of_the_run(portfolio: RunFolder, engine: str, tmp_path: Path):
    task = portfolio.read_info()["task"]
    goal = f"{task}-Goal" if task == MAZE else task
    place = ["--backend", "isaaclab", f"physics={engine}", LENGTH[goal], "--runs_root", str(tmp_path)]
    small = ["--num_envs", "8", "--max_iterations", "1", "--logger", "none", "agent.num_steps_per_env=8"]
    myriad("train", "--task", goal, "--algorithm", "ppo", *small, *place, "--portfolio", str(portfolio.path))
    info = list_runs(tmp_path)[-1].read_info()
    assert len(info["seeding_scores"]) == 2
    assert info["seeding_env_steps"] > 0


def test_films_through_a_viewer_that_needs_no_display(tmp_path: Path):
    flags = [
        "--algorithm",
        "kmyriad",
        "--max_iterations",
        "2",
        "--video",
        "--video_interval",
        "1",
        "--video_length",
        "4",
    ]
    run = train(tmp_path, ANT, "newton_mjwarp", *flags, *TINY)
    assert (run.videos / "training_000001.mp4").stat().st_size > 1000
    film = tmp_path / "film.mp4"
    viewer = ["--viz", "newton_gl", "--video", "--video_length", "4"]
    myriad("play", "--checkpoint", str(run.path), *viewer, "--out", str(film))
    assert film.stat().st_size > 1000
    config = json.loads((run.latest() / "manifest.json").read_text())["config"]
    assert "viz" not in config["isaaclab"]  # else every evaluation of the portfolio would open one


def test_overrides_as_isaac_lab_types_them(tmp_path: Path):
    flags = ["--algorithm", "kmyriad", "--max_iterations", "1", "env.task.arena=cave", *TINY]
    run = train(tmp_path, MAZE, "newton_mjwarp", *flags)
    assert "arena: cave" in (run.path / "config" / "env.yaml").read_text()
    assert main(["train", "--checkpoint", str(run.path), "--max_iterations", "2", "physics=ovphysx"]) == 2
    assert main(["train", "--checkpoint", str(run.path), "--max_iterations", "2", "--backend", "mujoco"]) == 2


def test_a_portfolio_of_mujoco_runs_in_isaac_lab(engine: str, tmp_path: Path):
    myriad(
        *["train", "--task", MAZE, "--backend", "mujoco", *SMALL, *TINY, LENGTH[MAZE]],
        *["--max_iterations", "1", "--runs_root", str(tmp_path)],
    )
    run = list_runs(tmp_path)[-1]
    sizes = ["--num_envs", "8", "--pool_size", "64", "--k", "3", "--out", str(tmp_path / "there.json")]
    myriad("evaluate", "--checkpoint", str(run.path), "--backend", "isaaclab", f"physics={engine}", *sizes)
    there = json.loads((tmp_path / "there.json").read_text())
    assert 0.0 < there["portfolio"]["coverage"] < 1.0
    film = tmp_path / "film.mp4"
    place = ["--backend", "isaaclab", f"physics={engine}"]
    myriad("play", "--checkpoint", str(run.path), *place, "--video_length", "6", "--out", str(film))
    assert film.stat().st_size > 1000


@pytest.mark.parametrize(
    ("task", "engine", "length"),
    [
        ("Isaac-Humanoid-Direct", "ovphysx", "env.episode_length_s=0.325"),
        ("Isaac-Velocity-Flat-UnitreeGo2", "newton_mjwarp", "env.episode_length_s=0.39"),
        ("Isaac-Reach-Franka", "ovphysx", "env.episode_length_s=0.65"),
    ],
)
def test_stock_tasks_are_pretrained_and_finetuned_by_their_presets(task: str, engine: str, length: str, tmp_path: Path):
    place = ["--task", task, "--backend", "isaaclab", f"physics={engine}", length, "--runs_root", str(tmp_path)]
    myriad("train", *place, *SMALL, *TINY, "--max_iterations", "1")
    run = list_runs(tmp_path)[-1]
    assert math.isfinite(run.read_metrics()[-1]["Population/entropy_pool"])
    learner = [*LEARNER, "agent.runner.num_steps_per_iteration=20", "--max_iterations", "1"]
    myriad("train", *place, *SMALL, "--algorithm", "pql", *learner, "--portfolio", str(run.path))
    finetuned = list_runs(tmp_path)[-1]
    assert finetuned.read_info()["portfolio"] is not None
    assert math.isfinite(finetuned.read_metrics()[-1]["Loss/critic"])


def test_agents_are_kept_apart(engine: str):
    from myriad_lab.envs.isaaclab.cfg import IsaacLabCfg
    from myriad_lab.envs.isaaclab.launch import make_isaaclab_env

    env = make_isaaclab_env(
        "Isaac-Pendulum-MARL-Direct",
        IsaacLabCfg(physics=engine),
        num_envs=4,
        overrides=["env.episode_length_s=0.1"],
    )
    actions = 2 * torch.rand(4, env.num_agents, env.num_actions) - 1
    ends = 0
    for _ in range(2 * env.max_episode_length):
        obs, rewards, dones, extras = env.step(actions)
        assert obs["policy"].shape == (4, env.num_agents, max(env.obs_sizes))
        assert rewards.shape == (4, env.num_agents)
        assert not (extras["terminated"] & extras["time_outs"]).any()
        for i, size in enumerate(env.obs_sizes):
            assert (obs["policy"][:, i, size:] == 0).all()
        if dones.any():
            ends += 1
            ended = dones.bool()
            assert (extras["final_obs"]["policy"][ended] != obs["policy"][ended]).any()
            assert (extras["final_obs"]["critic"][ended] != obs["critic"][ended]).any()
        assert torch.isfinite(obs["policy"]).all()
    assert ends
    env.close()


def test_isaac_labs_own_commands_know_our_tasks(tmp_path: Path):
    command = [sys.executable, "-m", "isaaclab", "list_envs", "--keyword", "Myriad"]
    listed = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True).stdout
    for task in ("Myriad-AntMaze-Maze", "Myriad-AntMaze-Maze-Goal", "Myriad-Ant", "Myriad-Humanoid"):
        assert f" {task} " in listed


def by_their_launcher(folder: Path, task: str, *arguments: str) -> Any:
    """Train two iterations of 20 steps through Isaac Lab's own command and return the newest checkpoint."""
    command = [sys.executable, "-m", "isaaclab", "train", "--rl_library", "rsl_rl", "--task", task]
    size = ["--num_envs", "16", "--max_iterations", "2", "--device", "cpu", "agent.device=cpu"]
    short = ["env.task.episode_steps=20", "agent.num_steps_per_env=20", "physics=newton_mjwarp"]
    done = subprocess.run([*command, *size, *short, *arguments], capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr[-2000:]
    saved = max(folder.glob("logs/rsl_rl/*/*/model_*.pt"), key=lambda path: path.stat().st_mtime)
    return torch.load(saved, weights_only=False)


def test_isaac_labs_own_launcher_trains_them_by_ppo(tmp_path: Path):
    assert by_their_launcher(tmp_path, MAZE)["iter"] == 1


def test_isaac_labs_own_launcher_trains_a_population_and_goes_on(tmp_path: Path):
    # an ant that stands is too low here: episodes end in the middle of a rollout
    low = ["env.task.min_height=0.5", "env.compute_final_obs=true"]
    population = ["--agent", "rsl_rl_kmyriad_cfg_entry_point", "agent.algorithm.num_policies=4", *low]
    first = by_their_launcher(tmp_path, "Myriad-Ant", *population)
    assert (first["iter"], first["iteration"]) == (1, 2)
    assert first["actor"]["raw_log_std"].shape == (4, 1, 8)
    assert by_their_launcher(tmp_path, "Myriad-Ant", *population, "--checkpoint", "latest")["iteration"] == 4
