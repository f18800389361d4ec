"""The two gridworlds of PGPSE (arXiv 2505.01336): ``Myriad-Gridworld-{Room,Maze}``, 43 free cells each, reward-free.

Sizes, cell counts, moves and slip follow the paper; the corridors of the maze are our own drawing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from myriad_lab.envs.arena import Arena, Box
from myriad_lab.envs.contract import ActionSpec, TermSpec
from myriad_lab.envs.robot import RobotCfg
from myriad_lab.envs.robot_state import InitialState, RobotState
from myriad_lab.envs.torch.grid import MOVES, GridMap, GridSimulator
from myriad_lab.errors import ConfigurationError, nearest
from myriad_lab.tasks.ranges import check_numbers
from myriad_lab.tasks.registry import TaskEntry, register

MAPS: dict[str, tuple[str, ...]] = {
    "room": (
        "....###....",
        "....###....",
        ".....S.....",
        "....###....",
        "....###....",
    ),
    "maze": (
        "....#.....",
        ".####.###.",
        ".####.###.",
        ".####.#...",
        ".....S.###",
        "#####.####",
        "#####.###.",
        "#####.###.",
        "..........",
        ".#########",
    ),
}
"""Drawings, north first: ``#`` wall, ``S`` start."""


@dataclass
class GridworldCfg:
    """A gridworld without reward."""

    map: str = "room"
    """Name of the drawing: room or maze."""
    episode_steps: int = 10
    """Moves until the time-out."""
    slip: float = 0.2
    """Probability that another than the intended move happens; 0 for the deterministic version."""


class GridworldTask:
    """A walk on a grid; the policy sees the one-hot of its cell, so that a linear policy is a table."""

    def __init__(self, cfg: GridworldCfg) -> None:
        """Read the drawing.

        Raises:
            ConfigurationError: Unknown map, no steps, or a slip outside [0, 1].
        """
        if cfg.map not in MAPS:
            raise ConfigurationError(f"Unknown gridworld map {cfg.map!r}. {nearest(cfg.map, MAPS)}")
        check_numbers(cfg, counts=("episode_steps",))
        if not 0.0 <= cfg.slip <= 1.0:
            raise ConfigurationError(f"slip={cfg.slip}; expected a probability between 0 and 1.")
        self.cfg = cfg
        self.grid = GridMap(MAPS[cfg.map])
        self.arena = _arena_of(cfg.map, self.grid)
        self.robot = RobotCfg(
            name="grid_agent",
            action=ActionSpec(
                names=("east", "north", "west", "south"),
                kind="discrete",
                unit="1",
                scale=(1.0,) * len(MOVES),
                offset=(0.0,) * len(MOVES),
            ),
            physics_dt=1.0,
            decimation=1,
        )

    def make_torch_simulator(self, num_envs: int, device: torch.device, seed: int) -> GridSimulator:
        """Return the simulator of backend ``torch``."""
        return GridSimulator(self.robot, self.grid, self.cfg.slip, num_envs, device, seed)

    def observation_terms(self) -> dict[str, tuple[TermSpec, ...]]:
        """Return the one-hot of the cell, and the cell coordinates as features."""
        terms = (TermSpec("cell", (self.grid.num_cells,)),)
        return {"policy": terms, "critic": terms, "features": (TermSpec("root_xy", (2,), "m"),)}

    def bind(self, num_envs: int, device: torch.device | str) -> None:
        """Put the constants on the device."""
        self._eye = torch.eye(self.grid.num_cells, device=device)
        self._never = torch.zeros(num_envs, dtype=torch.bool, device=device)

    def observe(self, state: RobotState) -> dict[str, dict[str, torch.Tensor]]:
        """Return the one-hot of the cell."""
        terms = {"cell": self._eye[self.grid.index_of(state.root_pos_w[:, :2])]}
        return {"policy": terms, "critic": terms}

    def features(self, state: RobotState) -> torch.Tensor:
        """Return column and row of the cell; cells are 1 m wide."""
        return state.root_pos_w[:, :2]

    def reward(self, state: RobotState) -> dict[str, torch.Tensor]:
        """Return no term: there is no reward."""
        return {}

    def terminated(self, state: RobotState) -> torch.Tensor:
        """Return false everywhere."""
        return self._never.clone()

    def success(self, state: RobotState) -> torch.Tensor | None:
        """Return ``None``: there is no goal."""
        return None

    def reset_distribution(self, num: int, generator: torch.Generator) -> InitialState:
        """Return ``num`` agents on the start cell."""
        device = generator.device
        position = torch.zeros(num, 3, device=device)
        position[:, :2] = torch.tensor(self.grid.start, dtype=torch.float32, device=device)
        quat = torch.zeros(num, 4, device=device)
        quat[:, 0] = 1.0
        zeros, nothing = torch.zeros(num, 3, device=device), torch.zeros(num, 0, device=device)
        return InitialState(position, quat, zeros, zeros, nothing, nothing)

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


def _arena_of(name: str, grid: GridMap) -> Arena:
    """Return the grid as an arena with one box per wall cell, for maps and pictures."""
    columns, rows = grid.shape
    free = set(grid.cells)
    walls = [(column, row) for row in range(rows) for column in range(columns) if (column, row) not in free]
    boxes = tuple(Box((float(column), float(row)), (0.5, 0.5), 1.0) for column, row in walls)
    start = (float(grid.start[0]), float(grid.start[1]))
    return Arena(f"gridworld_{name}", (-0.5, columns - 0.5, -0.5, rows - 0.5), boxes, start=start)


def register_gridworlds() -> None:
    """Register both maps."""
    for name in MAPS:
        register(
            TaskEntry(
                id=f"Myriad-Gridworld-{name.title()}",
                family="gridworld",
                backends=("torch",),
                cfg=GridworldCfg(map=name),
                make_task=GridworldTask,
                description=f"Gridworld {name!r} of 43 free cells, four moves that slip, reward-free.",
                default_num_envs=1024,
            )
        )
