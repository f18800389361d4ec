"""Ants in mazes: ``Myriad-AntMaze-{Empty,Maze,Pyramid,Cave}`` and their ``-Goal`` variants."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch

from myriad_lab.envs.contract import TermSpec
from myriad_lab.envs.mujoco_warp.cfg import CapacityCfg
from myriad_lab.envs.robot_state import RobotState
from myriad_lab.envs.rotations import rotation_matrix
from myriad_lab.tasks.locomotion.robots.robots import ANT
from myriad_lab.tasks.maze.maze_task import MazeTask, MazeTaskCfg
from myriad_lab.tasks.ranges import check_numbers
from myriad_lab.tasks.registry import TaskEntry, register


@dataclass
class AntMazeCfg(MazeTaskCfg):
    """An ant on a map of 40 m x 24 m."""

    episode_steps: int = 300
    """Control steps until the time-out."""
    decimation: int = 4
    """Physics steps of 1/120 s per control step: an episode of 300 steps lasts 10 s, time to get somewhere."""
    fall_ends: bool = True
    """Whether an ant on its back ends the episode and goes on from the start; it cannot get up by itself."""
    goal_radius: float = 1.0
    """Distance to the goal that counts as there [m]."""
    joint_noise: float = 0.1
    """Half-width of the uniform noise on the start joint positions [rad]."""
    joint_vel_scale: float = 0.1
    """Scale of joint velocities in the observation [s/rad]."""
    capacity: CapacityCfg = field(default_factory=CapacityCfg)
    """Room for contacts on backend ``mujoco_warp``."""

    def validate(self) -> None:
        """Raise ``ConfigurationError`` where a number is out of range."""
        super().validate()
        self.capacity.validate()
        check_numbers(self, counts=("decimation",), positive=("joint_vel_scale",))


class AntMazeTask(MazeTask):
    """An ant in a maze; time, the goal and, unless configured otherwise, lying on the back end an episode."""

    cfg: AntMazeCfg

    def __init__(self, cfg: AntMazeCfg) -> None:
        super().__init__(cfg, replace(ANT, decimation=cfg.decimation))

    def robot_terms(self) -> tuple[TermSpec, ...]:
        """Return the state of body and joints."""
        joints = (len(self.robot.joint_names),)
        return (
            TermSpec("root_height", (1,), "m"),
            TermSpec("heading", (2,), description="world x and y of the base's x axis; shorter than 1 where pitched"),
            TermSpec("projected_gravity", (3,)),
            TermSpec("lin_vel_b", (3,), "m/s"),
            TermSpec("ang_vel_b", (3,), "rad/s"),
            TermSpec("joint_pos", joints, "rad"),
            TermSpec("joint_vel_scaled", joints, "rad/s", scale=(self.cfg.joint_vel_scale,) * joints[0]),
            TermSpec("actions", (len(self.robot.action.names),), description="last output of the policy"),
        )

    def robot_observation(self, state: RobotState) -> dict[str, torch.Tensor]:
        """Return the terms of ``robot_terms``; the default pose of the ant is all zeros."""
        to_world = rotation_matrix(state.root_quat_w)
        velocities_w = torch.stack((state.root_lin_vel_w, state.root_ang_vel_w), dim=1)
        velocities_b = torch.bmm(velocities_w, to_world)
        return {
            "root_height": state.root_pos_w[:, 2:],
            "heading": to_world[:, :2, 0],
            "projected_gravity": -to_world[:, 2],
            "lin_vel_b": velocities_b[:, 0],
            "ang_vel_b": velocities_b[:, 1],
            "joint_pos": state.joint_pos,
            "joint_vel_scaled": state.joint_vel * self.cfg.joint_vel_scale,
            "actions": state.actions,
        }

    def terminated(self, state: RobotState) -> torch.Tensor:
        """Return where the goal is reached or the ant lies on its back."""
        ended = super().terminated(state)
        if self.cfg.fall_ends:
            # The body's z axis points down: 1 - 2 (x^2 + y^2) < 0.
            ended = ended | (state.root_quat_w[:, 1:3].square().sum(1) > 0.5)
        return ended


def register_ant_mazes() -> None:
    """Register every map, reward-free and with a goal."""
    for arena in ("empty", "maze", "pyramid", "cave"):
        for suffix, goal in (("", False), ("-Goal", True)):
            what = "sparse goal" if goal else "reward-free"
            register(
                TaskEntry(
                    id=f"Myriad-AntMaze-{arena.title()}{suffix}",
                    family="maze",
                    backends=("mujoco", "mujoco_warp", "isaaclab"),
                    cfg=AntMazeCfg(arena=arena, sparse_goal=goal),
                    make_task=AntMazeTask,
                    description=f"Ant, 8 torques, map {arena!r} of 40 m x 24 m, {what}.",
                    default_num_envs=1024,
                )
            )
