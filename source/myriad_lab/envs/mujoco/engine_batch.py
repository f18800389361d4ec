"""The engine over ``mujoco.batch``: stateful rows on a thread pool, bit-identical for any number of threads."""

from __future__ import annotations

import numpy as np
from mujoco.batch import Batch, SimulationError

from myriad_lab.envs.mujoco.compat import mujoco

_NO_IDS = np.empty(0, dtype=np.int64)


class BatchEngine:
    """See ``Engine``."""

    def __init__(self, model: mujoco.MjModel, num_envs: int, num_threads: int) -> None:
        self.model = model
        self.num_envs = num_envs
        self._batch = Batch(model, num_envs, num_threads)
        self._default = self._batch.state[0].copy()
        self.ctrl: np.ndarray = self._batch.bind("ctrl")
        self.sensordata: np.ndarray = self._batch.bind("sensordata") if model.nsensordata else np.empty((num_envs, 0))
        qpos = self._batch.bind("qpos")
        start = (qpos.ctypes.data - self._batch.state.ctypes.data) // qpos.itemsize
        # Rows are laid out in the order of mjtState, where positions and velocities are neighbours.
        self.motion: np.ndarray = self._batch.state[:, start : start + model.nq + model.nv]

    def step(self, num_steps: int) -> np.ndarray:
        """Advance all simulations; those that raised keep their old state and are returned."""
        try:
            self._batch.step(nstep=num_steps)
        except SimulationError as error:
            return np.asarray(error.ids, dtype=np.int64)
        return _NO_IDS

    def reset(self, env_ids: np.ndarray) -> None:
        """Put simulations into the model's default state."""
        # What Batch.reset writes, without waking the thread pool for a few rows.
        self._batch.state[env_ids] = self._default

    def get_state(self) -> np.ndarray:
        """Return a copy of the state rows."""
        return self._batch.state.copy()

    def set_state(self, state: np.ndarray) -> None:
        """Restore the state rows."""
        self._batch.state[:] = state

    def close(self) -> None:
        """Drop the batch, whose thread pool ends with it, and the views that would keep it; the second call is idle."""
        for name in ("_batch", "ctrl", "sensordata", "motion"):
            self.__dict__.pop(name, None)
