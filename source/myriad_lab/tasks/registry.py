"""The registered tasks and how to make an env of one."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import TYPE_CHECKING, Any

import torch

from myriad_lab.envs.contract import VecEnv
from myriad_lab.envs.shard import WHOLE, Shard
from myriad_lab.envs.simulator import Simulator
from myriad_lab.envs.task import Task
from myriad_lab.envs.task_env import TaskEnv
from myriad_lab.errors import ConfigurationError, nearest

if TYPE_CHECKING:
    from myriad_lab.envs.isaaclab.cfg import IsaacLabCfg


@dataclass(frozen=True)
class TaskEntry:
    """A task that users can name."""

    id: str
    """Name, e.g. ``Myriad-PointMaze-Maze``."""
    family: str
    """Folder of the task: maze, locomotion, gridworld."""
    backends: tuple[str, ...]
    """Backends that can run it; the first is the default."""
    cfg: Any
    """Default configuration, a dataclass instance; handed out as a deep copy."""
    make_task: Callable[[Any], Task]
    """Builds the task from a configuration."""
    description: str
    """One sentence for the list of tasks."""
    default_num_envs: int
    """Batch size used where none is asked for."""


ISAACLAB = "isaaclab"
"""Backend that makes its envs as a whole, see ``myriad_lab.tasks.isaaclab_backend``."""
_ENTRIES: dict[str, TaskEntry] = {}


def register(entry: TaskEntry) -> None:
    """Add a task.

    Raises:
        ConfigurationError: The id is taken or a backend is not known.
    """
    if entry.id in _ENTRIES:
        raise ConfigurationError(f"The task {entry.id} is registered already.")
    for backend in entry.backends:
        if backend not in (*_BACKENDS, ISAACLAB):
            raise ConfigurationError(
                f"Task {entry.id}: unknown backend {backend!r}. {nearest(backend, (*_BACKENDS, ISAACLAB))}"
            )
    _ENTRIES[entry.id] = entry


def get(task_id: str) -> TaskEntry:
    """Return a deep copy of the entry of that id.

    Raises:
        ConfigurationError: No such task; the message holds the nearest names.
    """
    _load_families()
    if task_id not in _ENTRIES:
        raise ConfigurationError(f"Unknown task {task_id!r}. {nearest(task_id, _ENTRIES)}")
    return copy.deepcopy(_ENTRIES[task_id])


def is_registered(task_id: str) -> bool:
    """Return whether there is a task of that id."""
    _load_families()
    return task_id in _ENTRIES


def list_tasks() -> list[TaskEntry]:
    """Return deep copies of all entries, by id."""
    _load_families()
    return [copy.deepcopy(_ENTRIES[task_id]) for task_id in sorted(_ENTRIES)]


def make_env(
    task_id: str,
    *,
    backend: str | None = None,
    num_envs: int | None = None,
    device: str | torch.device = "cpu",
    seed: int = 0,
    final_obs: bool = True,
    overrides: Mapping[str, Any] | None = None,
    num_threads: int | None = None,
    isaaclab: IsaacLabCfg | None = None,
    shard: Shard = WHOLE,
) -> VecEnv:
    """Build the env of a registered task, or with backend ``isaaclab`` of any task that Isaac Lab knows.

    Args:
        task_id: Registered id.
        backend: One of the task's backends; its first by default.
        num_envs: Batch size; the task's default if not given.
        device: Torch device of all tensors.
        seed: Seed of everything random in the env.
        final_obs: Whether ``extras["final_obs"]`` is given.
        overrides: Dotted fields of the task's configuration and their values.
        num_threads: Physics threads of backend ``mujoco``; all cores by default.
        isaaclab: Engine, features and viewers of backend ``isaaclab``.
        shard: Which part of a batch these envs are; not for backend ``isaaclab``.

    Raises:
        ConfigurationError: Unknown task, backend, device or field, or a value the task refuses.
    """
    entry = None if backend == ISAACLAB and not is_registered(task_id) else get(task_id)
    if entry is not None:
        backend = entry.backends[0] if backend is None else backend
        if backend not in entry.backends:
            raise ConfigurationError(
                f"Task {task_id} has no backend {backend!r}; it runs on {' and '.join(entry.backends)}."
            )
        num_envs = entry.default_num_envs if num_envs is None else num_envs
    if num_envs is not None and num_envs < 1:
        raise ConfigurationError(f"num_envs={num_envs}; expected at least 1.")
    where = check_device(device)
    if entry is None or backend == ISAACLAB:
        from myriad_lab.envs.isaaclab.cfg import IsaacLabCfg
        from myriad_lab.tasks.isaaclab_backend import make_env_of

        settings: dict[str, Any] = {"device": str(where), "seed": seed, "final_obs": final_obs, "num_envs": num_envs}
        return make_env_of(task_id, isaaclab or IsaacLabCfg(), overrides=overrides or {}, **settings)
    assert backend is not None  # an entry has both
    assert num_envs is not None
    cfg = apply_overrides(entry.cfg, overrides or {})
    task = entry.make_task(cfg)
    simulator = _BACKENDS[backend](task, num_envs, where, shard.own_seed(seed), num_threads)
    return TaskEnv(task, simulator, seed=seed, final_obs=final_obs, task_id=task_id, shard=shard)


def apply_overrides(cfg: Any, overrides: Mapping[str, Any]) -> Any:
    """Return a copy of the dataclass instance ``cfg`` with the dotted fields replaced and their types checked.

    Raises:
        ConfigurationError: Unknown field (with the nearest names) or a value of the wrong type.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    structured = OmegaConf.structured(cfg)
    for key, value in overrides.items():
        node = cfg
        for part in key.split("."):
            names = [f.name for f in fields(node)] if is_dataclass(node) else []
            if part not in names:
                raise ConfigurationError(f"Unknown field {key!r} of {type(cfg).__name__}. {nearest(part, names)}")
            node = getattr(node, part)
        try:
            OmegaConf.update(structured, key, value)
        except OmegaConfBaseException as error:
            reason = str(error).splitlines()[0]
            raise ConfigurationError(f"{key}={value!r} does not fit {type(cfg).__name__}: {reason}") from error
    return OmegaConf.to_object(structured)


