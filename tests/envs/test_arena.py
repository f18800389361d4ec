"""Arena maps against hand counts, on drawings small enough to check by eye."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch

from myriad_lab.envs.arena import Arena, Box, HeightField
from myriad_lab.errors import ConfigurationError
from myriad_lab.tasks.maze.arenas import get_arena

# 5 x 5 cells of 1 m. A wall fills column 2 but for its top cell; cell (4, 0) is walled off by (3, 0), (3, 1), (4, 1).
WALL = Box((2.5, 2.0), (0.5, 2.0), 1.0)
POCKET = (Box((3.5, 1.0), (0.5, 1.0), 1.0), Box((4.5, 1.5), (0.5, 0.5), 1.0))
ROOM = Arena("room", (0.0, 5.0, 0.0, 5.0), (WALL, *POCKET), start=(0.5, 0.5))


def test_occupancy_is_indexed_x_first_and_grows_with_the_robot():
    occupied = ROOM.occupancy(cells=5)
    expected = torch.zeros(5, 5, dtype=torch.bool)
    expected[2, :4] = True
    expected[3, :2] = True
    expected[4, 1] = True
    assert torch.equal(occupied, expected)
    assert ROOM.occupancy(cells=5, radius=0.6)[1, 0]
    assert torch.equal(replace(ROOM, robot_radius=0.6).occupancy(5), ROOM.occupancy(5, radius=0.6))


def test_flood_fill_counts_by_hand():
    reachable = ROOM.reachable(cells=5)
    # 10 cells west of the wall, 1 in the gap, 3 + 3 east of it and above the pocket; (4, 0) is free, but walled off.
    assert int(reachable.sum()) == 10 + 1 + 3 + 3
    assert not reachable[4, 0]
    assert not ROOM.occupancy(cells=5)[4, 0]


def test_geodesic_is_eight_connected_without_cutting_corners():
    distances = ROOM.geodesic(cells=5)
    assert distances[0, 0] == 0.0
    assert distances[1, 1] == pytest.approx(math.sqrt(2))
    # Up to the row of the gap, through it (no diagonal around the wall), then down on the other side.
    assert distances[2, 4] == pytest.approx(math.sqrt(2) + 3 + 1)
    assert distances[3, 3] == pytest.approx(math.sqrt(2) + 3 + 1 + 1 + 1)
    assert math.isinf(distances[4, 0])


def test_walls_thinner_than_a_cell_still_separate():
    thin = Arena("thin", (0.0, 4.0, 0.0, 4.0), (Box((2.0, 2.0), (0.01, 2.0), 1.0),), start=(0.5, 0.5))
    assert int(thin.reachable(cells=4).sum()) == 8
    assert not thin.occupancy(cells=4).any()


def test_far_goal_is_the_percentile_of_the_distances():
    corridor = Arena("corridor", (0.0, 10.0, 0.0, 1.0), start=(0.05, 0.5))
    x, y = corridor.far_goal(80.0, cells=10)
    assert x == pytest.approx(7.5, abs=1.0)
    distances = corridor.geodesic(10)
    ix, iy = corridor.cell_of(torch.tensor([x, y]), 10).tolist()
    assert float((distances <= distances[ix, iy]).double().mean()) == pytest.approx(0.8, abs=0.05)
    assert corridor.far_goal(100.0, cells=10)[0] == 9.5


def test_is_free_and_cells():
    points = torch.tensor([[0.5, 0.5], [2.5, 1.0], [2.0, 1.0], [-0.1, 0.5], [2.5, 4.5]])
    assert ROOM.is_free(points).tolist() == [True, False, True, False, True]
    assert not ROOM.is_free(torch.tensor([1.95, 1.0]), radius=0.1)
    assert ROOM.cell_of(points, cells=5).tolist() == [[0, 0], [2, 1], [2, 1], [0, 0], [2, 4]]


def test_start_in_a_wall_and_bad_descriptions_are_refused():
    with pytest.raises(ConfigurationError, match="start"):
        replace(ROOM, start=(2.5, 1.0)).geodesic()
    with pytest.raises(ConfigurationError, match="extent"):
        replace(ROOM, extent=(5.0, 0.0, 0.0, 5.0))
    with pytest.raises(ConfigurationError, match="to_dict"):
        Arena.from_dict({"name": "nothing"})


@pytest.mark.parametrize("name", ["empty", "maze", "cave", "pyramid"])
def test_the_maps_survive_json_and_scaling(name):
    arena = replace(get_arena(name), robot_radius=0.5)
    assert Arena.from_dict(json.loads(json.dumps(arena.to_dict()))) == arena
    small = arena.scaled(0.4)
    assert small.extent == (-8.0, 8.0, -4.8, 4.8)
    assert torch.equal(small.reachable(), arena.reachable())
    torch.testing.assert_close(small.geodesic(), arena.geodesic() * 0.4)
    distances = arena.geodesic()
    assert torch.equal(torch.isfinite(distances), ~arena.occupancy()), "every free cell must be reachable"


def test_the_maze_is_a_maze():
    maze = get_arena("maze")
    goal = maze.far_goal(80.0, radius=0.6)
    straight = math.dist(goal, maze.start)
    ix, iy = maze.cell_of(torch.tensor(goal)).tolist()
    assert maze.geodesic(radius=0.6)[ix, iy] > 1.6 * straight
    # Corridors of 3.5 m: a robot of 1.7 m radius still reaches every one of the 60 junctions, one of 1.8 m none.
    junctions = torch.cartesian_prod(torch.arange(-18.0, 19, 4), torch.arange(-10.0, 11, 4))
    assert maze.is_free(junctions, radius=1.74).all()
    assert not maze.is_free(junctions, radius=1.76).any()
    # A dead end has walls on three of its four sides, two metres from its centre.
    sides = 2 * torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    walls = ~maze.is_free(junctions.unsqueeze(1) + sides, radius=0.1)
    assert int((walls.sum(1) == 3).sum()) == 18


def test_height_field_is_bilinear():
    ramp = HeightField(((0.0, 1.0, 2.0), (0.0, 1.0, 4.0)))
    arena = Arena("ramp", (0.0, 2.0, 0.0, 1.0), height_field=ramp)
    points = torch.tensor([[0.0, 0.0], [0.5, 0.3], [2.0, 1.0], [2.0, 0.5], [5.0, 1.0]])
    torch.testing.assert_close(arena.height_at(points), torch.tensor([0.0, 0.5, 4.0, 3.0, 4.0]))
    pyramid = get_arena("pyramid")
    assert pyramid.height_at(torch.tensor([pyramid.start, (0.0, 0.0), (-5.0, 0.0)])).tolist() == [0.0, 4.0, 2.0]
