"""Our adapter against the bare env of Isaac Lab, with the same final observations, on each engine that is there."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import torch

from myriad_lab.cli.benchmarks.line import BenchmarkLine, Case, summary, wait
from myriad_lab.envs.isaaclab.cfg import IsaacLabCfg
from myriad_lab.envs.isaaclab.launch import (
    isaaclab_version,
    make_isaaclab_env,
    resolve_env_cfg,
    settle_env_cfg,
    start_gym_env,
)

TASK = "Isaac-Ant-Direct"
ENGINES = ("newton_mjwarp", "ovphysx")
TARGET = 0.95
"""Share of the bare env's rate that the adapter should reach at 512 envs."""
_WARMUP = 20
"""Steps before the clock counts: robots have landed, kernels are compiled."""


def cases(device: str, quick: bool) -> list[Case]:
    """Return a case for each engine: steps of the adapter and of the bare env.

    Both are made several times in turns, since Isaac Lab allows one env at a time, from the same seed, with the same
    random actions and episodes out of phase.

    Args:
        device: Device of simulation and tensors.
        quick: A small batch, few repetitions.

    Raises:
        ConfigurationError: Isaac Lab is not there, or not one that is supported.
    """
    isaaclab_version()
    num_envs, steps, rounds = (32, 10, 1) if quick else (512, 60, 4)
    return [Case(physics, partial(time_engine, physics, num_envs, steps, rounds, device)) for physics in ENGINES]


def time_engine(physics: str, num_envs: int, steps: int, rounds: int, device: str) -> list[BenchmarkLine]:
    """Return the line of one engine; ``rounds`` times ``steps`` steps of each are timed."""
    times: dict[bool, list[float]] = {True: [], False: []}
    for turn in range(rounds):
        for bare in (True, False) if turn % 2 else (False, True):
            times[bare] += _time_steps(physics, num_envs, steps, device, bare)
    ours, theirs = summary(times[False]), summary(times[True]).median_s
    line = BenchmarkLine(
        f"env step, {TASK} {physics}",
        f"{num_envs} envs",
        *ours,
        peer_s=theirs,
        peer="bare Isaac Lab env",
        x=num_envs,
        x_name="envs",
        note=f"{num_envs / ours.median_s:,.0f} env-steps/s, bare {num_envs / theirs:,.0f}; target {TARGET}",
    )
    return [line]


def _time_steps(physics: str, num_envs: int, steps: int, device: str, bare: bool) -> list[float]:
    """Make an env, return the time of each step [s], and close it."""
    cfg = IsaacLabCfg(physics=physics)
    size: dict[str, Any] = {"num_envs": num_envs, "device": device, "seed": 0, "final_obs": True}
    if bare:
        env_cfg = resolve_env_cfg(TASK, cfg)
        settle_env_cfg(TASK, env_cfg, **size)
        env, cleanup = start_gym_env(TASK, env_cfg, cfg)
        env.reset()
        inner = env.unwrapped
    else:
        env, cleanup = make_isaaclab_env(TASK, cfg, **size), None
        inner = env.inner
    generator = torch.Generator().manual_seed(1)
    ages = torch.randint(int(inner.max_episode_length), (num_envs,), generator=generator)
    inner.episode_length_buf = ages.to(device)
    times = []
    for _ in range(_WARMUP + steps):
        actions = (2.0 * torch.rand(num_envs, 8, generator=generator) - 1.0).to(device)
        start = time.perf_counter()
        env.step(actions)
        wait(device)
        times.append(time.perf_counter() - start)
    env.close()
    if cleanup is not None:
        cleanup.close()
    return times[_WARMUP:]
