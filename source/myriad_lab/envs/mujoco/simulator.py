"""The simulator on MuJoCo's CPU engine: robots of one model in one arena, on all cores."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import numpy as np
import torch

from myriad_lab.envs.arena import Arena
from myriad_lab.envs.mujoco.compat import mujoco
from myriad_lab.envs.mujoco.engine import make_engine, resolve_num_threads
from myriad_lab.envs.mujoco.model import build_model, contact_sensor_name, torque_sensor_name
from myriad_lab.envs.robot import RobotCfg
from myriad_lab.envs.robot_state import InitialState, RobotState
from myriad_lab.envs.rotations import quat_rotate_inverse, rotation_matrix
from myriad_lab.envs.simulator import POSITION_LIMIT, SPEED_LIMIT
from myriad_lab.errors import ConfigurationError

log = logging.getLogger(__name__)

TORCH_THREADS = 1
"""Torch threads beside the physics pool; two pools on the same cores slow each other down by 4 to 100 times."""


class _Buffers:
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


class MujocoSimulator:
    """See ``Simulator``. Results are bit-identical for any number of threads.

    Two sets of state buffers take turns, so that a diverged robot can keep its last good state and the previous
    actions cost no copy.
    """

    def __init__(
        self,
        robot: RobotCfg,
        arena: Arena,
        num_envs: int,
        *,
        device: torch.device | str = "cpu",
        num_threads: int | None = None,
        engine: str = "auto",
    ) -> None:
        """Compile the scene and start the thread pool.

        Args:
            robot: The robot; needs an MJCF.
            arena: Ground and walls, shared by all robots, which do not touch each other.
            num_envs: Number of robots.
            device: Where ``RobotState`` lives; physics always runs on the CPU.
            num_threads: Physics threads; all cores this process may use where ``None``.
            engine: ``auto``, ``batch`` or ``rollout``.

        Raises:
            ConfigurationError: A value is out of range, or robot and MJCF disagree.
        """
        if num_envs < 1:
            raise ConfigurationError(f"num_envs must be at least 1, got {num_envs}.")
        self.num_envs = num_envs
        self.device = torch.device(device)
        self.robot = robot
        self.arena = arena
        self.model = build_model(robot, arena)
        self.num_threads = resolve_num_threads(num_threads)
        self.engine = make_engine(self.model, num_envs, self.num_threads, engine)
        if torch.get_num_threads() != TORCH_THREADS:
            log.info("torch uses %d thread beside %d physics threads", TORCH_THREADS, self.num_threads)
            torch.set_num_threads(TORCH_THREADS)
        self._motion = torch.from_numpy(self.engine.motion)
        self._ctrl = torch.from_numpy(self.engine.ctrl)
        self._nq = self.model.nq
        self._scale = torch.tensor(robot.action.scale, device=self.device)
        self._offset = torch.tensor(robot.action.offset, device=self.device)
        self._setup_sensors()
        self._limits = torch.full((self._nq + self.model.nv,), POSITION_LIMIT, device=self.device)
        self._limits[self._nq :] = SPEED_LIMIT
        self._no_failure = torch.zeros(num_envs, dtype=torch.bool, device=self.device)
        self._current = _Buffers(self.model, num_envs, self._num_contacts, self.device)
        self._other = _Buffers(self.model, num_envs, self._num_contacts, self.device)
        self._link_previous_actions()
        # Targets on their way to the motors: slot [step % length] is the newest.
        self._targets = self._offset.expand(robot.action.delay_steps + 1, num_envs, -1).clone()
        self._steps = 0
        self._read_motion(self._current)

    def step(self, actions: torch.Tensor) -> torch.Tensor:
        """Advance one control step; see ``Simulator.step``."""
        target = self._push_target(actions)
        failed = self.engine.step(self.robot.decimation)
        self._current, self._other = self._other, self._current
        now = self._current
        self._read_motion(now)
        now.owned["actions"].copy_(actions)
        self._read_sensors(now, target)
        return self._mend_diverged(failed)

    def reset(self, env_ids: torch.Tensor, initial: InitialState) -> None:
        """Put the robots ``env_ids`` into the given states; see ``Simulator.reset``."""
        angular_b = quat_rotate_inverse(initial.root_quat_w, initial.root_ang_vel_w)
        head = (initial.root_pos_w, initial.root_quat_w, initial.joint_pos, initial.root_lin_vel_w)
        rows = torch.cat((*head, angular_b, initial.joint_vel), dim=-1)
        ids = env_ids.cpu()
        self.engine.reset(ids.numpy())
        self._motion[ids] = rows.to("cpu", torch.float64)
        self._targets[:, env_ids] = self._offset
        rows[:, self._nq + 3 : self._nq + 6] = initial.root_ang_vel_w
        now = self._current.owned
        now["motion"][env_ids] = rows
        for name in ("contact_forces", "actions", "joint_torques"):
            now[name][env_ids] = 0.0
        self._current.state.previous_actions[env_ids] = 0.0

    def state(self) -> RobotState:
        """Return live views of the state now, valid until the next ``step`` or ``reset``."""
        return self._current.state

    def state_dict(self) -> dict[str, Any]:
        """Return the engine's rows and everything read from them."""
        return {
            "engine": torch.from_numpy(self.engine.get_state()),
            "buffers": {name: tensor.clone() for name, tensor in self._current.owned.items()},
            "previous_actions": self._current.state.previous_actions.clone(),
            "targets": self._targets.clone(),
            "steps": self._steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a snapshot, bit-exactly.

        Raises:
            ConfigurationError: The snapshot is of another number of envs, robot or engine.
        """
        rows = state["engine"].cpu().numpy()
        expected = self.engine.get_state().shape
        if rows.shape != expected:
            raise ConfigurationError(
                f"The simulator snapshot has shape {rows.shape}, this simulator needs {expected}: it was taken with "
                "another num_envs, robot, arena or MuJoCo engine."
            )
        self.engine.set_state(rows)
        for name, tensor in self._current.owned.items():
            tensor.copy_(state["buffers"][name])
        self._current.state.previous_actions.copy_(state["previous_actions"])
        self._targets.copy_(state["targets"])
        self._steps = int(state["steps"])

    def close(self) -> None:
        """Stop the physics threads; the tensors over the engine's memory would keep them. The second call is idle."""
        for name in ("_motion", "_ctrl", "_sensors"):
            self.__dict__.pop(name, None)
        self.engine.close()

    def _link_previous_actions(self) -> None:
        """Let each buffer's previous actions be the actions of the other."""
        self._current.state.previous_actions = self._other.state.actions
        self._other.state.previous_actions = self._current.state.actions

    def _setup_sensors(self) -> None:
        """Find where contact forces and torques stand in the sensor row."""
        robot, model = self.robot, self.model
        self._sensors = _read_only_tensor(self.engine.sensordata)
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

    def _push_target(self, actions: torch.Tensor) -> torch.Tensor:
        """Turn actions into targets, hand the delayed ones to the motors and return them."""
        length = self._targets.shape[0]
        torch.addcmul(self._offset, actions, self._scale, out=self._targets[self._steps % length])
        delayed = self._targets[(self._steps + 1) % length]
        self._steps += 1
        self._ctrl.copy_(delayed)
        return delayed

    def _read_motion(self, buffers: _Buffers) -> None:
        """Copy the engine's rows; MuJoCo's base angular velocity is in the body frame, ours in the world."""
        buffers.motion.copy_(self._motion)
        state = buffers.state
        to_world = rotation_matrix(state.root_quat_w)
        state.root_ang_vel_w.copy_(torch.bmm(to_world, state.root_ang_vel_w.unsqueeze(2)).squeeze(2))

    def _read_sensors(self, buffers: _Buffers, target: torch.Tensor) -> None:
        """Copy contact forces and torques of the last physics step."""
        state = buffers.state
        if self._contact_columns is not None:
            forces = self._sensors[:, self._contact_columns].to(self.device, torch.float32)
            torch.linalg.vector_norm(forces.view(self.num_envs, -1, 3), dim=-1, out=state.contact_forces)
        if self._torque_columns is not None:
            state.joint_torques.copy_(self._sensors[:, self._torque_columns])
        elif self._torque_joints is not None:
            state.joint_torques[:, self._torque_joints] = target
        else:
            state.joint_torques.copy_(target)

    def _mend_diverged(self, failed: np.ndarray) -> torch.Tensor:
        """Return where the physics broke; those rows keep their last good state, their engine rows start afresh."""
        now, before = self._current, self._other
        # A comparison with NaN is false, so this is the complement of "all finite and within the limits".
        healthy = now.motion.abs() < self._limits
        if len(failed) == 0 and bool(healthy.all()):
            return self._no_failure.clone()
        diverged = ~healthy.all(dim=1)
        diverged[torch.from_numpy(failed).to(self.device)] = True
        for name, tensor in now.owned.items():
            if name != "actions":
                tensor[diverged] = before.owned[name][diverged]
        self.engine.reset(diverged.nonzero().flatten().cpu().numpy())
        log.debug("%d of %d robots diverged", int(diverged.sum()), self.num_envs)
        return diverged


def _read_only_tensor(array: np.ndarray) -> torch.Tensor:
    """Wrap an array that is never written through; torch would warn about the read-only flag."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(array)
