"""What Isaac Lab's scene spawns: our robots and arenas. Importable before a simulator runs, without USD."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, asdict
from typing import Any

from isaaclab.sim.spawners import SpawnerCfg
from isaaclab.utils import configclass

from myriad_lab.envs.contract import ActionSpec
from myriad_lab.envs.robot import RobotCfg


@configclass
class RobotSpawnerCfg(SpawnerCfg):
    """Spawns a robot from its MJCF."""

    func: Callable | str = "myriad_lab.envs.isaaclab.spawn:spawn_robot"
    robot: Any = MISSING
    """The robot, a dictionary by ``robot_to_dict``: Isaac Lab writes into everything that its configurations hold."""
    contact_sensors: bool = False
    """Whether the bodies report their contacts."""


@configclass
class ArenaSpawnerCfg(SpawnerCfg):
    """Spawns ground and walls."""

    func: Callable | str = "myriad_lab.envs.isaaclab.spawn:spawn_arena"
    arena: Any = MISSING
    """The place, a dictionary by ``Arena.to_dict``."""
    ground: bool = True
    """Whether the ground is part of it, and not only what stands on it."""


def robot_to_dict(robot: RobotCfg) -> dict[str, Any]:
    """Return the robot as plain containers."""
    return asdict(robot)


def robot_from_dict(data: dict[str, Any]) -> RobotCfg:
    """Rebuild a robot from ``robot_to_dict``."""
    return RobotCfg(**{**data, "action": ActionSpec(**data["action"])})
