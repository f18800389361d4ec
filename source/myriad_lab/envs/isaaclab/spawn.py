"""The functions behind ``spawners``: they need USD and a stage, so they are loaded when a scene is made."""

from __future__ import annotations

from typing import Any

from isaaclab.sim.schemas import activate_contact_sensors
from isaaclab.sim.utils import clone, create_prim, get_current_stage
from pxr import Usd

from myriad_lab.envs.arena import Arena
from myriad_lab.envs.isaaclab.arena_usd import write_arena
from myriad_lab.envs.isaaclab.robot_usd import write_robot
from myriad_lab.envs.isaaclab.spawners import ArenaSpawnerCfg, RobotSpawnerCfg, robot_from_dict

Vector = tuple[float, float, float]
Quaternion = tuple[float, float, float, float]


@clone
def spawn_robot(
    prim_path: str,
    cfg: RobotSpawnerCfg,
    translation: Vector | None = None,
    orientation: Quaternion | None = None,
    **_: Any,
) -> Usd.Prim:
    """Spawn a robot at ``translation`` [m] and ``orientation`` (x, y, z, w) in the frame of the parent prim."""
    prim = create_prim(prim_path, "Xform", translation=translation, orientation=orientation)
    write_robot(get_current_stage(), prim_path, robot_from_dict(cfg.robot))
    if cfg.contact_sensors:
        activate_contact_sensors(prim_path)
    return prim


@clone
def spawn_arena(
    prim_path: str,
    cfg: ArenaSpawnerCfg,
    translation: Vector | None = None,
    orientation: Quaternion | None = None,
    **_: Any,
) -> Usd.Prim:
    """Spawn an arena at ``translation`` [m] and ``orientation`` (x, y, z, w) in the frame of the parent prim."""
    prim = create_prim(prim_path, "Xform", translation=translation, orientation=orientation)
    write_arena(get_current_stage(), prim_path, Arena.from_dict(cfg.arena), ground=cfg.ground)
    return prim
