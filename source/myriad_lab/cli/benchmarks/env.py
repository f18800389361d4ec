"""The full env loop against the bare physics of the same states."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import numpy as np
import torch

from myriad_lab.cli.benchmarks import env_warp
from myriad_lab.cli.benchmarks.line import BenchmarkLine, Case, summary, wait
from myriad_lab.cli.benchmarks.memory import PeakMemory
from myriad_lab.tasks.registry import make_env

MUJOCO_TASKS = {
    "Myriad-Ant": 0.8,
    "Myriad-AntMaze-Maze": 0.8,
    "Myriad-Humanoid": 0.7,
    "Myriad-Velocity-Quadruped": 0.8,
}
"""Task and the share of the bare physics rate that it should reach."""
TORCH_TASK = "Myriad-PointMaze-Maze"
MUJOCO_ENV_BYTES = 16 * 1024
"""Memory of an env of a MuJoCo task [B], rounded up."""
_WARMUP = 10
"""Steps before the clock counts: robots have landed, caches are warm."""


def cases(device: str, quick: bool) -> list[Case]:
    """Return a case for each task and batch size: steps of the env (observations, rewards, ends, partial resets).

    Each env step is paired with a bare step of the same engine from the same state with the same controls, in turns, so
    that both see the same load of the machine and the same contacts. Controls are random, episodes out of phase.

    Args:
        device: Where the env's tensors live; MuJoCo's physics runs on the CPU.
        quick: Small batches, few repetitions.
    """
    sizes = [256] if quick else [256, 1024, 4096, 16_384, 65_536]
    found = [
        Case(
            f"{task}, {num_envs} envs",
            partial(time_mujoco, task, num_envs, target, device, _steps(num_envs, quick)),
            needs_host_bytes=num_envs * MUJOCO_ENV_BYTES,
        )
        for task, target in MUJOCO_TASKS.items()
        for num_envs in sizes
    ]
    sizes = [1024] if quick else [256, 1024, 4096, 16_384, 65_536]
    steps = 20 if quick else 200
    found += [Case(f"{TORCH_TASK}, {n} envs", partial(time_torch, n, device, steps)) for n in sizes]
    return found + env_warp.cases(device, quick)


def time_mujoco(task: str, num_envs: int, target: float, device: str, steps: int) -> list[BenchmarkLine]:
    """Return the line of one MuJoCo task at one batch size; ``steps`` pairs are timed."""
    with PeakMemory(device) as peak:
        env = _desynchronised_env(task, num_envs, device)
        simulator = env.simulator
        engine, decimation = simulator.engine, simulator.robot.decimation
        action = simulator.robot.action
        scale, offset = np.asarray(action.scale), np.asarray(action.offset)
        generator = torch.Generator().manual_seed(0)
        env_times, bare_times = [], []
        for step in range(_WARMUP + steps):
            actions = 2.0 * torch.rand(num_envs, env.num_actions, generator=generator) - 1.0
            controls = offset + scale * actions.numpy()
            actions = actions.to(device)
            state = after = engine.get_state()
            # The second of a pair finds warm caches, so they take turns at being first.
            for bare in (True, False) if step % 2 else (False, True):
                engine.set_state(state)
                start = time.perf_counter()
                if bare:
                    engine.ctrl[:] = controls
                    engine.step(decimation)
                    bare_times.append(time.perf_counter() - start)
                else:
                    env.step(actions)
                    wait(device)
                    env_times.append(time.perf_counter() - start)
                    after = engine.get_state()
            engine.set_state(after)
    env.close()
    return [_line(task, num_envs, env_times, bare_times, "bare mujoco", peak, f"target {target}")]


def time_torch(num_envs: int, device: str, steps: int) -> list[BenchmarkLine]:
    """Return the line of the point maze at one batch size, beside its simulator alone."""
    with PeakMemory(device) as peak:
        env = _desynchronised_env(TORCH_TASK, num_envs, device)
        generator = torch.Generator(device).manual_seed(0)
        env_times, bare_times, simulator = [], [], env.simulator
        for turn in range(_WARMUP + steps):
            actions = 2.0 * torch.rand(num_envs, env.num_actions, generator=generator, device=device) - 1.0
            state = after = simulator.state_dict()
            for bare in (True, False) if turn % 2 else (False, True):
                simulator.load_state_dict(state)
                wait(device)
                start = time.perf_counter()
                (simulator if bare else env).step(actions)
                wait(device)
                (bare_times if bare else env_times).append(time.perf_counter() - start)
                after = after if bare else simulator.state_dict()
            simulator.load_state_dict(after)
    env.close()
    return [_line(TORCH_TASK, num_envs, env_times, bare_times, "simulator alone", peak, "")]


def _line(
    task: str,
    num_envs: int,
    env_times: list[float],
    bare_times: list[float],
    peer: str,
    peak: PeakMemory,
    target: str,
) -> BenchmarkLine:
    """Return a line from the times of all steps, those of the warm-up first; physics is the bound, not a formula."""
    timing, bare_s = summary(env_times[_WARMUP:]), summary(bare_times[_WARMUP:]).median_s
    rates = f"{num_envs / timing.median_s:,.0f} env-steps/s, bare {num_envs / bare_s:,.0f}"
    return BenchmarkLine(
        f"env step, {task}",
        f"{num_envs} envs",
        *timing,
        peer_s=bare_s,
        peer=peer,
        peak_bytes=peak.num_bytes,
        x=num_envs,
        x_name="envs",
        note=f"{rates}; {target}" if target else rates,
    )


def _desynchronised_env(task: str, num_envs: int, device: str) -> Any:
    """Return an env whose episodes are at random ages, so that a few end at every step, as in a long run."""
    env = make_env(task, num_envs=num_envs, device=device, seed=0)
    generator = torch.Generator().manual_seed(1)
    ages = torch.randint(env.max_episode_length, (num_envs,), generator=generator)
    env.episode_length_buf = ages.to(device)
    return env


def _steps(num_envs: int, quick: bool) -> int:
    return 10 if quick else max(6, min(400, 200_000 // num_envs))
