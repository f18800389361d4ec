"""What every env of a task needs, whoever steps it: joined observations, checked actions, the log of episodes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from myriad_lab.envs.task import Task
from myriad_lab.errors import BrokenPolicyError


def join_terms(groups: Mapping[str, Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Return each group of a task's observations as one tensor, ``(num_envs, size)``; equal groups share theirs."""
    joined: dict[int, torch.Tensor] = {}
    for terms in groups.values():
        if id(terms) not in joined:
            rows = [value if value.dim() == 2 else value.reshape(len(value), -1) for value in terms.values()]
            joined[id(terms)] = torch.cat(rows, dim=1)
    return {group: joined[id(terms)] for group, terms in groups.items()}


def episode_log(
    rewards: Mapping[str, torch.Tensor],
    ends: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    lengths: torch.Tensor,
    success: torch.Tensor | None,
) -> dict[str, torch.Tensor]:
    """Return the scalars of the episodes that end in a step.

    Args:
        rewards: Reward term -> mean of its sums over these episodes.
        ends: Where episodes terminated, ran out of time (diverged ones included), and diverged, bool.
        lengths: Control steps of these episodes, ``(num_ended,)``.
        success: Which of them reached the goal, bool ``(num_ended,)``; ``None`` for tasks without a goal.
    """
    terminated, time_outs, diverged = ends
    log = {f"Episode_Reward/{name}": value for name, value in rewards.items()}
    log["Episode_Termination/terminated"] = terminated.sum().float()
    log["Episode_Termination/time_out"] = (time_outs & ~diverged).sum().float()
    log["Episode_Termination/diverged"] = diverged.sum().float()
    log["Metrics/episode_length"] = lengths.float().mean()
    if success is not None:
        log["Metrics/success"] = success.float().mean()
    return log


def check_actions(actions: torch.Tensor, num_envs: int, num_actions: int, device: torch.device | str) -> torch.Tensor:
    """Return the actions on the device of the env, float32, clamped to [-1, 1].

    Raises:
        ValueError: The shape is wrong.
        BrokenPolicyError: An action is not a number; the message names the envs.
    """
    if actions.shape != (num_envs, num_actions):
        raise ValueError(f"actions have shape {tuple(actions.shape)}, not {(num_envs, num_actions)}.")
    # NaN survives a sum whatever the other entries are (inf - inf is NaN too, hence the second look).
    if math.isnan(actions.sum().item()):
        rows = torch.isnan(actions).any(1).nonzero().flatten().tolist()
        if rows:
            more = f" and {len(rows) - 8} more" if len(rows) > 8 else ""
            raise BrokenPolicyError(
                f"NaN in the actions of envs {rows[:8]}{more}: the policy broke before this step; lower its "
                "learning rate, or look for rewards or observations out of scale"
            )
    return actions.detach().to(device, torch.float32).clamp(-1.0, 1.0)


def robot_dict(task: Task) -> dict[str, Any]:
    """Return what a portfolio keeps of the robot: joints in order, default pose and gains."""
    robot = task.robot
    return {
        "name": robot.name,
        "joint_names": robot.joint_names,
        "default_joint_pos": robot.default_joint_pos,
        "stiffness": robot.stiffness,
        "damping": robot.damping,
    }
