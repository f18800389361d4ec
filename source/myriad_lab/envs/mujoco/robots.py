"""What the simulators on MuJoCo's engines share: state buffers, the line of delayed targets, reading the sensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from myriad_lab.envs.arena import Arena
from myriad_lab.envs.mujoco.compat import mujoco
from myriad_lab.envs.mujoco.model import build_model, contact_sensor_name, torque_sensor_name
from myriad_lab.envs.robot import RobotCfg
from myriad_lab.envs.robot_state import InitialState, RobotState
from myriad_lab.envs.rotations import quat_rotate_inverse, rotation_matrix
from myriad_lab.envs.simulator import POSITION_LIMIT, SPEED_LIMIT
from myriad_lab.errors import ConfigurationError


@dataclass(frozen=True)
class EngineViews:
    """Live tensors over the memory of an engine, one row per simulation, of its dtype and on its device."""

    qpos: torch.Tensor
    """Generalised positions, shape (num_envs, nq)."""
    qvel: torch.Tensor
    """Generalised velocities, shape (num_envs, nv)."""
    ctrl: torch.Tensor
    """Controls of the next step, shape (num_envs, nu)."""
    sensordata: torch.Tensor
    """Sensor readings of the last physics step, shape (num_envs, nsensordata)."""


class StateBuffers:
    """The robot state of one control step; ``motion`` is the engine's row in float32, which the fields view."""

    def __init__(self, model: mujoco.MjModel, num_envs: int, num_contacts: int, device: torch.device) -> None:
        nq, nv, num_joints = model.nq, model.nv, model.nv - 6
        self.motion = torch.zeros(num_envs, nq + nv, device=device)
        motion = self.motion
        self.state = RobotState(
            root_pos_w=motion[:, :3],
            root_quat_w=motion[:, 3:7],
            root_lin_vel_w=motion[:, nq : nq + 3],
            root_ang_vel_w=motion[:, nq + 3 : nq + 6],
            joint_pos=motion[:, 7:nq],
            joint_vel=motion[:, nq + 6 :],
            contact_forces=torch.zeros(num_envs, num_contacts, device=device),
            actions=torch.zeros(num_envs, model.nu, device=device),
            previous_actions=torch.zeros(num_envs, model.nu, device=device),
            joint_torques=torch.zeros(num_envs, num_joints, device=device),
        )
        # The tensors that own memory, by name: what a snapshot holds and what a diverged row falls back to.
        self.owned = {
            "motion": motion,
            "contact_forces": self.state.contact_forces,
            "actions": self.state.actions,
            "joint_torques": self.state.joint_torques,
        }


