"""``myriad train --distributed``: what its processes write and say, and how they end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from rank_jobs import command
from ranks import run_places

from myriad_lab.cli.main import main
from myriad_lab.cli.run_cfg import RunCfg, check_choices
from myriad_lab.cli.train import train
from myriad_lab.errors import ConfigurationError
from myriad_lab.portfolio.bundle import load_bundle
from myriad_lab.portfolio.run_folder import RunFolder, list_runs

SCRIPT = Path(__file__).parents[2] / "scripts" / "train.py"
SMALL = ["--task", "Myriad-PointMaze-Maze", "--num_envs", "8", "--num_policies", "4", "--logger", "none"]
SMALL += ["env.episode_steps=10", "agent.k=3", "agent.actor.trunk=[8]", "agent.actor.adapter_dim=8"]
SMALL += ["agent.runner.save_interval=1", "agent.num_minibatches=2"]


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_one_process_writes_and_prints_and_any_number_goes_on(tmp_path: Path) -> None:
    argv = ["train", "--distributed", *SMALL, "--max_iterations", "2"]
    assert run_places(2, command, argv, str(tmp_path), "said") == [0, 0]
    said, nothing = ((tmp_path / f"said_{rank}").read_text() for rank in (0, 1))
    assert nothing == ""
    assert said.count("run folder: ") == 1
    (run,) = list_runs("runs")
    assert run.read_info()["ranks"] == 2
    assert run.read_info()["finished"]
    assert len(run.read_metrics()) == 2
    bundle = load_bundle(run.latest())
    assert (bundle.manifest.num_envs, bundle.actor.num_policies, bundle.manifest.env_steps) == (8, 4, 160)
    assert len(bundle.manifest.head_metrics["entropy"]) == 4
    result = train({"checkpoint": str(run.path), "max_iterations": 3})
    assert (result.iteration, result.env_steps) == (3, 240)
    assert run.read_info()["ranks"] == 1
    # and back to two, which have nothing left to do
    argv = ["train", "--distributed", "--checkpoint", str(run.path), "--max_iterations", "3"]
    assert run_places(2, command, argv, str(tmp_path), "again") == [0, 0]
    assert "was done before" in (tmp_path / "again_0").read_text()
    assert (tmp_path / "again_1").read_text() == ""


def test_a_portfolio_is_finetuned_by_several_processes(tmp_path: Path) -> None:
    assert main(["train", *SMALL, "--max_iterations", "1", "--run_name", "start"]) == 0
    (start,) = list_runs("runs")
    argv = ["train", "--distributed", *SMALL[:8], "--algorithm", "pql", "--portfolio", str(start.path)]
    argv += ["--max_iterations", "2", "agent.warmup_steps=2", "agent.batch_size=8", "agent.critic_warmup=2"]
    argv += ["agent.runner.num_steps_per_iteration=10", "env.episode_steps=10"]
    assert run_places(2, command, argv, str(tmp_path), "said") == [0, 0]
    said, nothing = ((tmp_path / f"said_{rank}").read_text() for rank in (0, 1))
    assert nothing == ""
    assert said.count("run folder: ") == 1
    run = next(run for run in list_runs("runs") if "pql" in str(run.path))
    bundle = load_bundle(run.latest())
    assert (bundle.manifest.num_envs, bundle.actor.num_policies, bundle.manifest.env_steps) == (8, 4, 160)
    assert run.read_info()["seeding_heads"] == [0, 1, 2, 3]


@pytest.mark.parametrize("algorithm", ["kmyriad", "pql"])
def test_what_does_not_fit_is_refused_before_anything_is_written(algorithm: str, tmp_path: Path) -> None:
    argv = ["train", "--distributed", *SMALL[:8], "--algorithm", algorithm, "--num_policies", "1"]
    assert run_places(2, command, argv, str(tmp_path), "said") == [2, 2]
    assert "num_policies=1 cannot be dealt out evenly to 2 ranks" in (tmp_path / "said_0").read_text()
    assert not list(tmp_path.glob("runs/**/run.json"))


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"algorithm": "ppo"}, "--distributed shares out policies, and ppo trains a single one"),
        ({"algorithm": "pql", "seeding": "halving"}, "--distributed has no --seeding halving"),
        ({"backend": "isaaclab"}, "--distributed has no --backend isaaclab"),
        ({"video": True}, "no process has all policies"),
    ],
)
def test_what_ranks_cannot_do_is_refused(flags: dict, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        check_choices(RunCfg(**({"task": "Myriad-Ant", "backend": "mujoco", "distributed": True} | flags)))


def test_torchrun_without_the_flag_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigurationError, match=r"2 processes.*add --distributed"):
        train({"task": "Myriad-PointMaze-Maze"})


@contextmanager
def torchrun(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Run two ranks of a training for ever."""
    argv = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(SCRIPT)]
    argv += ["--distributed", "--max_iterations", "100000", *arguments]
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_for_checkpoint(process: subprocess.Popen[str], after: int = 0) -> RunFolder:
    """Return the run, once it has a checkpoint of a later iteration."""
    deadline = time.monotonic() + 120.0
    while time.monotonic() < deadline:
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        for run in list_runs("runs"):
            if load_bundle(run.latest()).manifest.iteration > after:
                return run
        time.sleep(0.2)
    raise AssertionError("no checkpoint in two minutes")


def ranks_of(process: subprocess.Popen[str]) -> list[int]:
    """Return the ids of the processes that torchrun started."""
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc for the processes that torchrun started")
def test_a_crash_and_ctrl_c_end_all_ranks_and_lose_no_checkpoint() -> None:
    with torchrun(*SMALL) as process:
        run = wait_for_checkpoint(process)
        ranks = ranks_of(process)
        os.kill(ranks[1], signal.SIGKILL)
        assert process.wait(60.0) != 0
        assert not any(Path(f"/proc/{rank}").exists() for rank in ranks)
    survived = load_bundle(run.latest()).manifest.iteration
    assert survived >= 1
    with torchrun("--checkpoint", str(run.path)) as process:
        wait_for_checkpoint(process, after=survived)
        ranks = ranks_of(process)
        process.send_signal(signal.SIGINT)
        assert process.wait(60.0) != 0
        assert not any(Path(f"/proc/{rank}").exists() for rank in ranks)
    last = load_bundle(run.latest())
    assert last.manifest.iteration == run.read_metrics()[-1]["iteration"] + 1  # the iteration in progress was saved
    assert all(torch.isfinite(tensor).all() for tensor in last.actor.state_dict().values())
    assert run.read_info()["finished"] is False
