"""The lines of the env benchmark; the times themselves are not judged."""

from __future__ import annotations

import pytest
import torch

from myriad_lab.cli.benchmarks import env as benchmark


def test_lines_name_both_rates():
    (line,) = benchmark.time_mujoco("Myriad-AntMaze-Maze", 8, 0.8, "cpu", 3)
    assert line.name == "env step, Myriad-AntMaze-Maze"
    assert line.size == "8 envs"
    assert line.p95_s >= line.measured_s > 0
    assert line.floor_s is None
    assert line.peer_s
    assert f"{8 / line.measured_s:,.0f} env-steps/s, bare {8 / line.peer_s:,.0f}; target 0.8" == line.note
    assert benchmark.time_torch(16, "cpu", 3)[0].peer == "simulator alone"


@pytest.mark.parametrize("task", ["Myriad-Ant", benchmark.TORCH_TASK])
def test_the_bare_step_does_not_move_the_env(monkeypatch, task):
    """The env goes through the same states as if no bare step had been timed in between."""
    envs = []
    original = benchmark._desynchronised_env
    monkeypatch.setattr(benchmark, "_desynchronised_env", lambda *args: envs.append(original(*args)) or envs[-1])
    if task == benchmark.TORCH_TASK:
        benchmark.time_torch(4, "cpu", 5)
    else:
        benchmark.time_mujoco(task, 4, 0.8, "cpu", 5)
    alone = original(task, 4, "cpu")
    generator = torch.Generator().manual_seed(0)
    for _ in range(5 + benchmark._WARMUP):
        alone.step(2.0 * torch.rand(4, alone.num_actions, generator=generator) - 1.0)
    assert torch.equal(envs[0].get_observations()["policy"], alone.get_observations()["policy"])


def test_cases_cover_every_task_and_size(monkeypatch):
    seen = []
    monkeypatch.setattr(benchmark, "time_mujoco", lambda task, n, *rest: seen.append((task, n)))
    monkeypatch.setattr(benchmark, "time_torch", lambda n, *rest: seen.append(("torch", n)))
    monkeypatch.setattr(benchmark.env_warp, "cases", lambda *args: [])
    for quick in (True, False):
        for case in benchmark.cases("cpu", quick):
            case.run()
    quick = [(task, 256) for task in benchmark.MUJOCO_TASKS] + [("torch", 1024)]
    tasks, sizes = [*benchmark.MUJOCO_TASKS, "torch"], [256, 1024, 4096, 16_384, 65_536]
    assert seen == quick + [(task, n) for task in tasks for n in sizes]
    assert all(5 <= benchmark._steps(n, False) <= 400 for n in sizes)
