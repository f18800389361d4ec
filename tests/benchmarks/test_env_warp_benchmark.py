"""The lines of MuJoCo-Warp in the env benchmark; the times themselves are not judged."""

from __future__ import annotations

import importlib.util

import torch

from myriad_lab.cli.benchmarks import env, env_warp


def test_the_line_names_both_rates_and_the_bare_step_does_not_move_the_env(monkeypatch):
    envs = []
    original = env_warp.make_env
    monkeypatch.setattr(
        env_warp, "make_env", lambda *args, **kwargs: envs.append(original(*args, **kwargs)) or envs[-1]
    )
    (line,) = env_warp.time_warp("Myriad-Ant", 4, "cpu", 2)
    assert line.name == "env step, Myriad-Ant on mujoco_warp"
    assert line.p95_s >= line.measured_s > 0
    assert line.peer_s
    assert line.note.startswith(f"{4 / line.measured_s:,.0f} env-steps/s, bare {4 / line.peer_s:,.0f}")
    alone = original("Myriad-Ant", backend="mujoco_warp", num_envs=4, device="cpu", seed=0)
    generator = torch.Generator().manual_seed(1)
    alone.episode_length_buf = torch.randint(alone.max_episode_length, (4,), generator=generator)
    for _ in range(2 + env_warp._WARMUP):
        alone.step(2.0 * torch.rand(4, 8, generator=generator) - 1.0)
    assert torch.equal(envs[0].get_observations()["policy"], alone.get_observations()["policy"])


def test_cases(monkeypatch):
    monkeypatch.setattr(env_warp, "simulator_bytes", lambda task, num_envs: 1000 * num_envs)
    on_gpu = env_warp.cases("cuda:0", quick=False)
    assert len(on_gpu) == len(env_warp.TASKS) * 5
    assert on_gpu[-1].needs_bytes == 65_536_000
    assert {case.name for case in env_warp.cases("cpu", quick=True)} == {"Myriad-Ant, mujoco_warp, 64 envs"}
    assert {case.name for case in env_warp.cases("cpu", quick=True)} <= {case.name for case in env.cases("cpu", True)}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert env_warp.cases("cpu", quick=False) == []
