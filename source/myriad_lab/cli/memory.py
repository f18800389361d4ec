"""What a training run will hold in memory, found out before anything of it is allocated."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from myriad_lab.cli.benchmarks.memory import free_bytes
from myriad_lab.distributed.process_group import Place

if TYPE_CHECKING:
    from myriad_lab.cli.plan import TrainPlan

_ALONE = Place()
_INSTEAD = {"update": "more agent.num_minibatches", "replay memory": "a smaller agent.replay_capacity"}
"""What makes a part smaller, beside fewer envs."""


@dataclass(frozen=True)
class MemoryPart:
    """One of the large allocations of a run."""

    what: str
    """What it is."""
    size: int
    """Its size [bytes]."""
    detail: str = ""
    """How it comes about."""


def memory_of(plan: TrainPlan, world_size: int = 1) -> list[MemoryPart]:
    """Return the large allocations of a rank whose size the plan tells; of tasks of Isaac Lab it tells none.

    Networks, optimisers and what a minibatch of PQL takes for a moment are not among them.

    Args:
        plan: The run.
        world_size: Ranks that share its envs and policies.
    """
    task = plan.env.task
    if task is None:
        return []
    sizes = {group: sum(math.prod(term.shape) for term in terms) for group, terms in task.observation_terms().items()}
    share = _Share((plan.run.num_envs or 1) // world_size, (plan.run.num_policies or 1) // world_size)
    parts = [_simulator(plan, share)] if plan.run.backend == "mujoco_warp" else []
    num_actions = len(task.robot.action.names)
    if plan.run.algorithm == "kmyriad":
        parts.append(_rollout(plan, share, sizes, num_actions))
        if plan.agent_cfg.num_epochs > 1:
            parts.append(_update(plan, share, sizes, num_actions))
    elif plan.run.algorithm == "pql":
        parts.append(_replay(plan, share, sizes, num_actions))
    return parts


def memory_lines(plan: TrainPlan, place: Place = _ALONE) -> list[str]:
    """Return what ``memory_of`` finds as lines of text, beside what is free; none where it finds nothing.

    Args:
        plan: The run.
        place: Which of the ranks of the run this is; the only one by default.
    """
    parts = memory_of(plan, place.world_size)
    if not parts:
        return []
    total, free = sum(part.size for part in parts), free_bytes(plan.run.device)
    if free is not None and plan.run.device == "cpu":
        free //= place.local_world_size
    lines = [f"  {part.what:<14} {_gib(part.size)}  {part.detail}" for part in parts]
    last = f"  {'together':<14} {_gib(total)}"
    if free is not None:
        last += f"  of {_gib(free).strip()} that are free"
        instead = " or ".join(["fewer envs", *(_INSTEAD[part.what] for part in parts if part.what in _INSTEAD)])
        last += "" if total < free else f"; it will not fit: take {instead}"
    each = f", each of {place.world_size} ranks" if place.world_size > 1 else ""
    return [
        f"memory for {plan.run.num_envs:,} envs on {plan.run.device}, before networks{each}:",
        *lines,
        last,
    ]


@dataclass(frozen=True)
class _Share:
    """What one rank has of a run."""

    num_envs: int
    num_policies: int


def _simulator(plan: TrainPlan, share: _Share) -> MemoryPart:
    from myriad_lab.envs.mujoco.model import build_model
    from myriad_lab.envs.mujoco_warp.capacity import capacity_of, footprint

    task = plan.env.task
    model = build_model(task.robot, task.arena)
    capacity = capacity_of(model, task.cfg.capacity)
    told = footprint(model, capacity)
    detail = (
        f"{told.per_env:,} bytes per env, and about {told.scratch_per_env:,} in a physics step; room for "
        f"{capacity.nconmax} contacts and {capacity.njmax} constraints per env"
    )
    return MemoryPart("simulator", told.total(share.num_envs), detail)


def _rollout(plan: TrainPlan, share: _Share, sizes: dict[str, int], num_actions: int) -> MemoryPart:
    steps = plan.env.episode_steps
    # observation, action before squashing, its log-probability, features; whether the step is valid
    row = 4 * (sizes["policy"] + num_actions + 1 + sizes["features"]) + 1
    return MemoryPart("rollout", steps * share.num_envs * row, f"{steps} steps of {row} bytes per env")


def _update(plan: TrainPlan, share: _Share, sizes: dict[str, int], num_actions: int) -> MemoryPart:
    cfg: Any = plan.agent_cfg
    rows = plan.env.episode_steps * share.num_envs
    # by policy: observation with the time, which is there twice for a moment, action before squashing, its
    # log-probability, rewards, values, advantages and returns, two of which are there twice; whether the step is valid
    row = 4 * (2 * (sizes["policy"] + 1) + num_actions + 7) + 1
    # policy and values of a minibatch, each with its gradient
    widths = 2 * (sum(cfg.actor.trunk) + cfg.actor.adapter_dim)
    minibatch = math.ceil(rows / cfg.num_minibatches)
    detail = f"{row} bytes per step and env, and minibatches of {minibatch:,} rows"
    return MemoryPart("update", rows * row + 4 * 2 * widths * minibatch, detail)


def _replay(plan: TrainPlan, share: _Share, sizes: dict[str, int], num_actions: int) -> MemoryPart:
    import torch

    from myriad_lab.runners.parallel_q_processes import guard_slots
    from myriad_lab.storage.replay import ReplayBuffer

    cfg: Any = plan.agent_cfg
    steps = max(cfg.n_step + 1, cfg.replay_capacity // (plan.run.num_envs or 1))
    cfg.check_groups(sizes)
    groups = {group: sizes[group] for group in ("policy", cfg.critic_group)}
    # on no device: it knows its size, and takes none
    place: Any = ("meta", getattr(torch, cfg.replay_dtype))
    slots = guard_slots(cfg, cfg.runner)
    memory = ReplayBuffer(steps, share.num_envs, share.num_policies, groups, num_actions, *place, guard_slots=slots)
    detail = f"{steps:,} steps per env, {memory.bytes_per_transition:.0f} bytes per transition"
    return MemoryPart("replay memory", memory.num_bytes, detail)


def _gib(size: int) -> str:
    return f"{size / 2**30:8.2f} GiB"
