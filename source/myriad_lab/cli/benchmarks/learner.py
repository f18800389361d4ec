"""Updates of PQL against their floor: FLOPs at the GEMM peak, or bytes at the copy rate, of the same run."""

from __future__ import annotations

import itertools

import torch

from myriad_lab.algorithms.pql import PQL, PQLCfg
from myriad_lab.cli.benchmarks.line import BenchmarkLine, measure
from myriad_lab.networks.population import PopulationActor, PopulationActorCfg
from myriad_lab.networks.q_ensemble import QEnsembleCfg

_NUM_OBS, _NUM_ACTIONS = 88, 16
_HIDDEN = [512, 256, 128]


def run(device: str, quick: bool) -> list[BenchmarkLine]:
    """Time one critic and one policy update, 88 observations and 16 actions, nets 512-256-128.

    Args:
        device: Where to run.
        quick: Small sizes, few repetitions.
    """
    sizes = [(1, 256), (4, 64)] if quick else [(1, 2048), (1, 8192), (8, 1024), (32, 256)]
    repetitions = 3 if quick else 15
    rows = max(m * batch for m, batch in sizes)
    peak, rate = gemm_peak(device, rows, repetitions), copy_rate(device, 2**22 if quick else 2**26, repetitions)
    lines = []
    for num_policies, batch in sizes:
        learner = _learner(num_policies, batch, device)
        sample = learner.sample()
        critic_flops, policy_flops = update_flops(num_policies * batch)
        pair = sum(p.numel() for p in learner.critic.parameters())
        policy = sum(p.numel() for p in learner.actor.parameters())
        width = 4 * sum(_HIDDEN) * num_policies * batch
        row = 4 * (2 * _NUM_OBS + _NUM_ACTIONS + 4) * num_policies * batch
        for name, work, flops, moved in (
            ("critic update", learner.value_update, critic_flops, row + 4 * width + 40 * pair),
            ("policy update", learner.policy_update, policy_flops, row + 2 * width + 28 * policy),
        ):
            median, p95 = measure(lambda work=work, sample=sample: work(sample), repetitions, 2, device)
            floor, peer = max((flops / peak, "GEMM floor"), (moved / rate, "byte floor"))
            note = f"{flops / 1e9:.2f} GFLOP, {flops / median / 1e9:.0f} of {peak / 1e9:.0f} GFLOP/s"
            lines.append(BenchmarkLine(name, f"{num_policies} heads x {batch}", median, p95, floor, peer, note))
    return lines


def update_flops(rows: int) -> tuple[int, int]:
    """Return the FLOPs of a critic and of a policy update on ``rows`` rows, twin critics and policy of equal widths.

    Critic: policy and two target heads forward, two online heads forward and backward without the gradient of their
    input. Policy: forward and backward of the policy, and of both critics towards the action alone.
    """
    first = _HIDDEN[0]
    policy = _layer_flops([_NUM_OBS, *_HIDDEN, _NUM_ACTIONS])
    critic = _layer_flops([_NUM_OBS + _NUM_ACTIONS, *_HIDDEN, 1])
    critic_update = policy + 4 * critic + 2 * (2 * critic - 2 * (_NUM_OBS + _NUM_ACTIONS) * first)
    policy_update = 3 * policy - 2 * _NUM_OBS * first + 2 * critic + 2 * (critic - 2 * _NUM_OBS * first)
    return rows * critic_update, rows * policy_update


def gemm_peak(device: str, rows: int, repetitions: int) -> float:
    """Return the rate of one float32 matmul of about the shape of the largest layer [FLOP/s]."""
    a, b = torch.randn(rows, 512, device=device), torch.randn(512, 512, device=device)
    median, _ = measure(lambda: torch.mm(a, b), repetitions, 2, device)
    return 2 * rows * 512 * 512 / median


def copy_rate(device: str, num_bytes: int, repetitions: int) -> float:
    """Return the rate of a copy that leaves the caches, read and write together [B/s]."""
    source = torch.zeros(num_bytes // 4, device=device)
    target = torch.zeros_like(source)
    median, _ = measure(lambda: target.copy_(source), repetitions, 2, device)
    return 2 * num_bytes / median


def _layer_flops(sizes: list[int]) -> int:
    return 2 * sum(a * b for a, b in itertools.pairwise(sizes))


def _learner(num_policies: int, batch: int, device: str) -> PQL:
    critic = QEnsembleCfg(hidden=_HIDDEN, layer_norm=False, activation="relu", obs_normalization=False)
    num_envs = 16 * num_policies
    cfg = PQLCfg(batch_size=batch, replay_capacity=64 * num_envs, critic=critic)
    shape = PopulationActorCfg(trunk=_HIDDEN[:2], adapter_dim=_HIDDEN[2])
    actor = PopulationActor(_NUM_OBS, _NUM_ACTIONS, num_policies, shape)
    learner = PQL(actor, cfg, num_envs, {"policy": _NUM_OBS}, device)
    fill(learner, 32)
    return learner


def fill(learner: PQL, steps: int) -> None:
    """Write random steps into the replay memory of a learner; one episode in twenty ends at each step."""
    for _ in range(steps):
        learner.replay.write(**random_step(learner.num_envs, learner.device))


def random_step(num_envs: int, device: torch.device | str, num_obs: int = _NUM_OBS) -> dict:
    """Return the arguments of ``ReplayBuffer.write`` for one random step."""
    draw = torch.rand(num_envs, device=device)
    none = {"policy": torch.randn(num_envs, num_obs, device=device)}
    return {
        "obs": none,
        "actions": torch.rand(num_envs, _NUM_ACTIONS, device=device) * 2.0 - 1.0,
        "rewards": draw,
        "terminated": draw < 0.025,
        "time_outs": draw > 0.975,
        "next_obs": none,
        "final_obs": none,
        "valid": torch.ones(num_envs, dtype=torch.bool, device=device),
    }
