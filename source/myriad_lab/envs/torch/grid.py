"""Gridworlds: discrete moves between free cells, with slips (stochastic version of PGPSE, arXiv 2505.01336)."""

from __future__ import annotations

from typing import Any

import torch

from myriad_lab.envs.robot import RobotCfg
from myriad_lab.envs.robot_state import InitialState, RobotState
from myriad_lab.envs.torch.point import check_no_delay, still_robots
from myriad_lab.errors import ConfigurationError

MOVES = ((1, 0), (0, 1), (-1, 0), (0, -1))
"""Change of column, row of the four actions: east, north, west, south."""


class GridMap:
    """Free cells of a drawing and where each move leads; cell (column, row) has its centre at x = column, y = row."""

    def __init__(self, drawing: tuple[str, ...]) -> None:
        """Read the drawing, north first: ``#`` is wall, ``S`` the start, anything else free."""
        lines = drawing[::-1]
        self.shape = (len(lines[0]), len(lines))
        marks = {(column, row): mark for row, line in enumerate(lines) for column, mark in enumerate(line)}
        self.cells: tuple[tuple[int, int], ...] = tuple(cell for cell, mark in marks.items() if mark != "#")
        self.start: tuple[int, int] = next(cell for cell, mark in marks.items() if mark == "S")
        index = {cell: number for number, cell in enumerate(self.cells)}
        self.start_index = index[self.start]
        self.next_cell = torch.tensor(
            [[index.get((column + dx, row + dy), index[column, row]) for dx, dy in MOVES] for column, row in self.cells]
        )
        """Cell that each of the four moves leads to, long (num_cells, 4); against a wall, the same cell."""
        self._number = torch.full(self.shape, -1)
        for cell, number in index.items():
            self._number[cell] = number

    @property
    def num_cells(self) -> int:
        """Number of free cells."""
        return len(self.cells)

    def index_of(self, xy: torch.Tensor) -> torch.Tensor:
        """Return the number of the free cell around each position ``xy`` (n, 2), long (n,); -1 in a wall."""
        column, row = xy.round().long().unbind(1)
        return self._number.to(xy.device)[column, row]


class GridSimulator:
    """A batch of agents on one grid.

    An action is a vector of four numbers, one per move of ``MOVES``; the largest is the intended move (the first of
    equal ones). With probability ``slip`` one of the three other moves happens instead, all equally likely. A move into
    a wall leaves the agent where it is.
    """

    def __init__(
        self, robot: RobotCfg, grid: GridMap, slip: float, num_envs: int, device: torch.device | str, seed: int
    ) -> None:
        """Put all agents on the start cell; ``seed`` is that of the slips.

        Raises:
            ConfigurationError: The robot's actions are delayed.
        """
        check_no_delay(robot)
        self.num_envs = num_envs
        self.device = torch.device(device)
        self.slip = slip
        self._grid = grid
        self._period = robot.control_period
        self._next_cell = grid.next_cell.to(self.device)
        self._centers = torch.tensor(grid.cells, dtype=torch.float32, device=self.device)
        self._cell = torch.full((num_envs,), grid.start_index, device=self.device)
        self._generator = torch.Generator(device=self.device)
        self._generator.manual_seed(seed)
        self._state = still_robots(num_envs, len(MOVES), self.device)
        self._state.root_pos_w[:, :2] = self._centers[self._cell]

    def step(self, actions: torch.Tensor) -> torch.Tensor:
        """Make one move each; nothing can diverge."""
        state = self._state
        intended = actions.argmax(1)
        shape = (self.num_envs,)
        slipped = torch.rand(shape, generator=self._generator, device=self.device) < self.slip
        other = torch.randint(1, len(MOVES), shape, generator=self._generator, device=self.device)
        move = torch.where(slipped, (intended + other) % len(MOVES), intended)
        self._cell = self._next_cell[self._cell, move]
        before = state.root_pos_w[:, :2].clone()
        state.root_pos_w[:, :2] = self._centers[self._cell]
        state.root_lin_vel_w[:, :2] = (state.root_pos_w[:, :2] - before) / self._period
        state.previous_actions, state.actions = state.actions, state.previous_actions.copy_(actions)
        return torch.zeros(shape, dtype=torch.bool, device=self.device)

    def reset(self, env_ids: torch.Tensor, initial: InitialState) -> None:
        """Put agents on the cells around their initial positions.

        Raises:
            ConfigurationError: A position is inside a wall.
        """
        cells = self._grid.index_of(initial.root_pos_w[:, :2])
        if bool((cells < 0).any()):
            place = initial.root_pos_w[cells < 0][0, :2].tolist()
            raise ConfigurationError(f"An agent cannot start at {place}, inside a wall; choose a free cell.")
        self._cell[env_ids] = cells
        self._state.root_pos_w[env_ids] = initial.root_pos_w
        self._state.root_lin_vel_w[env_ids] = 0.0
        self._state.actions[env_ids] = 0.0
        self._state.previous_actions[env_ids] = 0.0

    def state(self) -> RobotState:
        """Return live views."""
        return self._state

    def state_dict(self) -> dict[str, Any]:
        """Return cells, robot state and the generator of the slips."""
        names = ("root_pos_w", "root_lin_vel_w", "actions", "previous_actions")
        robots = {name: getattr(self._state, name).clone() for name in names}
        return {"cell": self._cell.clone(), "robots": robots, "generator": self._generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self._cell = state["cell"].to(self.device, copy=True)
        for name, value in state["robots"].items():
            getattr(self._state, name).copy_(value)
        self._generator.set_state(state["generator"].cpu())

    def close(self) -> None:
        """Nothing to free."""
        return
