"""Run along +x as fast as possible: the dense task of ant and humanoid."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from myriad_lab.envs.contract import TermSpec
from myriad_lab.envs.robot import RobotCfg
from myriad_lab.envs.robot_state import RobotState
from myriad_lab.envs.rotations import rotation_matrix
from myriad_lab.tasks.locomotion.base import FEATURES, LocomotionCfg, LocomotionTask


@dataclass
class RunTaskCfg(LocomotionCfg):
    """Weights of the reward per control step; the target lies infinitely far along +x."""

    progress_weight: float = 1.0
    """Per metre a second towards the target."""
    alive_weight: float = 0.5
    """For every step that does not end the episode."""
    up_weight: float = 0.1
    """While the up projection is above ``up_threshold``."""
    up_threshold: float = 0.93
    """Cosine of the tilt."""
    heading_weight: float = 0.5
    """While the heading projection is above ``heading_threshold``, proportionally less below it."""
    heading_threshold: float = 0.8
    """Cosine of the angle between the robot's x axis and the target."""
    action_cost: float = 0.005
    """Per sum of squared actions."""
    energy_cost: float = 0.05
    """Per sum of |action x joint velocity x joint_vel_scale|."""
    joint_vel_scale: float = 0.1
    """Scale of joint velocities in observation and energy cost [s/rad]."""
    death_cost: float = 2.0
    """At a fall."""
    min_height: float = 0.3
    """A base below it has fallen [m]."""


class RunTask(LocomotionTask):
    """Reward = progress + alive + up + heading - action - energy - death; the episode ends at a fall."""

    cfg: RunTaskCfg

    def __init__(self, cfg: RunTaskCfg, robot: RobotCfg) -> None:
        super().__init__(cfg, robot)

    def bind(self, num_envs: int, device: torch.device | str) -> None:
        """Put the constants on the device."""
        super().bind(num_envs, device)
        self._one = torch.ones(1, device=device)
        self._projection = -2.0 * torch.tensor([[0, 0], [1, 0], [1, 1], [0, 1]], dtype=torch.float32, device=device)

    def observation_terms(self) -> dict[str, tuple[TermSpec, ...]]:
        """Return the terms; ``policy`` and ``critic`` are the same."""
        joints = (len(self.robot.joint_names),)
        terms = (
            TermSpec("root_height", (1,), "m"),
            TermSpec("lin_vel_b", (3,), "m/s"),
            TermSpec("ang_vel_b", (3,), "rad/s"),
            TermSpec("yaw", (1,), "rad"),
            TermSpec("roll", (1,), "rad"),
            TermSpec("angle_to_target", (1,), "rad"),
            TermSpec("up_projection", (1,)),
            TermSpec("heading_projection", (1,)),
            TermSpec("joint_pos", joints, "rad", offset=self.robot.default_joint_pos),
            TermSpec("joint_vel_scaled", joints, "rad/s", scale=(self.cfg.joint_vel_scale,) * joints[0]),
            TermSpec("actions", (len(self.robot.action.names),), description="last output of the policy"),
        )
        return {"policy": terms, "critic": terms, "features": FEATURES}

    def observe(self, state: RobotState) -> dict[str, dict[str, torch.Tensor]]:
        """Return the terms of ``policy`` and ``critic``."""
        to_world = rotation_matrix(state.root_quat_w)
        velocities_w = torch.stack((state.root_lin_vel_w, state.root_ang_vel_w), dim=1)
        velocities_b = torch.bmm(velocities_w, to_world)
        # Yaw and roll for angles about z, y, x in this order: entries (1, 0) and (2, 1) over (0, 0) and (2, 2).
        entries = to_world.view(-1, 9)
        angles = torch.atan2(entries[:, 3:8:4], entries[:, ::8])
        terms = {
            "root_height": state.root_pos_w[:, 2:],
            "lin_vel_b": velocities_b[:, 0],
            "ang_vel_b": velocities_b[:, 1],
            "yaw": angles[:, :1],
            "roll": angles[:, 1:],
            "angle_to_target": -angles[:, :1],
            "up_projection": to_world[:, 2, 2:],
            "heading_projection": to_world[:, 0, :1],
            "joint_pos": state.joint_pos - self._default_joint_pos,
            "joint_vel_scaled": state.joint_vel * self.cfg.joint_vel_scale,
            "actions": state.actions,
        }
        return {"policy": terms, "critic": terms}

    def reward(self, state: RobotState) -> dict[str, torch.Tensor]:
        """Return the weighted terms, each (num_envs,)."""
        cfg = self.cfg
        # 1 - 2 (x^2 + y^2) and 1 - 2 (y^2 + z^2): how far the body's z axis points up and its x axis along the world's.
        projections = torch.addmm(self._one, state.root_quat_w.square(), self._projection)
        fallen = self.terminated(state)
        effort = (state.actions * state.joint_vel).abs().sum(1)
        return {
            "progress": cfg.progress_weight * state.root_lin_vel_w[:, 0],
            "alive": cfg.alive_weight * ~fallen,
            "up": cfg.up_weight * (projections[:, 0] > cfg.up_threshold),
            "heading": cfg.heading_weight * (projections[:, 1] / cfg.heading_threshold).clamp(max=1.0),
            "action": -cfg.action_cost * state.actions.square().sum(1),
            "energy": -cfg.energy_cost * cfg.joint_vel_scale * effort,
            "death": -cfg.death_cost * fallen,
        }

    def terminated(self, state: RobotState) -> torch.Tensor:
        """Return where the base is too low."""
        return state.root_pos_w[:, 2] < self.cfg.min_height
