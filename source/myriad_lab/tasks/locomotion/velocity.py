"""``Myriad-Velocity-Quadruped``: follow velocity commands; the reference for the export contract."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from myriad_lab.envs.contract import TermSpec
from myriad_lab.envs.robot import RobotCfg, reach_joint_limits
from myriad_lab.envs.robot_state import RobotState
from myriad_lab.envs.rotations import rotation_matrix
from myriad_lab.errors import ConfigurationError
from myriad_lab.tasks.locomotion.base import FEATURES, LocomotionCfg, LocomotionTask
from myriad_lab.tasks.locomotion.robots.robots import QUADRUPED
from myriad_lab.tasks.ranges import check_numbers
from myriad_lab.tasks.registry import TaskEntry, register

CONTACT_THRESHOLD = 1.0
"""A foot that feels more is on the ground [N]."""


@dataclass
class VelocityCfg(LocomotionCfg):
    """Commands and weights; reward terms are rates, multiplied by the control period."""

    episode_steps: int = 1200
    """Control steps until the time-out."""
    joint_vel_noise: float = 0.0
    """Half-width of the uniform noise on the start joint velocities [rad/s]."""
    yaw_noise: float = 3.14159
    """Half-width of the uniform noise on the start heading [rad]."""
    joint_limit_actions: bool = False
    """Whether actions of -1 and 1 reach the farther limit of each joint, instead of the scale of the robot."""
    command_low: list[float] = field(default_factory=lambda: [-0.8, -0.4, -1.0])
    """Lowest forward velocity [m/s], leftward velocity [m/s] and yaw rate [rad/s] commanded."""
    command_high: list[float] = field(default_factory=lambda: [1.2, 0.4, 1.0])
    """Highest of the same."""
    command_steps: int = 400
    """Control steps between two draws of the command."""
    standing_share: float = 0.1
    """Share of draws that command to stand still."""
    linear_weight: float = 2.0
    """Tracking of the planar velocity, exp(-error^2 / tracking_width)."""
    angular_weight: float = 1.0
    """Tracking of the yaw rate, likewise."""
    tracking_width: float = 0.25
    """Squared error at which tracking falls to 1/e."""
    vertical_cost: float = 2.0
    """Per squared vertical velocity."""
    tilt_rate_cost: float = 0.05
    """Per squared roll and pitch rate."""
    tilt_cost: float = 2.0
    """Per squared sine of the tilt."""
    torque_cost: float = 2.0e-4
    """Per sum of squared torques."""
    action_rate_cost: float = 0.02
    """Per sum of squared differences of actions."""
    air_time_weight: float = 1.0
    """Per foot that lands, times (time in the air - air_time_target)."""
    air_time_target: float = 0.2
    """Time in the air that is worth nothing [s]."""
    fall_cost: float = 1.0
    """At a fall, once."""
    min_up: float = 0.5
    """A trunk whose up projection is lower has fallen."""

    def validate(self) -> None:
        """Check the numbers and the commands.

        Raises:
            ConfigurationError: One out of range, not three bounds, or a low one above its high one.
        """
        super().validate()
        check_numbers(self, counts=("command_steps",), positive=("tracking_width",))
        low, high = self.command_low, self.command_high
        if len(low) != 3 or len(high) != 3 or any(a > b for a, b in zip(low, high, strict=True)):
            raise ConfigurationError(
                f"command_low={list(low)} and command_high={list(high)} must be three bounds each, low <= high: "
                "forward and leftward velocity [m/s], yaw rate [rad/s]."
            )


class VelocityTask(LocomotionTask):
    """Track commanded forward, leftward and yaw velocity with small effort."""

    cfg: VelocityCfg

    def __init__(self, cfg: VelocityCfg, robot: RobotCfg = QUADRUPED) -> None:
        super().__init__(cfg, reach_joint_limits(robot) if cfg.joint_limit_actions else robot)

    def observation_terms(self) -> dict[str, tuple[TermSpec, ...]]:
        """Return the terms; the critic also sees base velocity and contact forces."""
        joints = (len(self.robot.joint_names),)
        policy = (
            TermSpec("ang_vel_b", (3,), "rad/s"),
            TermSpec("projected_gravity", (3,)),
            TermSpec("command", (3,), "m/s, m/s, rad/s"),
            TermSpec("joint_pos_rel", joints, "rad", offset=self.robot.default_joint_pos),
            TermSpec("joint_vel", joints, "rad/s"),
            TermSpec("last_action", (len(self.robot.action.names),), description="last output of the policy"),
        )
        privileged = (TermSpec("lin_vel_b", (3,), "m/s"), TermSpec("contacts", (len(self.robot.contact_bodies),)))
        return {"policy": policy, "critic": (*policy, *privileged), "features": FEATURES}

    def bind(self, num_envs: int, device: torch.device | str) -> None:
        """Allocate commands and air times."""
        super().bind(num_envs, device)
        self._low = torch.tensor(self.cfg.command_low, device=device)
        self._span = torch.tensor(self.cfg.command_high, device=device) - self._low
        num_feet = len(self.robot.contact_bodies)
        self.command = self.rewarded_command = torch.zeros(num_envs, 3, device=device)
        self._command_age = torch.zeros(num_envs, dtype=torch.long, device=device)
        self._air_time = torch.zeros(num_envs, num_feet, device=device)
        self._landed_after = torch.zeros(num_envs, num_feet, device=device)

    def observe(self, state: RobotState) -> dict[str, dict[str, torch.Tensor]]:
        """Return the terms of ``policy`` and ``critic``."""
        lin_vel_b, ang_vel_b, gravity_b = self._body_frame(state)
        policy = {
            "ang_vel_b": ang_vel_b,
            "projected_gravity": gravity_b,
            "command": self.command,
            "joint_pos_rel": state.joint_pos - self._default_joint_pos,
            "joint_vel": state.joint_vel,
            "last_action": state.actions,
        }
        contacts = (state.contact_forces > CONTACT_THRESHOLD).float()
        return {"policy": policy, "critic": {**policy, "lin_vel_b": lin_vel_b, "contacts": contacts}}

    def reward(self, state: RobotState) -> dict[str, torch.Tensor]:
        """Return the weighted terms, each (num_envs,)."""
        cfg, dt = self.cfg, self.robot.control_period
        lin_vel_b, ang_vel_b, gravity_b = self._body_frame(state)
        command = self.rewarded_command
        linear_error = (command[:, :2] - lin_vel_b[:, :2]).square().sum(1)
        angular_error = (command[:, 2] - ang_vel_b[:, 2]).square()
        # A landing counts where the foot has left the ground since the last one and the robot is told to move.
        air = ((self._landed_after - cfg.air_time_target) * (self._landed_after > 0)).sum(1)
        moving = command.square().sum(1) > 0.01
        return {
            "linear": dt * cfg.linear_weight * torch.exp(-linear_error / cfg.tracking_width),
            "angular": dt * cfg.angular_weight * torch.exp(-angular_error / cfg.tracking_width),
            "vertical": -dt * cfg.vertical_cost * lin_vel_b[:, 2].square(),
            "tilt_rate": -dt * cfg.tilt_rate_cost * ang_vel_b[:, :2].square().sum(1),
            "tilt": -dt * cfg.tilt_cost * gravity_b[:, :2].square().sum(1),
            "torque": -dt * cfg.torque_cost * state.joint_torques.square().sum(1),
            "action_rate": -dt * cfg.action_rate_cost * (state.actions - state.previous_actions).square().sum(1),
            "air_time": cfg.air_time_weight * dt * air * moving,
            "fall": -cfg.fall_cost * (gravity_b[:, 2] > -cfg.min_up),
        }

    def terminated(self, state: RobotState) -> torch.Tensor:
        """Return where the trunk has tipped over."""
        squares = state.root_quat_w.square()
        return 1.0 - 2.0 * (squares[:, 1] + squares[:, 2]) < self.cfg.min_up

    def on_reset(self, env_ids: torch.Tensor, generator: torch.Generator) -> None:
        """Draw new commands; all feet start on the ground."""
        self.command[env_ids] = self._draw(len(env_ids), generator)
        self._command_age[env_ids] = 0
        self._air_time[env_ids] = 0.0
        self._landed_after[env_ids] = 0.0

    def on_step(self, state: RobotState, generator: torch.Generator) -> None:
        """Advance commands and air times; the step is rewarded for the command that its action was chosen under."""
        self.rewarded_command = self.command
        self._command_age += 1
        due = self._command_age >= self.cfg.command_steps
        # Drawn for every robot, so that nothing on the host depends on who is due.
        self.command = torch.where(due.unsqueeze(1), self._draw(len(due), generator), self.command)
        self._command_age.masked_fill_(due, 0)
        contact = state.contact_forces > CONTACT_THRESHOLD
        self._landed_after = self._air_time * contact
        self._air_time = (self._air_time + self.robot.control_period) * ~contact

    def state_dict(self) -> dict[str, Any]:
        """Return commands and air times."""
        return {name: getattr(self, name).clone() for name in _BUFFERS}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore commands and air times."""
        for name in _BUFFERS:
            buffer = getattr(self, name)
            setattr(self, name, state[name].to(buffer.device, copy=True))

    def _draw(self, num: int, generator: torch.Generator) -> torch.Tensor:
        """Return new commands, (num, 3)."""
        uniform = torch.rand(num, 4, generator=generator, device=self._low.device)
        return (self._low + uniform[:, :3] * self._span) * (uniform[:, 3:] >= self.cfg.standing_share)

    def _body_frame(self, state: RobotState) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return linear velocity, angular velocity and the direction of gravity in the body frame, each (n, 3)."""
        to_world = rotation_matrix(state.root_quat_w)
        velocities_w = torch.stack((state.root_lin_vel_w, state.root_ang_vel_w), dim=1)
        velocities_b = torch.bmm(velocities_w, to_world)
        return velocities_b[:, 0], velocities_b[:, 1], -to_world[:, 2]


_BUFFERS = ("command", "_command_age", "_air_time", "_landed_after")


def register_velocity() -> None:
    """Register ``Myriad-Velocity-Quadruped``."""
    register(
        TaskEntry(
            id="Myriad-Velocity-Quadruped",
            family="locomotion",
            backends=("mujoco", "mujoco_warp", "isaaclab"),
            cfg=VelocityCfg(),
            make_task=VelocityTask,
            description="Quadruped, 12 joint position targets: follow velocity commands.",
            default_num_envs=1024,
        )
    )
