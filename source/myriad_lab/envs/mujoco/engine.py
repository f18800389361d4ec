"""The seam under the simulator: one model, many states, advanced together by some engine."""

from __future__ import annotations

import logging
from typing import Protocol

import numpy as np

from myriad_lab.envs.cores import usable_cores
from myriad_lab.envs.mujoco.compat import HAS_BATCH, mujoco
from myriad_lab.errors import ConfigurationError, nearest

log = logging.getLogger(__name__)

ENGINES = ("auto", "batch", "rollout")
"""Names accepted by ``make_engine``."""


class Engine(Protocol):
    """``num_envs`` simulations of one model on the cores of this machine; arrays are float64, one row per simulation.

    An engine whose states live on a GPU does not fit here: it implements ``Simulator``, one level up.

    ``motion`` and ``ctrl`` are live: what is written there is the state or the control of the next ``step``.
    ``sensordata`` describes the last substep of the last ``step`` and is meaningless before the first one.
    """

    model: mujoco.MjModel
    num_envs: int
    motion: np.ndarray
    """Generalised positions, then velocities, shape (num_envs, nq + nv)."""
    ctrl: np.ndarray
    """Controls, shape (num_envs, nu)."""
    sensordata: np.ndarray
    """Sensor readings, shape (num_envs, nsensordata)."""

    def step(self, num_steps: int) -> np.ndarray:
        """Advance all simulations by ``num_steps`` physics steps and return the ids of those that raised."""
        ...

    def reset(self, env_ids: np.ndarray) -> None:
        """Put simulations (sorted, unique ids) into the model's default state; nothing is computed."""
        ...

    def get_state(self) -> np.ndarray:
        """Return a copy of everything the next step depends on, shape (num_envs, size)."""
        ...

    def set_state(self, state: np.ndarray) -> None:
        """Restore what ``get_state`` returned, bit-exactly."""
        ...

    def close(self) -> None:
        """Free threads and memory."""
        ...


def resolve_num_threads(num_threads: int | None) -> int:
    """Return the number of physics threads: the given one, or every core this process may use.

    Raises:
        ConfigurationError: ``num_threads`` is not positive.
    """
    if num_threads is None:
        return len(usable_cores())
    if num_threads < 1:
        raise ConfigurationError(f"num_threads must be at least 1, got {num_threads}; leave it out to use all cores.")
    return num_threads


def make_engine(model: mujoco.MjModel, num_envs: int, num_threads: int, kind: str = "auto") -> Engine:
    """Build the engine ``kind``; ``auto`` takes ``batch`` where the installed MuJoCo has it.

    Raises:
        ConfigurationError: unknown kind, or ``batch`` asked of a MuJoCo that lacks it.
    """
    # MuJoCo would print each warning and write MUJOCO_LOG.TXT where it runs; broken rows are counted above us.
    mujoco.set_mju_user_warning(log.debug)
    if kind not in ENGINES:
        raise ConfigurationError(f"Unknown MuJoCo engine {kind!r}. {nearest(kind, ENGINES)}")
    if kind == "batch" and not HAS_BATCH:
        raise ConfigurationError(
            f"MuJoCo {mujoco.__version__} has no mujoco.batch; use the engine 'rollout' or install mujoco 3.17 or newer"
            " (pip install -U mujoco)."
        )
    if kind == "rollout" or not HAS_BATCH:
        from myriad_lab.envs.mujoco.engine_rollout import RolloutEngine

        return RolloutEngine(model, num_envs, num_threads)
    from myriad_lab.envs.mujoco.engine_batch import BatchEngine

    return BatchEngine(model, num_envs, num_threads)
