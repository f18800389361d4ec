"""Act and update time of a population against its size, beside a single policy of the same network."""

from __future__ import annotations

from functools import partial

import torch

from myriad_lab.algorithms.kmyriad import KMyriadCfg
from myriad_lab.algorithms.policy_updates import OneStepUpdate
from myriad_lab.algorithms.population_optimizer import PopulationOptimizer
from myriad_lab.algorithms.precision import MixedPrecision
from myriad_lab.cli.benchmarks.floors import ADAMW_BYTES, FLOAT_BYTES
from myriad_lab.cli.benchmarks.line import BenchmarkLine, Case, Work, in_turns
from myriad_lab.cli.benchmarks.memory import PeakMemory
from myriad_lab.cli.benchmarks.rates import Yardsticks
from myriad_lab.networks.population import PopulationActor, PopulationActorCfg
from myriad_lab.storage.rollout import RolloutStorage

NUM_OBS, NUM_ACTIONS = 48, 8
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
"""Type of the products; bf16 is ``mixed_precision``."""
SIZES = (1, 8, 32, 128, 512, 1024, 4096)
_FULL_HEAD_BYTES = 6 * FLOAT_BYTES * 256 * 257
"""Of one head with a full adapter: weight, gradient, two moments, weight and gradient in bfloat16, and room for one."""


def cases(device: str, quick: bool) -> list[Case]:
    """Return a case for each size m of the population and precision, at a fixed number of envs: act, and update.

    Adapters are full; low-rank ones are added for the largest populations.

    Args:
        device: Where to run.
        quick: Small sizes, few repetitions.
    """
    totals = [512] if quick else [4096]
    if torch.device(device).type == "cuda" and not quick:
        totals.append(65_536)
    sizes = [("full", m) for m in ((1, 8, 64) if quick else SIZES)]
    sizes += [] if quick else [("low_rank", m) for m in (1024, 4096)]
    return [
        Case(
            f"m = {m}, {adapter}, {precision}, {num_envs} envs",
            partial(time_population, m, adapter, precision, num_envs, device, quick),
            m * _FULL_HEAD_BYTES if adapter == "full" else 0,
        )
        for num_envs in totals
        for adapter, m in sizes
        for precision in PRECISIONS
    ]


def time_population(
    m: int, adapter: str, precision: str, num_envs: int, device: str, quick: bool
) -> list[BenchmarkLine]:
    """Return the lines of one case.

    The peer is the single policy of the same network on the same number of envs: its arithmetic is the same, so it
    tells what splitting the batch over ``m`` heads costs. The floor of acting is the arithmetic of a forward pass or
    reading all parameters; of an update three times the arithmetic, less the gradient of the input, or reading and
    writing what Adam does, and saving and loading activations.
    """
    make = partial(_works, adapter=adapter, precision=precision, num_envs=num_envs, device=device)
    with PeakMemory(device) as peak:
        works = make(m)
        for work in works.values():
            work()
    yardsticks = Yardsticks(device, PRECISIONS[precision])
    peers = {f"single {name}": work for name, work in make(1).items()}
    timings = in_turns(works | peers | yardsticks.works, device, quick)
    rates, lines = yardsticks.read(timings), []
    for name, (flops, moved) in _floors(_actor(m, adapter, device), num_envs, precision).items():
        median = timings[name].median_s
        suffix = "" if adapter == "full" else ", low-rank adapters"
        lines.append(
            BenchmarkLine(
                f"population {name}, {precision}, {num_envs} envs{suffix}",
                f"m = {m}",
                *timings[name],
                *rates.floor(flops, moved),
                timings[f"single {name}"].median_s,
                "single policy",
                peak.num_bytes,
                m,
                "policies",
                f"{flops / median / 1e9:,.0f} of {rates.flops / 1e9:,.0f} GFLOP/s",
            )
        )
    return lines


def _actor(m: int, adapter: str, device: str) -> PopulationActor:
    return PopulationActor(NUM_OBS, NUM_ACTIONS, m, PopulationActorCfg(adapter=adapter)).to(device)


def _works(m: int, adapter: str, precision: str, num_envs: int, device: str) -> dict[str, Work]:
    """Return acting and the update of one population."""
    actor, mixed_precision = _actor(m, adapter, device), precision == "bf16"
    return {
        "act": _act(actor, num_envs, device, mixed_precision),
        "update": _update(actor, num_envs, device, mixed_precision),
    }


def _act(actor: PopulationActor, num_envs: int, device: str, mixed_precision: bool) -> Work:
    obs, precision = (
        torch.randn(num_envs, NUM_OBS, device=device),
        MixedPrecision(mixed_precision, torch.device(device)),
    )

    @torch.no_grad()
    def work() -> object:
        with precision.autocast():
            return actor.act(obs)

    return work


def _update(actor: PopulationActor, num_envs: int, device: str, mixed_precision: bool) -> Work:
    """Return K-Myriad's single gradient step on one observation per env."""
    fields = {
        "obs": ((NUM_OBS,), torch.float32),
        "pre_squash": ((NUM_ACTIONS,), torch.float32),
        "valid": ((), torch.bool),
    }
    storage = RolloutStorage(1, num_envs, actor.num_policies, fields, device)
    obs, actions = torch.randn(num_envs, NUM_OBS), torch.randn(num_envs, NUM_ACTIONS)
    storage.append({"obs": obs, "pre_squash": actions, "valid": torch.ones(num_envs, dtype=torch.bool)})
    cfg = KMyriadCfg(num_epochs=1, mixed_precision=mixed_precision)
    improve = OneStepUpdate(actor, PopulationOptimizer(actor, None, cfg), cfg)
    rewards, number = torch.randn(1, num_envs, device=device), torch.tensor(float(num_envs), device=device)
    return partial(improve, storage, rewards, number)


def _floors(actor: PopulationActor, num_envs: int, precision: str) -> dict[str, tuple[float, float]]:
    """Return arithmetic [FLOP] and bytes [B] of both works; each row sees one head."""
    stacked = sum(p.numel() for p in actor.head_parameters())
    shared = sum(p.numel() for p in actor.shared_parameters() if p.dim() == 2)
    cfg = actor.cfg
    forward = 2.0 * num_envs * (shared + stacked / actor.num_policies)
    activations = 2 * PRECISIONS[precision].itemsize * num_envs * (sum(cfg.trunk) + cfg.adapter_dim)
    rows = FLOAT_BYTES * num_envs * (NUM_OBS + NUM_ACTIONS)
    update = 3.0 * forward - 2.0 * num_envs * NUM_OBS * cfg.trunk[0]
    return {
        "act": (forward, FLOAT_BYTES * (shared + stacked) + rows),
        "update": (update, ADAMW_BYTES * (shared + stacked) + activations + rows),
    }