class MujocoRobots:
    """Base of the simulators on MuJoCo's engines, which differ in how an engine is advanced, written and mended.

    Two sets of state buffers take turns, so that a diverged robot can keep its last good state and the previous
    actions cost no copy.
    """

    def __init__(self, robot: RobotCfg, arena: Arena, num_envs: int, device: torch.device | str) -> None:
        """Compile the scene; the engine comes next, then ``_attach``.

        Raises:
            ConfigurationError: ``num_envs`` is not positive, or robot and MJCF disagree.
        """
        if num_envs < 1:
            raise ConfigurationError(f"num_envs must be at least 1, got {num_envs}.")
        self.num_envs = num_envs
        self.device = torch.device(device)
        self.robot = robot
        self.arena = arena
        self.model = build_model(robot, arena)

    def state(self) -> RobotState:
        """Return live views of the state now, valid until the next ``step`` or ``reset``."""
        return self._current.state

    def _attach(self, views: EngineViews) -> None:
        """Make the buffers around an engine and read its first state."""
        self._views: EngineViews | None = views
        self._nq = self.model.nq
        self._scale = torch.tensor(self.robot.action.scale, device=self.device)
        self._offset = torch.tensor(self.robot.action.offset, device=self.device)
        self._setup_sensors()
        self._limits = torch.full((self._nq + self.model.nv,), POSITION_LIMIT, device=self.device)
        self._limits[self._nq :] = SPEED_LIMIT
        self._current = StateBuffers(self.model, self.num_envs, self._num_contacts, self.device)
        self._other = StateBuffers(self.model, self.num_envs, self._num_contacts, self.device)
        # Each buffer's previous actions are the actions of the other.
        self._current.state.previous_actions = self._other.state.actions
        self._other.state.previous_actions = self._current.state.actions
        # Targets on their way to the motors: slot [step % length] is the newest.
        self._targets = self._offset.expand(self.robot.action.delay_steps + 1, self.num_envs, -1).clone()
        self._steps = 0
        self._read_motion(self._current)

    def _setup_sensors(self) -> None:
        """Find where contact forces and torques stand in the sensor row."""
        robot, model = self.robot, self.model
        contacts = [int(model.sensor(contact_sensor_name(body)).adr[0]) for body in robot.contact_bodies]
        self._num_contacts = len(contacts)
        self._contact_columns = slice(contacts[0], contacts[0] + 3 * len(contacts)) if contacts else None
        self._torque_columns: slice | None = None
        self._torque_joints: torch.Tensor | None = None
        if robot.action.kind == "position":
            start = int(model.sensor(torque_sensor_name(robot.joint_names[0])).adr[0])
            self._torque_columns = slice(start, start + len(robot.joint_names))
        elif robot.action.names != robot.joint_names:
            joints = [robot.joint_names.index(name) for name in robot.action.names]
            self._torque_joints = torch.tensor(joints, device=self.device)

    @property
    def _engine(self) -> EngineViews:
        """The live views of an engine that is not closed."""
        assert self._views is not None, "the simulator is closed"
        return self._views

    def _push_target(self, actions: torch.Tensor) -> torch.Tensor:
        """Turn actions into targets, hand the delayed ones to the motors and return them."""
        length = self._targets.shape[0]
        torch.addcmul(self._offset, actions, self._scale, out=self._targets[self._steps % length])
        delayed = self._targets[(self._steps + 1) % length]
        self._steps += 1
        self._engine.ctrl.copy_(delayed)
        return delayed

    def _read(self, actions: torch.Tensor, target: torch.Tensor) -> None:
        """Let the other buffers be the current ones and copy into them what the engine has come to."""
        self._current, self._other = self._other, self._current
        self._read_motion(self._current)
        self._current.owned["actions"].copy_(actions)
        self._read_sensors(self._current.state, target)

    def _read_motion(self, buffers: StateBuffers) -> None:
        """Copy the engine's rows; MuJoCo's base angular velocity is in the body frame, ours in the world."""
        buffers.motion[:, : self._nq].copy_(self._engine.qpos)
        buffers.motion[:, self._nq :].copy_(self._engine.qvel)
        state = buffers.state
        to_world = rotation_matrix(state.root_quat_w)
        state.root_ang_vel_w.copy_(torch.bmm(to_world, state.root_ang_vel_w.unsqueeze(2)).squeeze(2))

    def _read_sensors(self, state: RobotState, target: torch.Tensor) -> None:
        """Copy contact forces and torques of the last physics step."""
        sensors = self._engine.sensordata
        if self._contact_columns is not None:
            forces = sensors[:, self._contact_columns].to(self.device, torch.float32)
            torch.linalg.vector_norm(forces.view(self.num_envs, -1, 3), dim=-1, out=state.contact_forces)
        if self._torque_columns is not None:
            state.joint_torques.copy_(sensors[:, self._torque_columns])
        elif self._torque_joints is not None:
            state.joint_torques[:, self._torque_joints] = target
        else:
            state.joint_torques.copy_(target)

    def _start(self, env_ids: torch.Tensor, initial: InitialState) -> tuple[torch.Tensor, torch.Tensor]:
        """Put robots into the given states in the buffers; return what the engine needs: rows of qpos and of qvel."""
        angular_b = quat_rotate_inverse(initial.root_quat_w, initial.root_ang_vel_w)
        qpos = torch.cat((initial.root_pos_w, initial.root_quat_w, initial.joint_pos), dim=-1)
        qvel = torch.cat((initial.root_lin_vel_w, angular_b, initial.joint_vel), dim=-1)
        self._targets[:, env_ids] = self._offset
        now = self._current.owned
        now["motion"][env_ids] = torch.cat((qpos, qvel[:, :3], initial.root_ang_vel_w, qvel[:, 6:]), dim=-1)
        for name in ("contact_forces", "actions", "joint_torques"):
            now[name].index_fill_(0, env_ids, 0.0)
        self._current.state.previous_actions.index_fill_(0, env_ids, 0.0)
        return qpos, qvel

    def _buffers_state(self) -> dict[str, Any]:
        """Return a copy of everything outside of the engine."""
        return {
            "buffers": {name: tensor.clone() for name, tensor in self._current.owned.items()},
            "previous_actions": self._current.state.previous_actions.clone(),
            "targets": self._targets.clone(),
            "steps": self._steps,
        }

    def _load_buffers(self, state: dict[str, Any]) -> None:
        """Restore what ``_buffers_state`` returned."""
        for name, tensor in self._current.owned.items():
            tensor.copy_(state["buffers"][name])
        self._current.state.previous_actions.copy_(state["previous_actions"])
        self._targets.copy_(state["targets"])
        self._steps = int(state["steps"])
