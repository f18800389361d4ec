"""Act and update time of a population against its size, beside a single policy of the same network."""

from __future__ import annotations

from collections.abc import Callable

import torch

from myriad_lab.cli.benchmarks.line import BenchmarkLine, measure
from myriad_lab.networks.population import PopulationActor, PopulationActorCfg

NUM_OBS, NUM_ACTIONS = 48, 8
FULL_ADAPTER_MAX = 1024
"""Largest population measured with full adapters; larger ones would take gigabytes."""


def run(device: str, quick: bool) -> list[BenchmarkLine]:
    """Return one line each for acting and for updating, for several sizes m at a fixed number of envs.

    The reference is the single policy (m = 1) of the same network, adapters included, on the same number of envs: its
    arithmetic is the same, so the ratio tells what splitting the batch over m heads costs. The note gives the rate of
    arithmetic and the share of a large matmul's rate, the floor of any implementation.
    """
    num_envs = 512 if quick else 4096
    sizes = (1, 8, 64) if quick else (1, 8, 32, 128, 512, 1024, 4096)
    repetitions = 3 if quick else 15
    peak = _matmul_rate(device)
    lines: list[BenchmarkLine] = []
    for kind in ("act", "update"):
        single: dict[str, float] = {}
        for m in sizes:
            adapter = "full" if m <= FULL_ADAPTER_MAX else "low_rank"
            for size in sorted({1, m} if adapter not in single else {m}):
                actor = PopulationActor(NUM_OBS, NUM_ACTIONS, size, PopulationActorCfg(adapter=adapter)).to(device)
                work = _act(actor, num_envs, device) if kind == "act" else _update(actor, num_envs, device)
                median, p95 = measure(work, repetitions, warmup=2, device=device)
                single.setdefault(adapter, median)
            rate = _flops(actor, num_envs) * (1 if kind == "act" else 3) / median
            note = f"{rate / 1e9:.1f} GFLOP/s, {rate / peak:.0%} of a large matmul"
            note += "" if adapter == "full" else f", {adapter} adapters"
            what = f"m = {m}, {num_envs} envs"
            lines.append(BenchmarkLine(f"population {kind}", what, median, p95, single[adapter], "single policy", note))
    return lines


def _act(actor: PopulationActor, num_envs: int, device: str) -> Callable[[], object]:
    obs = torch.randn(num_envs, NUM_OBS, device=device)

    @torch.no_grad()
    def work() -> object:
        return actor.act(obs)

    return work


def _update(actor: PopulationActor, num_envs: int, device: str) -> Callable[[], object]:
    """Return one policy-gradient step with Adam on one observation per env."""
    obs = torch.randn(actor.num_policies, num_envs // actor.num_policies, NUM_OBS, device=device)
    actions = torch.randn(*obs.shape[:2], NUM_ACTIONS, device=device)
    advantages = torch.randn(obs.shape[:2], device=device)
    adam = torch.optim.Adam(actor.parameters(), lr=1e-4, fused=True)

    def work() -> None:
        loss = -(actor.distribution(obs).log_prob(actions) * advantages).mean()
        adam.zero_grad(set_to_none=True)
        loss.backward()
        adam.step()

    return work


def _flops(actor: PopulationActor, num_envs: int) -> float:
    """Return the multiplications and additions of one forward pass, each row seeing one head."""
    heads = actor.head_parameters()
    shared = sum(p.numel() for p in actor.shared_parameters() if p.dim() == 2)
    return 2.0 * num_envs * (shared + sum(p.numel() for p in heads) / actor.num_policies)


def _matmul_rate(device: str) -> float:
    """Return the rate of one large square matmul [FLOP/s]."""
    size = 1024
    a, b = torch.randn(size, size, device=device), torch.randn(size, size, device=device)
    median, _ = measure(lambda: a @ b, 5, warmup=2, device=device)
    return 2.0 * size**3 / median
