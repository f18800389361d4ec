"""The engine over ``mujoco.rollout``, for MuJoCo releases without ``mujoco.batch``."""

from __future__ import annotations

import numpy as np
from mujoco.rollout import Rollout

from myriad_lab.envs.mujoco.compat import mujoco

_NO_IDS = np.empty(0, dtype=np.int64)


class RolloutEngine:
    """See ``Engine``; every control step is a short open-loop rollout from the rows kept here.

    A rollout returns no solver warm start, so each control step starts cold: a little slower than ``BatchEngine``, and
    equal to it up to the solver's tolerance.
    """

    def __init__(self, model: mujoco.MjModel, num_envs: int, num_threads: int) -> None:
        self.model = model
        self.num_envs = num_envs
        # A pool of zero threads runs on the caller, which is what one thread means here.
        self._pool = Rollout(nthread=num_threads if num_threads > 1 else 0)
        self._data = [mujoco.MjData(model) for _ in range(num_threads)]
        self._models = [model] * num_envs
        full_physics = mujoco.mjtState.mjSTATE_FULLPHYSICS.value
        self._default = np.empty(mujoco.mj_stateSize(model, full_physics))
        mujoco.mj_getState(model, self._data[0], self._default, full_physics)
        self._state = np.tile(self._default, (num_envs, 1))
        # mjtState orders time, positions, velocities first.
        self.motion: np.ndarray = self._state[:, 1 : 1 + model.nq + model.nv]
        self.ctrl: np.ndarray = np.zeros((num_envs, model.nu))
        self.sensordata: np.ndarray = np.zeros((num_envs, model.nsensordata))
        self._traces: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def step(self, num_steps: int) -> np.ndarray:
        """Advance all simulations with constant controls."""
        states, sensors = self._trace(num_steps)
        control = np.repeat(self.ctrl[:, None], num_steps, axis=1)
        self._pool.rollout(
            self._models,
            self._data,
            self._state,
            control,
            skip_checks=True,
            nstep=num_steps,
            state=states,
            sensordata=sensors,
        )
        self._state[:] = states[:, -1]
        self.sensordata[:] = sensors[:, -1]
        return _NO_IDS

    def reset(self, env_ids: np.ndarray) -> None:
        """Put simulations into the model's default state."""
        self._state[env_ids] = self._default
        self.ctrl[env_ids] = 0.0

    def get_state(self) -> np.ndarray:
        """Return a copy of states and controls."""
        return np.concatenate([self._state, self.ctrl], axis=1)

    def set_state(self, state: np.ndarray) -> None:
        """Restore states and controls."""
        width = self._state.shape[1]
        self._state[:] = state[:, :width]
        self.ctrl[:] = state[:, width:]

    def close(self) -> None:
        """Stop the thread pool."""
        self._pool.close()

    def _trace(self, num_steps: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the output arrays of a rollout of ``num_steps``, allocated once."""
        if num_steps not in self._traces:
            shape = (self.num_envs, num_steps)
            self._traces[num_steps] = (
                np.empty((*shape, self._state.shape[1])),
                np.empty((*shape, self.model.nsensordata)),
            )
        return self._traces[num_steps]
