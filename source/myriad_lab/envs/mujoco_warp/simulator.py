"""The simulator on MuJoCo-Warp: the robots of backend ``mujoco`` on a CUDA device, or slowly on the CPU."""

from __future__ import annotations

import logging
from dataclasses import asdict
from typing import Any

import torch

from myriad_lab.envs.arena import Arena
from myriad_lab.envs.mujoco.robots import EngineViews, MujocoRobots
from myriad_lab.envs.mujoco_warp.capacity import capacity_of
from myriad_lab.envs.mujoco_warp.cfg import CapacityCfg
from myriad_lab.envs.mujoco_warp.overflow import OverflowWatch
from myriad_lab.envs.mujoco_warp.physics import WarpPhysics
from myriad_lab.envs.robot import RobotCfg
from myriad_lab.envs.robot_state import InitialState
from myriad_lab.errors import ConfigurationError

log = logging.getLogger(__name__)


class MujocoWarpSimulator(MujocoRobots):
    """See ``Simulator``. Neither ``step`` nor ``reset`` waits for the device.

    Physics is float32. On the CPU it is repeatable bit by bit. On a GPU threads add in any order, but after
    ``torch.use_deterministic_algorithms(True)``, which makes it slower; and they find contacts in any order, in which
    the engine's solver sums (MuJoCo-Warp 4.0), so that robots which touch anything differ in the last bits even so.
    """

    def __init__(
        self,
        robot: RobotCfg,
        arena: Arena,
        num_envs: int,
        *,
        device: torch.device | str = "cpu",
        capacity: CapacityCfg | None = None,
    ) -> None:
        """Compile the scene, the kernels (the first time on a machine: half a minute) and the graph.

        Args:
            robot: The robot; needs an MJCF.
            arena: Ground and walls, shared by all robots, which do not touch each other.
            num_envs: Number of robots.
            device: Where physics and ``RobotState`` live.
            capacity: Room for contacts and constraints; from the geometry by default.

        Raises:
            ConfigurationError: A value is out of range, robot and MJCF disagree, or the device or the engine cannot.
        """
        super().__init__(robot, arena, num_envs, device)
        cfg = capacity or CapacityCfg()
        cfg.validate()
        self.capacity = capacity_of(self.model, cfg)
        self.physics = WarpPhysics(self.model, num_envs, self.device, self.capacity, robot.decimation)
        physics = self.physics
        if self.device.type == "cpu":
            log.warning("MuJoCo-Warp on a CPU is slow and uses one thread; backend mujoco has the same robots")
        self._overflow = OverflowWatch(physics.overflow, asdict(self.capacity))
        self._attach(EngineViews(physics.qpos, physics.qvel, physics.ctrl, physics.sensordata))

    def step(self, actions: torch.Tensor) -> torch.Tensor:
        """Advance one control step; see ``Simulator.step``."""
        target = self._push_target(actions)
        self.physics.advance()
        self._overflow.after_step()
        self._read(actions, target)
        return self._mend_diverged()

    def reset(self, env_ids: torch.Tensor, initial: InitialState) -> None:
        """Put the robots ``env_ids`` into the given states; see ``Simulator.reset``."""
        self.physics.put(env_ids, *self._start(env_ids, initial))

    def state_dict(self) -> dict[str, Any]:
        """Return the engine's state and everything read from it."""
        self._overflow.check()
        return {"physics": self.physics.get_state(), **self._buffers_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a snapshot, bit-exactly.

        Raises:
            ConfigurationError: The snapshot is of another number of envs, robot or backend.
        """
        rows, expected = state.get("physics", {}), self.physics.get_state()
        shapes = [{name: tuple(tensor.shape) for name, tensor in part.items()} for part in (rows, expected)]
        if shapes[0] != shapes[1]:
            raise ConfigurationError(
                f"The simulator snapshot has {shapes[0]}, this simulator needs {shapes[1]}: it was taken with another "
                "num_envs, robot or backend."
            )
        self.physics.set_state(rows)
        self._load_buffers(state)

    def close(self) -> None:
        """Free the engine's memory; the second call is idle."""
        if self._views is not None:
            self._overflow.check()
            self._views = None
            del self.physics, self._overflow

    def _mend_diverged(self) -> torch.Tensor:
        """Return where the physics broke; those rows keep their last good state, their worlds start afresh."""
        now, before = self._current, self._other
        # A comparison with NaN is false, so this is the complement of "all finite and within the limits".
        diverged = ~(now.motion.abs() < self._limits).all(dim=1)
        for name, tensor in now.owned.items():
            if name != "actions":
                torch.where(diverged.unsqueeze(1), before.owned[name], tensor, out=tensor)
        self.physics.put_default(diverged)
        return diverged
