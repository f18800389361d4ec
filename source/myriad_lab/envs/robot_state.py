"""The batch of robot states that a backend fills and a task reads."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch


@dataclass
class RobotState:
    """State of ``num_envs`` robots at the end of a control step; world frame ``_w``, quaternions w, x, y, z.

    A task must treat it as read-only. Env origins are already removed from ``root_pos_w``.
    """

    root_pos_w: torch.Tensor
    """Position of the base [m], shape (num_envs, 3)."""
    root_quat_w: torch.Tensor
    """Orientation of the base, shape (num_envs, 4)."""
    root_lin_vel_w: torch.Tensor
    """Linear velocity of the base [m/s], shape (num_envs, 3)."""
    root_ang_vel_w: torch.Tensor
    """Angular velocity of the base [rad/s], shape (num_envs, 3)."""
    joint_pos: torch.Tensor
    """Joint positions [rad], shape (num_envs, num_joints)."""
    joint_vel: torch.Tensor
    """Joint velocities [rad/s], shape (num_envs, num_joints)."""
    contact_forces: torch.Tensor
    """Magnitude of the contact force on each sensed body [N], shape (num_envs, num_contacts)."""
    actions: torch.Tensor
    """Last actions of the policy, in [-1, 1], shape (num_envs, num_actions)."""
    previous_actions: torch.Tensor
    """The actions before those, shape (num_envs, num_actions)."""
    joint_torques: torch.Tensor
    """Torques the actuators apply [N m], shape (num_envs, num_joints)."""

    @property
    def num_envs(self) -> int:
        """Number of robots."""
        return self.root_pos_w.shape[0]

    def __getitem__(self, env_ids: torch.Tensor) -> RobotState:
        """Return the rows ``env_ids`` as a new state."""
        return RobotState(**{f.name: getattr(self, f.name)[env_ids] for f in fields(self)})


@dataclass
class InitialState:
    """Where robots start an episode: one row per robot to reset, same frames and units as ``RobotState``."""

    root_pos_w: torch.Tensor
    root_quat_w: torch.Tensor
    root_lin_vel_w: torch.Tensor
    root_ang_vel_w: torch.Tensor
    joint_pos: torch.Tensor
    joint_vel: torch.Tensor
