"""Our tasks in Isaac Lab's registry: importing this package registers them, and needs nothing but gymnasium."""

from __future__ import annotations

import gymnasium

from myriad_lab.tasks.registry import list_tasks


def task_ids() -> list[str]:
    """Return the ids of the tasks that run on Isaac Lab: those whose robot has a MuJoCo description."""
    return [entry.id for entry in list_tasks() if "isaaclab" in entry.backends]


def cfg_name(task_id: str, ending: str) -> str:
    """Return the name of a configuration class of a task, e.g. ``MyriadAntMazeMazeGoal`` and the ending."""
    return task_id.replace("-", "") + ending


def register_tasks() -> None:
    """Register the tasks under their own ids; those that are there already stay."""
    for task_id in task_ids():
        if task_id not in gymnasium.registry:
            gymnasium.register(
                id=task_id,
                entry_point=f"{__name__}.env:TaskDirectEnv",
                disable_env_checker=True,
                kwargs={
                    "env_cfg_entry_point": f"{__name__}.env_cfg:{cfg_name(task_id, 'EnvCfg')}",
                    "rsl_rl_cfg_entry_point": f"{__name__}.agents:{cfg_name(task_id, 'PpoRunnerCfg')}",
                    "rsl_rl_kmyriad_cfg_entry_point": f"{__name__}.agents:{cfg_name(task_id, 'KMyriadRunnerCfg')}",
                    "default_agent": "rsl_rl",
                },
            )


register_tasks()
