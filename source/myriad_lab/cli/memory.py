"""What a training run will hold in memory, found out before anything of it is allocated."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from myriad_lab.cli.benchmarks.memory import free_bytes

if TYPE_CHECKING:
    from myriad_lab.cli.plan import TrainPlan


@dataclass(frozen=True)
class MemoryPart:
    """One of the large allocations of a run."""

    what: str
    """What it is."""
    size: int
    """Its size [bytes]."""
    detail: str = ""
    """How it comes about."""


def memory_of(plan: TrainPlan) -> list[MemoryPart]:
    """Return the large allocations whose size the plan tells; of tasks of Isaac Lab it tells none.

    Networks, optimisers and what an update takes for a moment (activations of a minibatch) are not among them.
    """
    task = plan.env.task
    if task is None:
        return []
    sizes = {group: sum(math.prod(term.shape) for term in terms) for group, terms in task.observation_terms().items()}
    parts = [_simulator(plan)] if plan.run.backend == "mujoco_warp" else []
    build = {"kmyriad": _rollout, "pql": _replay}.get(plan.run.algorithm)
    return parts if build is None else [*parts, build(plan, sizes, len(task.robot.action.names))]


def memory_lines(plan: TrainPlan) -> list[str]:
    """Return what ``memory_of`` finds as lines of text, beside what is free; none where it finds nothing."""
    parts = memory_of(plan)
    if not parts:
        return []
    total, free = sum(part.size for part in parts), free_bytes(plan.run.device)
    lines = [f"  {part.what:<14} {_gib(part.size)}  {part.detail}" for part in parts]
    last = f"  {'together':<14} {_gib(total)}"
    if free is not None:
        last += f"  of {_gib(free).strip()} that are free"
        last += "" if total < free else "; it will not fit: take fewer envs, or a smaller agent.replay_capacity"
    return [
        f"memory for {plan.run.num_envs:,} envs on {plan.run.device}, before networks and their updates:",
        *lines,
        last,
    ]


def _simulator(plan: TrainPlan) -> MemoryPart:
    from myriad_lab.envs.mujoco.model import build_model
    from myriad_lab.envs.mujoco_warp.capacity import capacity_of, footprint

    task, num_envs = plan.env.task, plan.run.num_envs or 0
    model = build_model(task.robot, task.arena)
    capacity = capacity_of(model, task.cfg.capacity)
    told = footprint(model, capacity)
    detail = (
        f"{told.per_env:,} bytes per env, and about {told.scratch_per_env:,} in a physics step; room for "
        f"{capacity.nconmax} contacts and {capacity.njmax} constraints per env"
    )
    return MemoryPart("simulator", told.total(num_envs), detail)


def _rollout(plan: TrainPlan, sizes: dict[str, int], num_actions: int) -> MemoryPart:
    steps, num_envs = plan.env.episode_steps, plan.run.num_envs or 0
    # observation, action before squashing, its log-probability, features; whether the step is valid
    row = 4 * (sizes["policy"] + num_actions + 1 + sizes["features"]) + 1
    return MemoryPart("rollout", steps * num_envs * row, f"{steps} steps of {row} bytes per env")


def _replay(plan: TrainPlan, sizes: dict[str, int], num_actions: int) -> MemoryPart:
    import torch

    from myriad_lab.runners.parallel_q_processes import guard_slots
    from myriad_lab.storage.replay import ReplayBuffer

    cfg: Any = plan.agent_cfg
    num_envs, num_policies = plan.run.num_envs or 1, plan.run.num_policies or 1
    steps = max(cfg.n_step + 1, cfg.replay_capacity // num_envs)
    groups = {group: sizes[group] for group in ("policy", cfg.critic_group)}
    # on no device: it knows its size, and takes none
    place: Any = ("meta", getattr(torch, cfg.replay_dtype))
    slots = guard_slots(cfg, cfg.runner.max_lead)
    memory = ReplayBuffer(steps, num_envs, num_policies, groups, num_actions, *place, guard_slots=slots)
    detail = f"{steps:,} steps per env, {memory.bytes_per_transition:.0f} bytes per transition"
    return MemoryPart("replay memory", memory.num_bytes, detail)


def _gib(size: int) -> str:
    return f"{size / 2**30:8.2f} GiB"