def check_device(device: str | torch.device) -> torch.device:
    """Return a torch device that is there.

    Raises:
        ConfigurationError: If it is no device, or this machine does not have it; says which it has.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    available = ", ".join(["cpu", *[f"cuda:{i}" for i in range(count)]])
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise ConfigurationError(f"device={str(device)!r} is no device; this machine has {available}") from error
    if found.type not in ("cpu", "cuda") or (found.type == "cuda" and (found.index or 0) >= count):
        raise ConfigurationError(f"device={str(device)!r} is not there; this machine has {available}")
    return found


def _torch_backend(task: Any, num_envs: int, device: torch.device, seed: int, num_threads: int | None) -> Simulator:
    """Ask the task for its analytic dynamics; threads are torch's own."""
    return task.make_torch_simulator(num_envs, device, seed)


def _mujoco_backend(task: Any, num_envs: int, device: torch.device, seed: int, num_threads: int | None) -> Simulator:
    """Build the task's robot and arena in MuJoCo; it has no randomness of its own."""
    from myriad_lab.envs.mujoco.simulator import MujocoSimulator

    return MujocoSimulator(task.robot, task.arena, num_envs, device=device, num_threads=num_threads)


def _mujoco_warp_backend(
    task: Any, num_envs: int, device: torch.device, seed: int, num_threads: int | None
) -> Simulator:
    """Build the task's robot and arena in MuJoCo-Warp, whose kernels need no threads of ours; nothing is random."""
    from myriad_lab.envs.mujoco_warp.simulator import MujocoWarpSimulator

    return MujocoWarpSimulator(task.robot, task.arena, num_envs, device=device, capacity=task.cfg.capacity)


_BACKENDS: dict[str, Callable[[Any, int, torch.device, int, int | None], Simulator]] = {
    "torch": _torch_backend,
    "mujoco": _mujoco_backend,
    "mujoco_warp": _mujoco_warp_backend,
}


def _load_families() -> None:
    """Import the families once; each registers its tasks when it is imported."""
    import myriad_lab.tasks.gridworld
    import myriad_lab.tasks.locomotion
    import myriad_lab.tasks.maze  # noqa: F401
