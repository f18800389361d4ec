"""Writing to and sampling from the replay memory, against a plain copy of the same bytes and a plain replay memory."""

from __future__ import annotations

from functools import partial

import torch

from myriad_lab.cli.benchmarks.floors import FLOAT_BYTES, fasttd3_transition_bytes
from myriad_lab.cli.benchmarks.learner import PRECISIONS, random_step
from myriad_lab.cli.benchmarks.line import BenchmarkLine, Case, Work, in_turns
from myriad_lab.cli.benchmarks.memory import PeakMemory
from myriad_lab.cli.benchmarks.plain import PlainReplay
from myriad_lab.cli.benchmarks.rates import Yardsticks
from myriad_lab.storage.replay import ReplayBuffer

NUM_OBS, NUM_ACTIONS, N_STEP = 123, 37, 3
"""Sizes of a humanoid (Unitree G1 on flat ground), and the length of a window."""
_TRANSITIONS = 2**19


def cases(device: str, quick: bool) -> list[Case]:
    """Return a case for each type and layout: one write of all envs, and samples of two sizes.

    123 observations, 37 actions, windows of 3 steps; half a million transitions.

    Args:
        device: Where to run.
        quick: Small sizes, few repetitions.
    """
    layouts = [(256, 4)] if quick else [(4096, 8), (65_536, 1024)]
    return [
        Case(f"{name}, {num_envs} envs", partial(time_memory, dtype, num_envs, m, device, quick))
        for num_envs, m in layouts
        for name, dtype in PRECISIONS.items()
    ]


def time_memory(dtype: torch.dtype, num_envs: int, m: int, device: str, quick: bool) -> list[BenchmarkLine]:
    """Return the lines of one case: ``num_envs`` envs of ``m`` heads.

    The floor counts each useful byte once in and once out: an observation, an action, a reward and 5 bytes of flags per
    env written; two observations, an action, and rewards and flags of the window per sampled row, which leaves as
    float32. The peer is a float32 memory ``[num_envs, steps, ...]`` with next observations, FastTD3's layout.
    """
    capacity = (4096 if quick else _TRANSITIONS) // num_envs
    item = torch.empty((), dtype=dtype).element_size()
    step = random_step(num_envs, device, NUM_OBS, NUM_ACTIONS)
    plain = PlainReplay(capacity, num_envs, NUM_OBS, NUM_ACTIONS, device)
    plain_step = {key: value for key, value in step.items() if key not in ("final_obs", "valid")}
    plain_step |= {key: step[key]["policy"] for key in ("obs", "next_obs")}
    generator = torch.Generator(device).manual_seed(0)
    with PeakMemory(device) as peak:
        buffer = ReplayBuffer(capacity, num_envs, m, {"policy": NUM_OBS}, NUM_ACTIONS, device, dtype)
        works: dict[str, Work] = {"write": lambda: buffer.write(**step)}
        peers: dict[str, Work] = {"plain write": lambda: plain.write(**plain_step)}
        written = num_envs * (item * (NUM_OBS + NUM_ACTIONS) + FLOAT_BYTES + 5)
        taken = num_envs * (FLOAT_BYTES * (NUM_OBS + NUM_ACTIONS + 1) + 2)
        moved = {"write": (f"{num_envs} envs", num_envs, written + taken)}
        for rows in (256,) if quick else (8192, 32_768):
            name, width = f"sample {rows}", 2 * NUM_OBS + NUM_ACTIONS
            each = (item + FLOAT_BYTES) * width + 5 * N_STEP + 2 * FLOAT_BYTES
            works[name] = partial(buffer.sample, rows // m, generator, own_fraction=0.5, n_step=N_STEP)
            peers[f"plain {name}"] = partial(plain.sample, rows, N_STEP, generator)
            moved[name] = (f"{m} x {rows // m} rows of {num_envs} envs", rows, rows * each)
        for _ in range(min(capacity, 40)):
            buffer.write(**step)
            plain.write(**plain_step)
        for work in works.values():
            work()
    yardsticks = Yardsticks(device)
    timings = in_turns(works | peers | yardsticks.works, device, quick)
    rates, lines = yardsticks.read(timings), []
    per_transition = buffer.bytes_per_transition
    precision = "fp32" if item == FLOAT_BYTES else "bf16"
    theirs = fasttd3_transition_bytes(NUM_OBS, NUM_ACTIONS)
    for name in works:
        size, count, useful = moved[name]
        seconds = timings[name].median_s
        lines.append(
            BenchmarkLine(
                f"replay write, {precision}" if name == "write" else f"replay sample, {num_envs} envs {precision}",
                size,
                *timings[name],
                *rates.floor(0.0, useful),
                timings[f"plain {name}"].median_s,
                "FastTD3's layout",
                peak.num_bytes,
                count,
                "envs written or rows drawn",
                f"{useful / seconds / 1e9:.2f} of {rates.bytes / 1e9:.1f} GB/s; {per_transition:.0f} B per transition, "
                f"FastTD3's layout {theirs} ({theirs / per_transition:.1f}x)",
            )
        )
    return lines
