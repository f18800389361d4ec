"""The full env loop on MuJoCo-Warp against the bare graph of the same states; part of the benchmark ``env``."""

from __future__ import annotations

import importlib.util
import time
from functools import partial
from typing import Any

import torch

from myriad_lab.cli.benchmarks.line import BenchmarkLine, Case, summary, wait
from myriad_lab.cli.benchmarks.memory import PeakMemory
from myriad_lab.tasks.registry import get, make_env

TASKS = ("Myriad-Ant", "Myriad-AntMaze-Maze", "Myriad-Humanoid", "Myriad-Velocity-Quadruped")
_WARMUP = 3


def cases(device: str, quick: bool) -> list[Case]:
    """Return a case for each task and batch size; none where MuJoCo-Warp is not installed.

    On a CPU, where its kernels take seconds for tens of thousands of envs, the ant alone and few steps.

    Args:
        device: Where physics and tensors live.
        quick: One small batch of the ant.
    """
    if importlib.util.find_spec("mujoco_warp") is None:
        return []
    on_gpu = torch.device(device).type == "cuda"
    sizes = [64] if quick else [256, 1024, 4096, 16_384, 65_536]
    tasks = TASKS if on_gpu and not quick else TASKS[:1]
    steps = 3 if quick else 50 if on_gpu else 5
    return [
        Case(f"{task}, mujoco_warp, {n} envs", partial(time_warp, task, n, device, steps), simulator_bytes(task, n))
        for task in tasks
        for n in sizes
    ]


def simulator_bytes(task_id: str, num_envs: int) -> int:
    """Return the memory that the simulator of a task takes [B]."""
    from myriad_lab.envs.mujoco.model import build_model
    from myriad_lab.envs.mujoco_warp.capacity import capacity_of, footprint

    entry = get(task_id)
    task: Any = entry.make_task(entry.cfg)
    model = build_model(task.robot, task.arena)
    return footprint(model, capacity_of(model, task.cfg.capacity)).total(num_envs)


def time_warp(task: str, num_envs: int, device: str, steps: int) -> list[BenchmarkLine]:
    """Return the line of one task at one batch size; ``steps`` pairs of an env step and a bare one are timed.

    Both of a pair start from the same state with the same controls. Controls are random, episodes out of phase.
    """
    with PeakMemory(device) as peak:
        env: Any = make_env(task, backend="mujoco_warp", num_envs=num_envs, device=device, seed=0)
        generator = torch.Generator(device).manual_seed(1)
        env.episode_length_buf = torch.randint(
            env.max_episode_length, (num_envs,), generator=generator, device=env.device
        )
        physics = env.simulator.physics
        times: dict[str, list[float]] = {"env": [], "bare": []}
        for _ in range(_WARMUP + steps):
            actions = 2.0 * torch.rand(num_envs, env.num_actions, generator=generator, device=device) - 1.0
            before = physics.get_state()
            # the bare step finds the controls of the env's step still in place
            for name, step in (("env", partial(env.step, actions)), ("bare", physics.advance)):
                after = physics.get_state()
                if name == "bare":
                    physics.set_state(before | {"ctrl": after["ctrl"]})
                wait(device)
                start = time.perf_counter()
                step()
                wait(device)
                times[name].append(time.perf_counter() - start)
            physics.set_state(after)
        env.close()
    timing, bare_s = summary(times["env"][_WARMUP:]), summary(times["bare"][_WARMUP:]).median_s
    held = simulator_bytes(task, num_envs)
    on_gpu = torch.device(device).type == "cuda"
    return [
        BenchmarkLine(
            f"env step, {task} on mujoco_warp",
            f"{num_envs} envs",
            *timing,
            peer_s=bare_s,
            peer="bare mujoco_warp",
            # torch does not see what Warp allocates on a GPU
            peak_bytes=None if peak.num_bytes is None else peak.num_bytes + (held if on_gpu else 0),
            x=num_envs,
            x_name="envs",
            note=f"{num_envs / timing.median_s:,.0f} env-steps/s, bare {num_envs / bare_s:,.0f}; simulator "
            f"{held / 2**20:,.0f} MiB",
        )
    ]
