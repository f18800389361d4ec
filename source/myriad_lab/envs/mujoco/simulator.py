"""The simulator on MuJoCo's CPU engine: robots of one model in one arena, on all cores."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import numpy as np
import torch

from myriad_lab.envs.arena import Arena
from myriad_lab.envs.mujoco.engine import make_engine, resolve_num_threads
from myriad_lab.envs.mujoco.robots import EngineViews, MujocoRobots
from myriad_lab.envs.robot import RobotCfg
from myriad_lab.envs.robot_state import InitialState
from myriad_lab.errors import ConfigurationError

log = logging.getLogger(__name__)

TORCH_THREADS = 1
"""Torch threads beside the physics pool; two pools on the same cores slow each other down by 4 to 100 times."""


class MujocoSimulator(MujocoRobots):
    """See ``Simulator``. Results are bit-identical for any number of threads."""

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
        super().__init__(robot, arena, num_envs, device)
        self.num_threads = resolve_num_threads(num_threads)
        self.engine = make_engine(self.model, num_envs, self.num_threads, engine)
        if torch.get_num_threads() != TORCH_THREADS:
            log.info("torch uses %d thread beside %d physics threads", TORCH_THREADS, self.num_threads)
            torch.set_num_threads(TORCH_THREADS)
        motion, nq = torch.from_numpy(self.engine.motion), self.model.nq
        ctrl, sensors = torch.from_numpy(self.engine.ctrl), _read_only_tensor(self.engine.sensordata)
        self._no_failure = torch.zeros(num_envs, dtype=torch.bool, device=self.device)
        self._attach(EngineViews(motion[:, :nq], motion[:, nq:], ctrl, sensors))

    def step(self, actions: torch.Tensor) -> torch.Tensor:
        """Advance one control step; see ``Simulator.step``."""
        target = self._push_target(actions)
        failed = self.engine.step(self.robot.decimation)
        self._read(actions, target)
        return self._mend_diverged(failed)

    def reset(self, env_ids: torch.Tensor, initial: InitialState) -> None:
        """Put the robots ``env_ids`` into the given states; see ``Simulator.reset``."""
        qpos, qvel = self._start(env_ids, initial)
        ids = env_ids.cpu()
        self.engine.reset(ids.numpy())
        self._engine.qpos[ids] = qpos.to("cpu", torch.float64)
        self._engine.qvel[ids] = qvel.to("cpu", torch.float64)

    def state_dict(self) -> dict[str, Any]:
        """Return the engine's rows and everything read from them."""
        return {"engine": torch.from_numpy(self.engine.get_state()), **self._buffers_state()}

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
        self._load_buffers(state)

    def close(self) -> None:
        """Stop the physics threads; the tensors over the engine's memory would keep them. The second call is idle."""
        self._views = None
        self.engine.close()

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
