"""What all locomotion tasks share: open ground, starts around the default pose, features x, y."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from myriad_lab.envs.arena import Arena
from myriad_lab.envs.constants import constant
from myriad_lab.envs.contract import TermSpec
from myriad_lab.envs.mujoco_warp.cfg import CapacityCfg
from myriad_lab.envs.robot import RobotCfg
from myriad_lab.envs.robot_state import InitialState, RobotState
from myriad_lab.envs.rotations import quat_from_yaw
from myriad_lab.tasks.ranges import check_numbers

GROUND = Arena("ground", (-20.0, 20.0, -20.0, 20.0))
"""Flat, open ground; the extent only frames maps, robots may leave it."""


@dataclass
class LocomotionCfg:
    """Fields shared by all locomotion tasks."""

    episode_steps: int = 1000
    """Control steps until the time-out."""
    joint_noise: float = 0.1
    """Half-width of the uniform noise on the start joint positions [rad]."""
    joint_vel_noise: float = 0.1
    """Half-width of the uniform noise on the start joint velocities [rad/s]."""
    yaw_noise: float = 0.0
    """Half-width of the uniform noise on the start heading [rad]."""
    capacity: CapacityCfg = field(default_factory=CapacityCfg)
    """Room for contacts on backend ``mujoco_warp``."""

    def validate(self) -> None:
        """Raise ``ConfigurationError`` where a number is out of range."""
        self.capacity.validate()
        check_numbers(self, counts=("episode_steps",), not_negative=("joint_noise", "joint_vel_noise", "yaw_noise"))


class LocomotionTask:
    """Base of the locomotion tasks; a task adds its observations, rewards and ends."""

    arena = GROUND

    def __init__(self, cfg: LocomotionCfg, robot: RobotCfg) -> None:
        cfg.validate()
        self.cfg = cfg
        self.robot = robot

    def bind(self, num_envs: int, device: torch.device | str) -> None:
        """Put the constants on the device."""
        self._default_joint_pos = torch.tensor(self.robot.default_joint_pos, device=device)

    def features(self, state: RobotState) -> torch.Tensor:
        """Return the position of the base x, y [m], shape (num_envs, 2)."""
        return state.root_pos_w[:, :2]

    def success(self, state: RobotState) -> torch.Tensor | None:
        """Return ``None``: there is no goal."""
        return None

    def reset_distribution(self, num: int, generator: torch.Generator) -> InitialState:
        """Draw upright robots at the origin, at rest but for the noise of the configuration."""
        device, cfg = generator.device, self.cfg
        joints = constant(tuple(self.robot.default_joint_pos), device)
        num_joints = len(joints)
        uniform = 2.0 * torch.rand(num, 2 * num_joints + 1, generator=generator, device=device) - 1.0
        still = torch.zeros(num, 3, device=device)
        position = torch.zeros(num, 3, device=device)
        position[:, 2] = self.robot.start_height
        return InitialState(
            root_pos_w=position,
            root_quat_w=quat_from_yaw(cfg.yaw_noise * uniform[:, -1]),
            root_lin_vel_w=still,
            root_ang_vel_w=still,
            joint_pos=joints + cfg.joint_noise * uniform[:, :num_joints],
            joint_vel=cfg.joint_vel_noise * uniform[:, num_joints:-1],
        )

    def on_reset(self, env_ids: torch.Tensor, generator: torch.Generator) -> None:
        """Nothing to refresh."""
        return

    def on_step(self, state: RobotState, generator: torch.Generator) -> None:
        """Nothing to advance."""
        return

    def state_dict(self) -> dict[str, Any]:
        """Return no buffers."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore no buffers."""
        return


FEATURES = (TermSpec("root_xy", (2,), "m"),)
"""The group ``features`` of every locomotion task."""
