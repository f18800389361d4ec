"""What all maze tasks share: one start, features x, y, no reward or a sparse goal that the policy cannot see."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch

from myriad_lab.envs.arena import Arena
from myriad_lab.envs.constants import constant
from myriad_lab.envs.contract import TermSpec
from myriad_lab.envs.robot import RobotCfg
from myriad_lab.envs.robot_state import InitialState, RobotState
from myriad_lab.errors import ConfigurationError
from myriad_lab.tasks.maze.arenas import get_arena
from myriad_lab.tasks.ranges import check_numbers


@dataclass
class MazeTaskCfg:
    """Fields shared by all robots in mazes."""

    arena: str = "maze"
    """Map: empty, maze, cave or pyramid."""
    arena_scale: float = 1.0
    """Factor on the size of the map, 1 for 40 m x 24 m."""
    episode_steps: int = 150
    """Control steps until the time-out."""
    sparse_goal: bool = False
    """Whether reaching the goal is rewarded with 1 and ends the episode; otherwise there is neither goal nor reward."""
    goal: list[float] | None = None
    """Goal x, y [m]; by default the 80th percentile of geodesic distance among the reachable cells."""
    goal_radius: float = 0.5
    """Distance to the goal that counts as there [m]."""
    start_noise: float = 0.1
    """Half-width of the uniform noise on the start position along x, y [m]."""
    joint_noise: float = 0.0
    """Half-width of the uniform noise on the start joint positions [rad]."""
    fourier_frequencies: list[float] = field(default_factory=lambda: [1.0, 3.0])
    """Half periods over half the extent of the Fourier features of the position; four numbers per entry."""

    def validate(self) -> None:
        """Raise ``ConfigurationError`` where a number is out of range."""
        noises = ("start_noise", "joint_noise")
        check_numbers(self, counts=("episode_steps",), positive=("arena_scale", "goal_radius"), not_negative=noises)


class MazeTask:
    """A robot in an arena, reward-free for pre-training or with a sparse goal.

    A robot adds its own terms by overriding ``robot_terms`` and ``robot_observation``. The groups ``policy`` and
    ``critic`` are the same and do not contain the goal, so that a portfolio fits both variants.
    """

    def __init__(self, cfg: MazeTaskCfg, robot: RobotCfg) -> None:
        """Build the map and place the goal.

        Raises:
            ConfigurationError: A number out of range, an unknown arena, or a start or goal that is inside a wall or out
                of reach.
        """
        cfg.validate()
        self.cfg = cfg
        self.robot = robot
        self.arena: Arena = replace(get_arena(cfg.arena).scaled(cfg.arena_scale), robot_radius=robot.radius)
        self._check_start()
        if cfg.goal is not None and not cfg.sparse_goal:
            raise ConfigurationError(f"goal={list(cfg.goal)} on a reward-free task; take the variant ending in -Goal.")
        self.goal: tuple[float, float] | None = self._place_goal() if cfg.sparse_goal else None

    def robot_terms(self) -> tuple[TermSpec, ...]:
        """Return the terms that the robot adds after the position; none by default."""
        return ()

    def robot_observation(self, state: RobotState) -> dict[str, torch.Tensor]:
        """Return the robot's own terms, in the order of ``robot_terms``."""
        return {}

    def observation_terms(self) -> dict[str, tuple[TermSpec, ...]]:
        """Return position (over half the extent), its Fourier features, and the robot's own terms."""
        frequencies = tuple(self.cfg.fourier_frequencies)
        half_x, half_y = self.arena.half_extent
        terms = (
            TermSpec("position", (2,), "m", scale=(1 / half_x, 1 / half_y), offset=self.arena.middle),
            TermSpec(
                "position_fourier",
                (4 * len(frequencies),),
                description="sines, then cosines, of pi f p; p: row of position, x, y (outer), f: frequencies (inner)",
                parameters={"frequencies": frequencies},
            ),
            *self.robot_terms(),
        )
        return {"policy": terms, "critic": terms, "features": (TermSpec("root_xy", (2,), "m"),)}

    def bind(self, num_envs: int, device: torch.device | str) -> None:
        """Put the constants on the device."""
        self._middle = torch.tensor(self.arena.middle, device=device)
        self._half_extent = torch.tensor(self.arena.half_extent, device=device)
        self._waves = torch.pi * torch.tensor(self.cfg.fourier_frequencies, device=device)
        self._never = torch.zeros(num_envs, dtype=torch.bool, device=device)
        # Where there is no goal, NaN: no distance to it is ever small enough.
        self._goal = torch.tensor((torch.nan, torch.nan) if self.goal is None else self.goal, device=device)

    def observe(self, state: RobotState) -> dict[str, dict[str, torch.Tensor]]:
        """Return the terms of ``policy`` and ``critic``."""
        position = (state.root_pos_w[:, :2] - self._middle) / self._half_extent
        phase = (position.unsqueeze(2) * self._waves).flatten(1)
        terms = {"position": position, "position_fourier": torch.cat((phase.sin(), phase.cos()), dim=1)}
        terms.update(self.robot_observation(state))
        return {"policy": terms, "critic": terms}

    def features(self, state: RobotState) -> torch.Tensor:
        """Return the position of the root x, y [m], shape (num_envs, 2)."""
        return state.root_pos_w[:, :2]

    def reward(self, state: RobotState) -> dict[str, torch.Tensor]:
        """Return 1 at the goal, or no term at all without a goal."""
        return {} if self.goal is None else {"goal": self._at_goal(state).float()}

    def terminated(self, state: RobotState) -> torch.Tensor:
        """Return where the goal is reached; nowhere without a goal."""
        return self._never.clone() if self.goal is None else self._at_goal(state)

    def success(self, state: RobotState) -> torch.Tensor | None:
        """Return where the goal is reached, or ``None`` without a goal."""
        return None if self.goal is None else self._at_goal(state)

    def reset_distribution(self, num: int, generator: torch.Generator) -> InitialState:
        """Draw upright robots at rest around the one start point, on the ground, in their default pose."""
        device = generator.device
        start = constant(tuple(self.arena.start), device)
        noise = 2 * torch.rand(num, 2, generator=generator, device=device) - 1
        xy = start + self.cfg.start_noise * noise
        height = self.arena.height_at(xy) + self.robot.start_height
        quat = torch.zeros(num, 4, device=device)
        quat[:, 0] = 1.0
        joints = constant(tuple(self.robot.default_joint_pos), device)
        joint_noise = 2 * torch.rand(num, len(joints), generator=generator, device=device) - 1
        return InitialState(
            root_pos_w=torch.cat((xy, height.unsqueeze(1)), dim=1),
            root_quat_w=quat,
            root_lin_vel_w=torch.zeros(num, 3, device=device),
            root_ang_vel_w=torch.zeros(num, 3, device=device),
            joint_pos=joints + self.cfg.joint_noise * joint_noise,
            joint_vel=torch.zeros(num, len(joints), device=device),
        )

    def on_reset(self, env_ids: torch.Tensor, generator: torch.Generator) -> None:
        """Nothing to refresh."""
        return

    def on_step(self, state: RobotState, generator: torch.Generator) -> None:
        """Nothing to advance."""
        return

    def state_dict(self) -> dict[str, Any]:
        """Return no buffers."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore no buffers."""
        return

    def _at_goal(self, state: RobotState) -> torch.Tensor:
        return (state.root_pos_w[:, :2] - self._goal).square().sum(1) <= self.cfg.goal_radius**2

    def _check_start(self) -> None:
        grown = self.robot.radius + self.cfg.start_noise
        if not bool(self.arena.is_free(torch.tensor(self.arena.start), grown)):
            raise ConfigurationError(
                f"start_noise={self.cfg.start_noise} m around the start {self.arena.start} of arena {self.cfg.arena!r} "
                f"reaches into a wall (robot radius {self.robot.radius} m); lower it."
            )

    def _place_goal(self) -> tuple[float, float]:
        if self.cfg.goal is None:
            return self.arena.far_goal(80.0)
        if len(self.cfg.goal) != 2:
            raise ConfigurationError(
                f"goal={self.cfg.goal} has {len(self.cfg.goal)} numbers; expected [x, y] in metres."
            )
        goal = (float(self.cfg.goal[0]), float(self.cfg.goal[1]))
        xy = torch.tensor(goal, dtype=torch.float64)
        hint = f"a far one that can be reached is {[round(value, 2) for value in self.arena.far_goal(80.0)]}."
        if not bool(self.arena.is_free(xy)):
            raise ConfigurationError(
                f"goal={list(goal)} m is inside a wall or outside the extent {self.arena.extent} of arena "
                f"{self.cfg.arena!r} for a robot of radius {self.robot.radius} m; {hint}"
            )
        near = (self.arena.cell_centers() - xy).norm(dim=-1) <= self.cfg.goal_radius
        if not bool((near & self.arena.reachable()).any()):
            raise ConfigurationError(f"goal={list(goal)} m cannot be reached from the start {self.arena.start}; {hint}")
        return goal
