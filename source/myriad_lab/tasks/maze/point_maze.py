"""Point robots in mazes: ``Myriad-PointMaze-{Empty,Maze,Cave}`` and their ``-Goal`` variants."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from myriad_lab.envs.contract import ActionSpec
from myriad_lab.envs.robot import RobotCfg
from myriad_lab.envs.torch.point import PointSimulator
from myriad_lab.tasks.maze.maze_task import MazeTask, MazeTaskCfg
from myriad_lab.tasks.ranges import check_numbers
from myriad_lab.tasks.registry import TaskEntry, register


@dataclass
class PointMazeCfg(MazeTaskCfg):
    """A point robot that moves up to 0.25 m a step along each axis."""

    arena_scale: float = 0.4
    """Factor on the size of the map, 0.4 for 16 m x 9.6 m."""
    max_speed: float = 2.5
    """Speed along x or y at full action [m/s]."""
    control_period: float = 0.1
    """Time between two actions [s]."""
    robot_radius: float = 0.1
    """Half-width of the robot [m]."""

    def validate(self) -> None:
        """Raise ``ConfigurationError`` where a number is out of range."""
        super().validate()
        check_numbers(self, positive=("max_speed", "control_period", "robot_radius"))


class PointMazeTask(MazeTask):
    """A point robot in a maze; the position is all there is to observe."""

    def __init__(self, cfg: PointMazeCfg) -> None:
        cfg.validate()  # before anything is made of its numbers
        robot = RobotCfg(
            name="point",
            action=ActionSpec(
                names=("x", "y"), kind="velocity", unit="m/s", scale=(cfg.max_speed,) * 2, offset=(0.0, 0.0)
            ),
            physics_dt=cfg.control_period,
            decimation=1,
            radius=cfg.robot_radius,
        )
        super().__init__(cfg, robot)

    def make_torch_simulator(self, num_envs: int, device: torch.device, seed: int) -> PointSimulator:
        """Return the simulator of backend ``torch``; it has no randomness, ``seed`` is not used."""
        return PointSimulator(self.robot, self.arena, num_envs, device)


def register_point_mazes() -> None:
    """Register every map, reward-free and with a goal."""
    for arena in ("empty", "maze", "cave"):
        for suffix, goal in (("", False), ("-Goal", True)):
            what = "sparse goal" if goal else "reward-free"
            register(
                TaskEntry(
                    id=f"Myriad-PointMaze-{arena.title()}{suffix}",
                    family="maze",
                    backends=("torch",),
                    cfg=PointMazeCfg(arena=arena, sparse_goal=goal),
                    make_task=PointMazeTask,
                    description=f"Point robot, map {arena!r} of 16 m x 9.6 m, {what}.",
                    default_num_envs=4096,
                )
            )
