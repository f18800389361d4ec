"""``Myriad-Ant``: a torque-driven ant runs along +x."""

from __future__ import annotations

from dataclasses import dataclass

from myriad_lab.tasks.locomotion.robots.robots import ANT
from myriad_lab.tasks.locomotion.run_task import RunTask, RunTaskCfg
from myriad_lab.tasks.registry import TaskEntry, register


@dataclass
class AntCfg(RunTaskCfg):
    """The ant's weights are the defaults."""


def make_ant(cfg: AntCfg) -> RunTask:
    """Return the task."""
    return RunTask(cfg, ANT)


def register_ant() -> None:
    """Register ``Myriad-Ant``."""
    register(
        TaskEntry(
            id="Myriad-Ant",
            family="locomotion",
            backends=("mujoco", "mujoco_warp", "isaaclab"),
            cfg=AntCfg(),
            make_task=make_ant,
            description="Ant, 8 torques: run along +x, dense reward.",
            default_num_envs=1024,
        )
    )
