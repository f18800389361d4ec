"""Point robots: a velocity command, walls to slide along, no inertia."""

from __future__ import annotations

from typing import Any

import torch

from myriad_lab.envs.arena import Arena
from myriad_lab.envs.robot import RobotCfg
from myriad_lab.envs.robot_state import InitialState, RobotState
from myriad_lab.envs.torch.collision import BoxCollider
from myriad_lab.errors import ConfigurationError


class PointSimulator:
    """A batch of point robots in one arena; position is the only state.

    Each control step moves a robot by ``control_period * (offset + scale * action)`` along x and y; boxes stop it.
    """

    def __init__(self, robot: RobotCfg, arena: Arena, num_envs: int, device: torch.device | str = "cpu") -> None:
        """Allocate the robots at the start of the arena.

        Raises:
            ConfigurationError: The start is inside a wall, or the robot's actions are delayed.
        """
        check_no_delay(robot)
        self.num_envs = num_envs
        self.device = torch.device(device)
        self._period = robot.control_period
        self._scale = torch.tensor(robot.action.scale, device=self.device) * self._period
        self._offset = torch.tensor(robot.action.offset, device=self.device) * self._period
        self._radius, self._arena = robot.radius, arena
        if not bool(arena.is_free(torch.tensor(arena.start), robot.radius)):
            raise ConfigurationError(f"Arena {arena.name!r}: the start {arena.start} is inside a wall.")
        max_step = float((self._scale.abs() + self._offset.abs()).max())
        self._collider = BoxCollider(arena, robot.radius, max_step, self.device)
        self._state = still_robots(num_envs, len(robot.action.names), self.device)
        self._state.root_pos_w[:, :2] = torch.tensor(arena.start, device=self.device)
        self._state.root_pos_w[:, 2] = robot.start_height

    def step(self, actions: torch.Tensor) -> torch.Tensor:
        """Advance one control step; the dynamics cannot diverge."""
        state = self._state
        before = state.root_pos_w[:, :2]
        after = self._collider.slide(before, torch.addcmul(self._offset, self._scale, actions))
        torch.sub(after, before, out=state.root_lin_vel_w[:, :2]).div_(self._period)
        before.copy_(after)
        state.previous_actions, state.actions = state.actions, state.previous_actions.copy_(actions)
        return torch.zeros(self.num_envs, dtype=torch.bool, device=self.device)

    def reset(self, env_ids: torch.Tensor, initial: InitialState) -> None:
        """Put robots at their initial positions, at rest."""
        state = self._state
        state.root_pos_w[env_ids] = initial.root_pos_w
        state.root_lin_vel_w[env_ids] = 0.0
        state.actions[env_ids] = 0.0
        state.previous_actions[env_ids] = 0.0

    def state(self) -> RobotState:
        """Return live views."""
        return self._state

    def state_dict(self) -> dict[str, Any]:
        """Return positions, velocities and actions."""
        names = ("root_pos_w", "root_lin_vel_w", "actions", "previous_actions")
        return {name: getattr(self._state, name).clone() for name in names}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        for name, value in state.items():
            getattr(self._state, name).copy_(value)

    def close(self) -> None:
        """Nothing to free."""
        return


def check_no_delay(robot: RobotCfg) -> None:
    """Refuse a robot whose actions take effect later: the simulators of this backend move at once.

    Raises:
        ConfigurationError: If ``delay_steps`` is not 0.
    """
    if robot.action.delay_steps != 0:
        raise ConfigurationError(
            f"Robot {robot.name!r}: delay_steps={robot.action.delay_steps}, the torch backend knows no delay; set it "
            "to 0 or take the backend mujoco."
        )


def still_robots(num_envs: int, num_actions: int, device: torch.device) -> RobotState:
    """Return upright robots without joints, at rest at the origin."""
    zeros = torch.zeros(num_envs, 3, device=device)
    nothing = torch.zeros(num_envs, 0, device=device)
    upright = torch.zeros(num_envs, 4, device=device)
    upright[:, 0] = 1.0
    return RobotState(
        root_pos_w=zeros,
        root_quat_w=upright,
        root_lin_vel_w=zeros.clone(),
        root_ang_vel_w=zeros.clone(),
        joint_pos=nothing,
        joint_vel=nothing,
        contact_forces=nothing,
        actions=torch.zeros(num_envs, num_actions, device=device),
        previous_actions=torch.zeros(num_envs, num_actions, device=device),
        joint_torques=nothing,
    )
