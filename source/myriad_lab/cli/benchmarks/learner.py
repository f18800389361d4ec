"""Updates of PQL against their floor, and against the same mathematics in plain torch."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from tensordict import TensorDict

from myriad_lab.algorithms.algorithm import Step
from myriad_lab.algorithms.captured import WARM_UPS
from myriad_lab.algorithms.pql import PQL, PQLCfg
from myriad_lab.cli.benchmarks.floors import FLOAT_BYTES, Updates
from myriad_lab.cli.benchmarks.line import BenchmarkLine, Case, Timing, Work, in_turns
from myriad_lab.cli.benchmarks.memory import PeakMemory
from myriad_lab.cli.benchmarks.plain import PlainTD3
from myriad_lab.cli.benchmarks.rates import Rates, Yardsticks, count_kernels
from myriad_lab.networks.population import PopulationActor, PopulationActorCfg
from myriad_lab.networks.q_ensemble import QEnsembleCfg

NETS = {"S": (512, 256, 128), "M": (1024, 512, 256), "S default": (512, 256, 128)}
"""Hidden widths of policy and critics; plain scalar critics, or ``DEFAULT`` ones."""
DEFAULT = "S default"
"""Categorical critics with layer norm and returns scaled, as by default."""
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
"""Type of the forward passes; bf16 is ``mixed_precision``."""
ROUND = (2, 1)
"""Critic and policy updates per env step in the lines of whole rounds."""
_NUM_OBS, _NUM_ACTIONS, _NUM_ENVS = 88, 16, 4096


def cases(device: str, quick: bool) -> list[Case]:
    """Return a case for each network, precision and minibatch: critic update, policy update, and a whole round.

    An update draws its minibatch; on a GPU it is one CUDA graph.

    88 observations and 16 actions; networks 512-256-128 (S) and 1024-512-256 (M) with scalar critics as plain torch has
    them, and S with the critics of the defaults; one head, and populations whose minibatches add up to 8192 rows.

    Args:
        device: Where to run.
        quick: The small network at two small sizes, few repetitions.
    """
    sizes = [("S", 1, 256), ("S", 4, 64), (DEFAULT, 1, 256)]
    if not quick:
        sizes = [(net, 1, batch) for net in ("S", "M") for batch in (2048, 8192, 16_384, 32_768)]
        sizes += [("S", 8, 1024), ("S", 32, 256), (DEFAULT, 1, 2048), (DEFAULT, 1, 8192)]
    return [
        Case(f"{net}, {precision}, {m} x {batch}", partial(time_updates, net, precision, m, batch, device, quick))
        for net, m, batch in sizes
        for precision in PRECISIONS
    ]


def time_updates(net: str, precision: str, m: int, batch: int, device: str, quick: bool) -> list[BenchmarkLine]:
    """Return the lines of one case: ``m`` heads, ``batch`` rows each.

    A round, an env step of 4096 envs observed and the updates that it earns, is timed at up to 8192 rows on a CPU.
    """
    rows, mixed = m * batch, precision == "bf16"
    make = partial(make_learner, net, m, batch, device, mixed, 64 * m if quick else _NUM_ENVS)
    with PeakMemory(device) as peak:
        learner = make()
        works: dict[str, Work] = {"critic update": learner.learn_critics, "policy update": learner.learn_policies}
        for work in works.values():
            # the memory pool of a graph is part of the peak
            for _ in range(WARM_UPS + 1 if torch.device(device).type == "cuda" else 1):
                work()
    if rows <= 8192 or torch.device(device).type == "cuda":
        # of a learner that owes no updates because others were done already
        works["round"] = partial(_round, make(), random_step(learner.num_envs, device))
    yardsticks = Yardsticks(device, PRECISIONS[precision])
    peers = _peers(net, learner, device, mixed)
    timings = in_turns(works | peers | yardsticks.works, device, quick)
    rates = yardsticks.read(timings)
    floors = _floors(net, rows, learner, 2 if mixed else 4)
    lines = []
    for name, work in works.items():
        (flops, moved), peer = floors[name], timings.get(f"plain {name}")
        note = _note(flops, timings[name], rates, count_kernels(work, device))
        lines.append(
            BenchmarkLine(
                f"{name}, {net} {precision}" + (f" x{m}" if m > 1 else ""),
                f"{m} x {batch} rows" if m > 1 else f"{batch} rows",
                *timings[name],
                *rates.floor(flops, moved),
                None if peer is None else peer.median_s,
                "" if peer is None else "plain torch" + (", scalar critics" if net == DEFAULT else ""),
                peak.num_bytes,
                rows,
                "rows of the minibatch, all heads",
                note,
            )
        )
    return lines


def make_learner(net: str, m: int, batch: int, device: str, mixed_precision: bool, num_envs: int) -> PQL:
    """Return a learner of ``m`` heads with 32 random steps in its replay memory."""
    hidden = list(NETS[net])
    plain = {} if net == DEFAULT else {"layer_norm": False, "kind": "scalar"}
    cfg = PQLCfg(
        batch_size=batch,
        replay_capacity=64 * num_envs,
        warmup_steps=1,
        value_updates_per_step=ROUND[0],
        policy_delay=ROUND[0] // ROUND[1],
        mixed_precision=mixed_precision,
        normalize_returns=net == DEFAULT,
        critic=QEnsembleCfg(hidden=hidden, activation="relu", **plain),
    )
    shape = PopulationActorCfg(trunk=hidden[:2], adapter_dim=hidden[2], obs_normalization=True)
    actor = PopulationActor(_NUM_OBS, _NUM_ACTIONS, m, shape)
    learner = PQL(actor, cfg, num_envs, {"policy": _NUM_OBS}, device)
    for _ in range(32):
        learner.replay.write(**random_step(num_envs, device))
    return learner


def random_step(
    num_envs: int, device: torch.device | str, num_obs: int = _NUM_OBS, num_actions: int = _NUM_ACTIONS
) -> dict[str, Any]:
    """Return the arguments of ``ReplayBuffer.write`` for one random step; one episode in twenty ends."""
    draw = torch.rand(num_envs, device=device)
    obs = TensorDict({"policy": torch.randn(num_envs, num_obs, device=device)}, [num_envs])
    return {
        "obs": obs,
        "actions": torch.rand(num_envs, num_actions, device=device) * 2.0 - 1.0,
        "rewards": draw,
        "terminated": draw < 0.025,
        "time_outs": draw > 0.975,
        "next_obs": obs,
        "final_obs": obs,
        "valid": torch.ones(num_envs, dtype=torch.bool, device=device),
    }


def _round(learner: PQL, step: Mapping[str, Any]) -> None:
    learner.observe(Step(**step))
    learner.update()


def _peers(net: str, learner: PQL, device: str, mixed_precision: bool) -> dict[str, Work]:
    """Return the same updates in plain torch, one head after the other, of rows drawn from the same replay memory."""
    heads = [PlainTD3(_NUM_OBS, _NUM_ACTIONS, NETS[net], device, mixed_precision) for _ in range(learner.num_policies)]

    def critics() -> None:
        batch = learner.sample()
        obs, after = batch.obs["policy"], batch.next_obs["policy"]
        for i, head in enumerate(heads):
            head.value_update(obs[i], batch.actions[i], batch.rewards[i], after[i], batch.discounts[i])

    def policies() -> None:
        obs = learner.sample().obs["policy"]
        for i, head in enumerate(heads):
            head.policy_update(obs[i])

    return {"plain critic update": critics, "plain policy update": policies}


def _floors(net: str, rows: int, learner: PQL, item: int) -> dict[str, tuple[float, float]]:
    """Return arithmetic [FLOP] and bytes [B] of each work; ``item`` is the size of an activation [B]."""
    atoms = learner.critic.cfg.num_atoms if learner.critic.cfg.kind == "categorical" else 1
    updates = Updates(_NUM_OBS, _NUM_ACTIONS, NETS[net], atoms)
    row = FLOAT_BYTES * (2 * _NUM_OBS + _NUM_ACTIONS + 3)  # rewards, discounts and weights
    critics = sum(p.numel() for p in learner.critic.parameters())
    policies = sum(p.numel() for p in learner.actor.parameters())
    critic = updates.critic_flops(rows), updates.critic_bytes(rows, row, critics, item)
    policy = updates.policy_flops(rows), updates.policy_bytes(rows, policies, item)
    values, actors = ROUND
    flops, moved = (values * c + actors * p for c, p in zip(critic, policy, strict=True))
    step = 2.0 * learner.num_envs * FLOAT_BYTES * (_NUM_OBS + _NUM_ACTIONS + 1)  # read, and written to the memory
    return {"critic update": critic, "policy update": policy, "round": (flops, moved + step)}


def _note(flops: float, timing: Timing, rates: Rates, kernels: int) -> str:
    note = f"{flops / 1e9:.1f} GFLOP at {flops / timing.median_s / 1e9:,.0f} of {rates.flops / 1e9:,.0f} GFLOP/s"
    if not kernels:
        return note
    least = rates.launches(kernels)
    return f"{note}; {kernels} kernels, launched in {1e6 * least:.0f} us at least ({least / timing.median_s:.0%})"
