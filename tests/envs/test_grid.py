"""Gridworlds: maps, moves, slip probabilities."""

from __future__ import annotations

import pytest
import torch

from myriad_lab.envs.torch.grid import MOVES, GridMap
from myriad_lab.errors import ConfigurationError
from myriad_lab.tasks.registry import make_env

PLUS = GridMap(("#.#", ".S.", "#.#"))


def test_moves_of_a_plus_by_hand():
    place = {cell: number for number, cell in enumerate(PLUS.cells)}
    assert PLUS.num_cells == 5
    assert PLUS.start == (1, 1)
    assert PLUS.next_cell[place[1, 1]].tolist() == [place[2, 1], place[1, 2], place[0, 1], place[1, 0]]
    assert PLUS.next_cell[place[2, 1]].tolist() == [place[2, 1], place[2, 1], place[1, 1], place[2, 1]]
    assert PLUS.index_of(torch.tensor([[1.2, 0.9], [0.0, 0.0]])).tolist() == [place[1, 1], -1]


@pytest.mark.parametrize(("name", "shape"), [("Room", (11, 5)), ("Maze", (10, 10))])
def test_maps_of_the_paper_have_43_connected_cells(name, shape):
    task = make_env(f"Myriad-Gridworld-{name}", num_envs=1).task
    assert task.grid.shape == shape
    assert task.grid.num_cells == 43
    reached = {task.grid.start_index}
    for _ in range(43):
        reached |= {n for cell in reached for n in task.grid.next_cell[cell].tolist()}
    assert len(reached) == 43
    free = task.arena.is_free(torch.tensor(task.grid.cells, dtype=torch.float64))
    assert free.all()
    assert len(task.arena.boxes) == shape[0] * shape[1] - 43


def test_slip_probabilities():
    n = 40_000
    env = make_env("Myriad-Gridworld-Maze", num_envs=n, seed=0)
    actions = torch.zeros(n, 4)
    actions[:, 1] = 0.3  # north, though no entry is near 1
    obs, _, _, _ = env.step(actions)
    moved = obs["features"] - torch.tensor(env.task.grid.start, dtype=torch.float32)
    shares = {move: float((moved == torch.tensor(move)).all(1).double().mean()) for move in MOVES}
    # The start has no free cell to the east and south in the order of MOVES where the drawing has walls.
    free = {move for index, move in enumerate(MOVES) if _free(env.task.grid, index)}
    for move in free:
        expected = 0.8 if move == (0, 1) else 0.2 / 3
        assert shares[move] == pytest.approx(expected, abs=0.006)
    stayed = float((moved == 0).all(1).double().mean())
    assert stayed == pytest.approx((4 - len(free)) * 0.2 / 3, abs=0.006)
    assert len(free) >= 3


def _free(grid: GridMap, move: int) -> bool:
    return int(grid.next_cell[grid.start_index, move]) != grid.start_index


def test_without_slip_the_largest_entry_is_the_move():
    env = make_env("Myriad-Gridworld-Room", num_envs=5, overrides={"slip": 0.0})
    actions = torch.eye(4)[[0, 1, 2, 3, 0]] - 0.5
    actions[4] = 0.0  # ties: the first move, east
    obs, _, _, _ = env.step(actions)
    assert obs["features"].tolist() == [[6.0, 2.0], [5.0, 2.0], [4.0, 2.0], [5.0, 2.0], [6.0, 2.0]]
    assert obs["policy"].sum(1).tolist() == [1.0] * 5
    cells = torch.tensor(env.task.grid.cells, dtype=torch.float32)
    assert torch.equal(cells[obs["policy"].argmax(1)], obs["features"])


def test_a_start_inside_a_wall_is_refused_and_changes_nothing():
    env = make_env("Myriad-Gridworld-Room", num_envs=2)
    initial = env.task.reset_distribution(2, torch.Generator())
    initial.root_pos_w[1, :2] = torch.tensor([5.0, 0.0])
    before = env.simulator.state_dict()["cell"]
    with pytest.raises(ConfigurationError, match=r"cannot start at \[5\.0, 0\.0\], inside a wall"):
        env.simulator.reset(torch.arange(2), initial)
    assert torch.equal(env.simulator.state_dict()["cell"], before)
