"""The ``EnvSpec`` of an Isaac Lab env: its named observation terms, what its actions mean, its robot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from myriad_lab.envs.contract import ActionSpec, EnvSpec, TermSpec
from myriad_lab.envs.env_parts import robot_dict
from myriad_lab.envs.isaaclab.cfg import IsaacLabCfg
from myriad_lab.envs.isaaclab.features import Features
from myriad_lab.envs.robot import farther_limit
from myriad_lab.errors import ConfigurationError

_KINDS = {"position": ("position", "rad"), "effort": ("torque", "N m"), "velocity": ("velocity", "rad/s")}
"""Part of the name of a joint action class -> kind and unit."""


def make_spec(env: Any, task_id: str, features: Features | None, bounds: Sequence[float]) -> EnvSpec:
    """Describe the inner env.

    Args:
        env: ``DirectRLEnv`` or ``ManagerBasedRLEnv``.
        task_id: Registered id.
        features: The features chosen, ``None`` where they are the task's own.
        bounds: Action of the env that our action of 1 means, one per action.

    Returns:
        The specification of a task of ours is the task's own, whatever the simulator, but for features chosen.
    """
    task = task_of(env)
    common: dict[str, Any] = {
        "task": task_id,
        "control_period": float(env.step_dt),
        "max_episode_length": int(env.max_episode_length),
    }
    chosen = {} if features is None else {"features": features.terms}
    if task is not None:
        terms = {**task.observation_terms(), **chosen}
        return EnvSpec(observations=terms, action=task.robot.action, robot=robot_dict(task), **common)
    groups = {name: _terms(env, name, value) for name, value in env.obs_buf.items()}
    groups.setdefault("critic", groups["policy"])
    return EnvSpec(
        observations={**groups, **chosen},
        action=_action_spec(env, bounds),
        robot=_robot(env),
        # Isaac Lab's quaternions are x, y, z, w, and the observations of its tasks are left as they are.
        quat_order="xyzw",
        **common,
    )


def task_of(env: Any) -> Any:
    """Return the task of ours that an env of Isaac Lab runs, ``None`` for others, whatever they call ``task``."""
    task = getattr(env, "task", None)
    return task if hasattr(task, "observation_terms") else None


def _terms(env: Any, group: str, value: torch.Tensor) -> tuple[TermSpec, ...]:
    """Return the terms of a group; a direct task has none, its row is one term."""
    manager = getattr(env, "observation_manager", None)
    if manager is None or group not in manager.active_terms:
        return (TermSpec(group, (value.shape[1],), description="row of a direct task, as the task defines it"),)
    configurations = manager._group_obs_term_cfgs[group]
    shapes = manager.group_obs_term_dim[group]
    named = zip(manager.active_terms[group], shapes, configurations, strict=True)
    return tuple(_term(name, tuple(shape), cfg) for name, shape, cfg in named)


def _term(name: str, shape: tuple[int, ...], cfg: Any) -> TermSpec:
    size = torch.Size(shape).numel()
    scale: tuple[float, ...] = ()
    if cfg.scale is not None:
        scale = tuple(torch.as_tensor(cfg.scale).float().expand(size).tolist())
    text = "" if cfg.clip is None else f"the quantity is clipped to {tuple(cfg.clip)} before it is scaled"
    if cfg.history_length:
        text = f"the last {cfg.history_length} samples, oldest first. {text}".strip()
    return TermSpec(name, shape, scale=scale, description=text)


def _action_spec(env: Any, bounds: Sequence[float]) -> ActionSpec:
    """Return what the actions mean: joints with scale and offset where the task has named action terms of that kind."""
    manager = getattr(env, "action_manager", None)
    size = num_actions(env)
    if manager is None:
        robot = env.scene.articulations.get("robot")
        # As many actions as joints: they drive the joints, in an order that differs from engine to engine.
        joints = () if robot is None else tuple(robot.joint_names)
        names = joints if len(joints) == size else tuple(f"action_{i}" for i in range(size))
        return ActionSpec(names, "task", "1", tuple(bounds), (0.0,) * size)
    names, kinds, scales, offsets = [], set(), [], []
    for name in manager.active_terms:
        term = manager.get_term(name)
        joints = list(getattr(term, "_joint_names", ()))
        kind = next((part for part in _KINDS if f"joint{part}action" == type(term).__name__.lower()), None)
        if kind is None or len(joints) != term.action_dim:
            kinds.add(("task", "1"))
            names += [f"{name}_{i}" for i in range(term.action_dim)]
            scales += [1.0] * term.action_dim
            offsets += [0.0] * term.action_dim
            continue
        kinds.add(_KINDS[kind])
        names += joints
        scales += _row(term._scale, term.action_dim)
        offsets += _row(term._offset, term.action_dim)
    scales = [bound * scale for bound, scale in zip(bounds, scales, strict=True)]
    kind, unit = kinds.pop() if len(kinds) == 1 else ("task", "1")
    return ActionSpec(tuple(names), kind, unit, tuple(scales), tuple(offsets))


def action_bounds(env: Any, cfg: IsaacLabCfg) -> list[float]:
    """Return the action of the env that our action of 1 means, one per action.

    Raises:
        ConfigurationError: Actions should reach the limits of joints, and some are no joint positions.
    """
    if not cfg.joint_limit_actions:
        return [cfg.action_bound] * num_actions(env)
    manager = getattr(env, "action_manager", None)
    terms: dict[str, Any] = {"the action of a direct task": None}
    if manager is not None:
        terms = {name: manager.get_term(name) for name in manager.active_terms}
    bounds = []
    for name, term in terms.items():
        if type(term).__name__ != "JointPositionAction":
            raise ConfigurationError(
                f"isaaclab.joint_limit_actions=true needs joint position actions, and {name} is none; leave it out"
            )
        limits = term._asset.data.soft_joint_pos_limits.torch[0, term._joint_ids].tolist()
        rows = zip(limits, _row(term._scale, len(limits)), _row(term._offset, len(limits)), strict=True)
        bounds += [farther_limit(low, high, offset) / scale for (low, high), scale, offset in rows]
    return bounds


def num_actions(env: Any) -> int:
    """Return the number of actions of the inner env."""
    manager = getattr(env, "action_manager", None)
    return action_size(env.single_action_space) if manager is None else int(manager.total_action_dim)


def action_size(space: Any) -> int:
    """Return how many numbers an action has.

    Raises:
        ConfigurationError: Actions are choices, and no numbers.
    """
    import gymnasium

    if not isinstance(space, gymnasium.spaces.Box):
        raise ConfigurationError(f"the actions are {space}; expected rows of numbers, discrete actions do not work yet")
    return gymnasium.spaces.flatdim(space)


def _row(value: Any, size: int) -> list[float]:
    """Return one number per action of a scale or offset that is a number, a row, or a row per env."""
    values = torch.as_tensor(value, dtype=torch.float32).detach().cpu()
    return (values[0] if values.dim() == 2 else values).expand(size).tolist()


def _robot(env: Any) -> dict[str, Any]:
    """Return joints, pose and gains of the articulation called ``robot``, or nothing."""
    robot = env.scene.articulations.get("robot")
    if robot is None:
        return {}
    data = robot.data
    return {
        "name": "robot",
        "joint_names": tuple(robot.joint_names),
        "default_joint_pos": tuple(data.default_joint_pos.torch[0].tolist()),
        "stiffness": _gains(robot, "stiffness", data.joint_stiffness.torch[0].tolist()),
        "damping": _gains(robot, "damping", data.joint_damping.torch[0].tolist()),
    }


def _gains(robot: Any, name: str, gains: list[float]) -> tuple[float, ...]:
    """Return one gain per joint: that of the task's actuators, and of the engine where they leave it to the asset.

    The engine alone would say 0 of a motor whose torque Isaac Lab computes itself.
    """
    for cfg in robot.cfg.actuators.values():
        asked = getattr(cfg, name)
        if asked is None:
            continue
        from isaaclab.utils.string import resolve_matching_names_values

        joints, joint_names = robot.find_joints(cfg.joint_names_expr)
        found, _, values = resolve_matching_names_values(
            asked if isinstance(asked, dict) else {".*": asked}, joint_names
        )
        for index, value in zip(found, values, strict=True):
            gains[joints[index]] = float(value)
    return tuple(gains)
