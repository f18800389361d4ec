"""Backend ``isaaclab`` for every task that Isaac Lab can name, ours and its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from myriad_lab.envs.contract import VecEnv
from myriad_lab.envs.isaaclab.cfg import IsaacLabCfg
from myriad_lab.envs.isaaclab.launch import isaaclab_version, make_isaaclab_env, resolve_env_cfg


def make_env_of(task_id: str, cfg: IsaacLabCfg, *, overrides: Mapping[str, Any], **settings: Any) -> VecEnv:
    """Make the env of a task.

    Args:
        task_id: Registered id.
        cfg: Engine, features, bound of the actions, viewers.
        overrides: Dotted keys of the configuration: of the task itself for a task of ours, else of Isaac Lab's.
        settings: The other arguments of ``make_isaaclab_env``.

    Raises:
        ConfigurationError: As ``make_isaaclab_env``.
    """
    _register_ours()
    return make_isaaclab_env(task_id, cfg, overrides=_words(task_id, overrides), **settings)


def resolve(task_id: str, cfg: IsaacLabCfg, overrides: Mapping[str, Any]) -> Any:
    """Return Isaac Lab's configuration of a task with presets and overrides.

    Raises:
        ConfigurationError: As ``resolve_env_cfg``.
    """
    _register_ours()
    return resolve_env_cfg(task_id, cfg, _words(task_id, overrides))


def _register_ours() -> None:
    isaaclab_version()
    import myriad_lab.tasks.isaaclab  # noqa: F401


def _words(task_id: str, overrides: Mapping[str, Any]) -> list[str]:
    """Return overrides as they are typed: those of the task's own fields are under ``env.task``."""
    from myriad_lab.tasks import registry

    own = [spec.name for spec in fields(registry.get(task_id).cfg)] if registry.is_registered(task_id) else []
    words = []
    for key, value in overrides.items():
        path = f"env.task.{key}" if key.split(".")[0] in own else f"env.{key}"
        text = "null" if value is None else value if isinstance(value, str) else repr(value)
        words.append(f"{path}={text}")
    return words
