"""Between our robot states and an articulation of Isaac Lab: the one place that knows how the two differ.

Isaac Lab orders quaternions x, y, z, w, orders joints as the engine likes, and hands out proxies of Warp arrays. Our
root velocities are those of the body's frame, as MuJoCo's. They are reckoned here from those of the centre of mass:
under ovphysx, what Isaac Lab 3.0.0 calls the velocity of the frame is that of the centre of mass, too.
"""

from __future__ import annotations

from typing import Any

import torch

from myriad_lab.envs.isaaclab.robot_model import compile_robot, joint_drives
from myriad_lab.envs.robot import RobotCfg
from myriad_lab.envs.robot_state import InitialState, RobotState
from myriad_lab.envs.rotations import rotation_matrix


class ArticulationIO:
    """Reads, writes and drives the robots of all envs."""

    def __init__(self, robot: RobotCfg, articulation: Any, origins: torch.Tensor, contact_sensor: Any = None) -> None:
        """Look up joints and bodies by name.

        Args:
            robot: The robot.
            articulation: ``isaaclab.assets.Articulation`` that was spawned from it, initialised.
            origins: Origins of the envs [m], shape ``(num_envs, 3)``.
            contact_sensor: ``ContactSensor`` over ``robot.contact_bodies``; without one, contact forces read 0.
        """
        self.robot = robot
        self._articulation = articulation
        self._data = articulation.data
        self._origins = origins
        self._sensor = contact_sensor
        device = origins.device
        num_envs = len(origins)
        self._joint_ids = _ids(articulation.find_joints, robot.joint_names, device)
        self._action_ids = _ids(articulation.find_joints, robot.action.names, device)
        self._torque_columns = torch.tensor([robot.joint_names.index(name) for name in robot.action.names])
        self._contact_ids = None
        if contact_sensor is not None:
            self._contact_ids = _ids(contact_sensor.find_sensors, robot.contact_bodies, device)
        self._no_contact = torch.zeros(num_envs, len(robot.contact_bodies), device=device)
        self._center = torch.tensor(compile_robot(robot).body_ipos[1], dtype=torch.float32, device=device)
        drives = joint_drives(robot).values()
        self._max_torque = torch.tensor([drive.max_torque for drive in drives], device=device)
        self._gains = torch.tensor((robot.stiffness, robot.damping), device=device)
        self._target = torch.tensor([drive.rest for drive in drives], device=device).repeat(num_envs, 1)
        self._torques = torch.zeros(num_envs, len(robot.joint_names), device=device)
        # Springs pull towards their rest angle from the first step on; a servo starts at the default pose.
        articulation.actuators.target_command.set_position_index(value=self._target, joint_ids=self._joint_ids)

    def drive(self, targets: torch.Tensor) -> None:
        """Hand ``targets`` [N m] or [rad], shape ``(num_envs, num_actions)``, to the motors until the next call."""
        command = self._articulation.actuators.target_command
        if self.robot.action.kind == "position":
            self._target[:, self._torque_columns] = targets
            command.set_position_index(value=targets, joint_ids=self._action_ids)
        else:
            self._torques[:, self._torque_columns] = targets
            command.set_effort_index(value=targets, joint_ids=self._action_ids)

    def read(self, actions: torch.Tensor, previous_actions: torch.Tensor) -> RobotState:
        """Return the state now; the tensors are fresh, but for the actions given."""
        data = self._data
        pose, velocity = data.root_link_pose_w.torch, data.root_com_vel_w.torch
        quat = pose[:, 3:].roll(1, dims=1)
        joint_pos = data.joint_pos.torch.index_select(1, self._joint_ids)
        joint_vel = data.joint_vel.torch.index_select(1, self._joint_ids)
        return RobotState(
            root_pos_w=pose[:, :3] - self._origins,
            root_quat_w=quat,
            root_lin_vel_w=velocity[:, :3] - self._spin(quat, velocity[:, 3:]),
            root_ang_vel_w=velocity[:, 3:].clone(),
            joint_pos=joint_pos,
            joint_vel=joint_vel,
            contact_forces=self._contacts(),
            actions=actions,
            previous_actions=previous_actions,
            joint_torques=self._joint_torques(joint_pos, joint_vel),
        )

    def write(self, env_ids: torch.Tensor, initial: InitialState) -> None:
        """Put the robots ``env_ids`` (int32) into the given states, with their motors at rest."""
        articulation = self._articulation
        pose = torch.cat((initial.root_pos_w + self._origins[env_ids], initial.root_quat_w.roll(-1, dims=1)), dim=1)
        spin = self._spin(initial.root_quat_w, initial.root_ang_vel_w)
        velocity = torch.cat((initial.root_lin_vel_w + spin, initial.root_ang_vel_w), dim=1)
        articulation.write_root_link_pose_to_sim_index(root_pose=pose, env_ids=env_ids)
        articulation.write_root_com_velocity_to_sim_index(root_velocity=velocity, env_ids=env_ids)
        joints = {"joint_ids": self._joint_ids, "env_ids": env_ids}
        articulation.write_joint_position_to_sim_index(position=initial.joint_pos, **joints)
        articulation.write_joint_velocity_to_sim_index(velocity=initial.joint_vel, **joints)
        self._torques[env_ids] = 0.0

    def _spin(self, quat: torch.Tensor, ang_vel_w: torch.Tensor) -> torch.Tensor:
        """Return how much faster the base's centre of mass is than its frame [m/s], shape (n, 3)."""
        return torch.linalg.cross(ang_vel_w, rotation_matrix(quat) @ self._center)

    def _contacts(self) -> torch.Tensor:
        if self._sensor is None:
            return self._no_contact
        forces = self._sensor.data.net_forces_w.torch
        return torch.linalg.vector_norm(forces.index_select(1, self._contact_ids), dim=-1)

    def _joint_torques(self, joint_pos: torch.Tensor, joint_vel: torch.Tensor) -> torch.Tensor:
        """Return what the motors apply; that of a servo is reckoned here, from the state at the end of the step."""
        if self.robot.action.kind != "position":
            return self._torques.clone()
        stiffness, damping = self._gains
        torques = stiffness * (self._target - joint_pos) - damping * joint_vel
        return torques.clamp(-self._max_torque, self._max_torque)


def _ids(find: Any, names: tuple[str, ...], device: torch.device) -> torch.Tensor:
    """Return the columns (int32) of ``names`` in this order."""
    ids, found = find(list(names), preserve_order=True)
    assert tuple(found) == names
    return torch.as_tensor(ids, dtype=torch.int32, device=device)
