"""Writing to and sampling from the replay memory, against a plain copy of the same bytes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from myriad_lab.cli.benchmarks.learner import copy_rate, random_step
from myriad_lab.cli.benchmarks.line import BenchmarkLine, measure
from myriad_lab.storage.replay import ReplayBuffer

_NUM_OBS, _NUM_ACTIONS, _N_STEP = 88, 16, 3


def run(device: str, quick: bool) -> list[BenchmarkLine]:
    """Time one write of all envs and one sample, 88 observations, 16 actions, windows of 3 steps.

    The floor counts each useful byte once in and once out: 4 (obs + action + reward) + 5 per env written; per sampled
    row two observations, an action, and three rewards and flags.

    Args:
        device: Where to run.
        quick: Small sizes, few repetitions.
    """
    writes = [(256, 4)] if quick else [(4096, 8), (65_536, 1024)]
    batches = [256] if quick else [8192, 32_768]
    repetitions = 5 if quick else 30
    rate = copy_rate(device, 2**22 if quick else 2**26, repetitions)
    lines = []
    for num_envs, num_policies in writes:
        capacity = 16 if quick else 2**19 // num_envs
        buffer = ReplayBuffer(capacity, num_envs, num_policies, {"policy": _NUM_OBS}, _NUM_ACTIONS, device)
        step = random_step(num_envs, device)
        written = num_envs * (4 * (_NUM_OBS + _NUM_ACTIONS + 1) + 5)
        how = Measurement(rate, repetitions, device)
        lines.append(how.line("write", f"{num_envs} envs", lambda b=buffer, s=step: b.write(**s), written))
        for _ in range(min(capacity, 40)):
            buffer.write(**step)
        for batch in batches:
            generator = torch.Generator(device).manual_seed(0)
            per_head = batch // num_policies
            read = per_head * num_policies * (4 * (2 * _NUM_OBS + _NUM_ACTIONS) + 5 * _N_STEP)

            def draw(b: ReplayBuffer = buffer, n: int = per_head, g: torch.Generator = generator) -> object:
                return b.sample(n, g, own_fraction=0.5, n_step=_N_STEP)

            size = f"{num_policies} heads x {per_head} of {num_envs} envs"
            lines.append(how.line("sample", size, draw, read))
    return lines


@dataclass(frozen=True)
class Measurement:
    """How to time a movement of bytes and what to compare it with."""

    rate: float
    """Copy rate of this machine, read and write together [B/s]."""
    repetitions: int
    """Timed calls."""
    device: str
    """Where it runs."""

    def line(self, name: str, size: str, work: Callable[[], object], useful: int) -> BenchmarkLine:
        """Time ``work``, which moves ``useful`` bytes."""
        median, p95 = measure(work, self.repetitions, 3, self.device)
        note = f"{2 * useful / median / 1e9:.2f} of {self.rate / 1e9:.1f} GB/s"
        return BenchmarkLine(name, size, median, p95, 2 * useful / self.rate, "copy of the same bytes", note)
