"""``Myriad-Humanoid``: a torque-driven humanoid runs along +x."""

from __future__ import annotations

from dataclasses import dataclass

from myriad_lab.tasks.locomotion.robots.robots import HUMANOID
from myriad_lab.tasks.locomotion.run_task import RunTask, RunTaskCfg
from myriad_lab.tasks.registry import TaskEntry, register


@dataclass
class HumanoidCfg(RunTaskCfg):
    """Staying up is worth more than for the ant, falling costs less than it saves."""

    alive_weight: float = 2.0
    """For every step that does not end the episode."""
    action_cost: float = 0.01
    """Per sum of squared actions."""
    death_cost: float = 1.0
    """At a fall."""
    min_height: float = 0.8
    """A torso below it has fallen [m]."""


def make_humanoid(cfg: HumanoidCfg) -> RunTask:
    """Return the task."""
    return RunTask(cfg, HUMANOID)


def register_humanoid() -> None:
    """Register ``Myriad-Humanoid``."""
    register(
        TaskEntry(
            id="Myriad-Humanoid",
            family="locomotion",
            backends=("mujoco", "mujoco_warp", "isaaclab"),
            cfg=HumanoidCfg(),
            make_task=make_humanoid,
            description="Humanoid, 21 torques: run along +x, dense reward.",
            default_num_envs=1024,
        )
    )
