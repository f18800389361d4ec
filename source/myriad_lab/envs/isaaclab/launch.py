"""Make an env of Isaac Lab: find the task, settle its configuration, start the simulator, wrap the env."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from importlib import metadata
from pathlib import Path
from typing import Any

from myriad_lab.envs.isaaclab.cfg import IsaacLabCfg
from myriad_lab.errors import ConfigurationError, nearest

log = logging.getLogger(__name__)

SUPPORTED = "3.0"
"""Beginning of the versions of Isaac Lab that work."""
INSTALL = "see docs/isaaclab.md for how to install Isaac Lab 3.0"


def isaaclab_version() -> str:
    """Return the version of Isaac Lab.

    Raises:
        ConfigurationError: There is none, or it is one that is not supported.
    """
    try:
        version = metadata.version("isaaclab")
    except metadata.PackageNotFoundError:
        raise ConfigurationError(f"backend isaaclab needs Isaac Lab, which is not installed here; {INSTALL}") from None
    if not version.startswith(SUPPORTED):
        raise ConfigurationError(f"Isaac Lab {version} is not supported yet, only 3.0; {INSTALL}")
    return version


def list_isaaclab_tasks() -> list[str]:
    """Return the ids of the tasks that Isaac Lab and its extensions have registered, ours included."""
    import gymnasium

    _import_tasks()
    return sorted(name for name, spec in gymnasium.registry.items() if "env_cfg_entry_point" in (spec.kwargs or {}))


def resolve_env_cfg(task_id: str, cfg: IsaacLabCfg, overrides: Sequence[str] = ()) -> Any:
    """Return the configuration of a task with presets and overrides; nothing is started.

    Args:
        task_id: Registered id.
        cfg: Engine, presets, play mode.
        overrides: ``env.KEY=VALUE``, as for Isaac Lab's own commands.

    Raises:
        ConfigurationError: An unknown task, preset or key, or a value of another type.
    """
    known = list_isaaclab_tasks()
    if task_id not in known:
        raise ConfigurationError(f"Isaac Lab has no task {task_id!r}. {nearest(task_id, known)}")
    from isaaclab_tasks.utils import resolve_task_config

    chosen = {"physics": cfg.physics, "presets": cfg.presets}
    selectors = [f"{name}={value}" for name, value in chosen.items() if value]
    try:
        plain, _ = resolve_task_config(task_id, None, overrides=selectors)
        for override in overrides:
            _check_key(task_id, plain, override)
        env_cfg, _ = resolve_task_config(task_id, None, overrides=[*selectors, *overrides])
        for override in overrides:
            _check_value(task_id, plain, env_cfg, override)
        if cfg.play_mode:
            env_cfg = _in_play_mode(task_id, selectors, overrides)
    except ConfigurationError:
        raise
    except (ImportError, ValueError, AttributeError, TypeError) as error:
        raise ConfigurationError(f"{task_id} cannot be configured here: {error}") from error
    return env_cfg


def _in_play_mode(task_id: str, selectors: Sequence[str], overrides: Sequence[str]) -> Any:
    """Return the configuration for playing, without the overrides of what is left out there, e.g. of pushes."""
    from isaaclab_tasks.utils import resolve_task_config

    played, _ = resolve_task_config(task_id, None, play_mode=True, overrides=selectors)
    left = [override for override in overrides if not _is_gone(played, override)]
    for override in overrides:
        if override not in left:
            log.info("%s: %s has no effect when playing, which leaves that out", task_id, override)
    env_cfg, _ = resolve_task_config(task_id, None, play_mode=True, overrides=[*selectors, *left])
    return env_cfg


def make_isaaclab_env(
    task_id: str,
    cfg: IsaacLabCfg | None = None,
    *,
    num_envs: int | None = None,
    device: str = "cpu",
    seed: int = 0,
    final_obs: bool = True,
    overrides: Sequence[str] = (),
) -> Any:
    """Start the simulator and make the env; one at a time in a process, as Isaac Lab allows.

    Args:
        task_id: Id of any single-agent or multi-agent task that Isaac Lab knows.
        cfg: Engine, features, bound of the actions, viewers.
        num_envs: Number of envs; the task's own where ``None``.
        device: Device of simulation and tensors.
        seed: Seed, set before anything is made.
        final_obs: Whether ``extras["final_obs"]`` is given.
        overrides: ``env.KEY=VALUE``, as for Isaac Lab's own commands.

    Returns:
        An ``IsaacLabEnv``, or an ``IsaacLabMultiAgentEnv`` for a multi-agent task.

    Raises:
        ConfigurationError: Isaac Lab is missing or not supported, or a setting is wrong.
    """
    isaaclab_version()
    cfg = cfg or IsaacLabCfg()
    cfg.validate()
    env_cfg = resolve_env_cfg(task_id, cfg, overrides)
    settle_env_cfg(task_id, env_cfg, num_envs=num_envs, device=device, seed=seed, final_obs=final_obs)
    env, cleanup = start_gym_env(task_id, env_cfg, cfg)
    try:
        return _wrap(env, task_id, cfg, cleanup)
    except BaseException:
        env.close()
        cleanup.close()
        raise


def settle_env_cfg(
    task_id: str, env_cfg: Any, *, num_envs: int | None, device: str, seed: int, final_obs: bool
) -> None:
    """Write into a configuration what every backend takes, before the env is made.

    Raises:
        ConfigurationError: The final observations of the task would be wrong.
    """
    from myriad_lab.envs.isaaclab.final_obs import check_final_obs

    if num_envs is not None:
        env_cfg.scene.num_envs = num_envs
    env_cfg.sim.device = device
    env_cfg.seed = seed
    env_cfg.compute_final_obs = final_obs
    if final_obs:
        check_final_obs(task_id, env_cfg)


def start_gym_env(task_id: str, env_cfg: Any, cfg: IsaacLabCfg) -> tuple[Any, ExitStack]:
    """Launch the runtime that a settled configuration needs, and make the env of Isaac Lab.

    Returns:
        What ``gymnasium.make`` returns, and what is to be closed after it.

    Raises:
        ConfigurationError: The runtime is not there.
    """
    import gymnasium
    from isaaclab.app import launch_simulation

    _warn_of_threads()
    arguments = {"device": env_cfg.sim.device, "visualizer": cfg.viz.split(",") if cfg.viz else None}
    with ExitStack() as stack:
        try:
            stack.enter_context(launch_simulation(env_cfg, arguments))
        except (ImportError, ValueError) as error:
            raise ConfigurationError(
                f"{task_id}: Isaac Lab cannot start the physics {type(env_cfg.sim.physics).__name__} here: {error}; "
                "without Isaac Sim choose physics=newton_mjwarp or physics=ovphysx"
            ) from error
        if type(env_cfg.sim.physics).__name__ == "OvPhysxCfg":
            from myriad_lab.envs.isaaclab.pinned_shim import install_pinned_shim

            install_pinned_shim()
        try:
            env = gymnasium.make(task_id, cfg=env_cfg)
        except FileNotFoundError as error:
            raise ConfigurationError(
                f"{task_id}: an asset cannot be had: {error}; without ISAACSIM_ASSET_ROOT it is fetched from NVIDIA's "
                "servers, with it it must lie there"
            ) from error
        return env, stack.pop_all()


def dump_env_cfg(env: Any, path: Path) -> None:
    """Write the whole configuration that Isaac Lab runs the env with, as its own commands do."""
    from isaaclab.utils.io import dump_yaml

    dump_yaml(str(path), env.inner.cfg)


def _wrap(env: Any, task_id: str, cfg: IsaacLabCfg, cleanup: ExitStack) -> Any:
    from isaaclab.envs import DirectMARLEnv

    if isinstance(env.unwrapped, DirectMARLEnv):
        from myriad_lab.envs.isaaclab.marl import IsaacLabMultiAgentEnv

        return IsaacLabMultiAgentEnv(env, task_id=task_id, cfg=cfg, cleanup=cleanup)
    from myriad_lab.envs.isaaclab.adapter import IsaacLabEnv

    return IsaacLabEnv(env, task_id=task_id, cfg=cfg, cleanup=cleanup)


def _import_tasks() -> None:
    """Let Isaac Lab and its installed extensions register their tasks."""
    import isaaclab_tasks  # noqa: F401

    for extension in metadata.entry_points(group="isaaclab.tasks"):
        extension.load()


def _warn_of_threads() -> None:
    """Say so where the threads of torch would fight with those of the physics."""
    if "OMP_NUM_THREADS" not in os.environ:
        log.warning("OMP_NUM_THREADS is not set; on a CPU set it to 1, or threads of torch and of the physics compete")


def _check_key(task_id: str, env_cfg: Any, override: str) -> None:
    """Refuse a key that the configuration does not have, which Isaac Lab would add to it without a word."""
    key = override.partition("=")[0]
    section, *path = key.split(".")
    if section != "env" or not path:
        raise ConfigurationError(f"override {override!r}: expected env.KEY=VALUE")
    node: Any = env_cfg
    for part in path:
        names = list(node) if isinstance(node, Mapping) else list(vars(node)) if hasattr(node, "__dict__") else []
        if part not in names:
            raise ConfigurationError(f"{task_id}: unknown key {key}. {nearest(part, names)}")
        node = _child(node, part)


def _check_value(task_id: str, before: Any, after: Any, override: str) -> None:
    """Refuse a value of another kind than the one it took the place of; ``null`` switches off all but numbers."""
    key = override.partition("=")[0]
    for part in key.split(".")[1:]:
        before, after = _child(before, part), _child(after, part)
    if after is None and not isinstance(before, (bool, int, float)):
        return
    if hasattr(before, "__dataclass_fields__") and not hasattr(after, "__dataclass_fields__"):
        raise ConfigurationError(f"{task_id}: {override}; {key} is a group of keys, set one of them: {key}.KEY=VALUE")
    for kinds in ((list, tuple, dict), (bool, int, float)):
        if isinstance(before, kinds) and not isinstance(after, kinds):
            raise ConfigurationError(f"{task_id}: {override}; expected {type(before).__name__}, as {before!r}")


def _is_gone(env_cfg: Any, override: str) -> bool:
    """Return whether a configuration has nothing any more where a key lies."""
    node = env_cfg
    for part in override.partition("=")[0].split(".")[1:-1]:
        node = _child(node, part)
        if node is None:
            return True
    return False


def _child(node: Any, part: str) -> Any:
    return node[part] if isinstance(node, Mapping) else getattr(node, part)
