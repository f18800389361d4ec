"""The maze task's own parts: observation terms, start, goals, registry."""

from __future__ import annotations

import math

import pytest
import torch

from myriad_lab.envs.arena import Arena, Box
from myriad_lab.errors import ConfigurationError
from myriad_lab.tasks import registry
from myriad_lab.tasks.maze import arenas, maze_task
from myriad_lab.tasks.maze.point_maze import PointMazeCfg, PointMazeTask
from myriad_lab.tasks.registry import TaskEntry, make_env


def test_position_and_fourier_features_by_hand():
    env = make_env("Myriad-PointMaze-Empty", num_envs=2)
    state = env.simulator.state()
    state.root_pos_w[:, :2] = torch.tensor([[4.0, 0.0], [-8.0, 4.8]])  # half extents 8 m and 4.8 m
    terms = env.task.observe(state)["policy"]
    torch.testing.assert_close(terms["position"], torch.tensor([[0.5, 0.0], [-1.0, 1.0]]))
    # Frequencies 1 and 3 of x, then of y: sines, then cosines.
    expected = torch.tensor([[1.0, -1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0, -1.0, -1.0, -1.0, -1.0]])
    torch.testing.assert_close(terms["position_fourier"], expected, atol=1e-5, rtol=0)


def test_fourier_frequencies_are_configured():
    env = make_env("Myriad-PointMaze-Maze", num_envs=2, overrides={"fourier_frequencies": [1.0, 2.0, 4.0]})
    assert env.spec.group_size("policy") == 2 + 12
    assert env.spec.observations["policy"][1].parameters == {"frequencies": (1.0, 2.0, 4.0)}


def test_start_noise_fills_its_square():
    task = PointMazeTask(PointMazeCfg(start_noise=0.2))
    initial = task.reset_distribution(2000, torch.Generator().manual_seed(0))
    offset = initial.root_pos_w[:, :2] - torch.tensor(task.arena.start)
    assert offset.abs().max() <= 0.2 + 1e-6
    assert offset.abs().max() > 0.19
    assert offset.mean(0).abs().max() < 0.02
    assert initial.root_quat_w[:, 0].eq(1).all()


def test_a_goal_behind_closed_walls_is_refused(monkeypatch):
    closed = Arena("closed", (-4.0, 4.0, -4.0, 4.0), (Box((2.0, 0.0), (0.1, 4.0), 1.0),))
    monkeypatch.setattr(maze_task, "get_arena", lambda name: closed)
    cfg = PointMazeCfg(arena_scale=1.0, sparse_goal=True, goal=[3.0, 0.0])
    with pytest.raises(ConfigurationError, match="cannot be reached"):
        PointMazeTask(cfg)
    cfg.goal = [-3.0, 0.0]
    assert PointMazeTask(cfg).goal == (-3.0, 0.0)


@pytest.mark.parametrize(
    ("task", "field", "value", "expected"),
    [
        ("Myriad-PointMaze-Maze", "episode_steps", -3, "at least 1"),
        ("Myriad-PointMaze-Maze", "arena_scale", -1.0, "a positive number"),
        ("Myriad-PointMaze-Maze", "start_noise", math.nan, "at least 0"),
        ("Myriad-PointMaze-Maze", "start_noise", -0.1, "at least 0"),
        ("Myriad-PointMaze-Maze", "max_speed", math.nan, "a positive number"),
        ("Myriad-PointMaze-Maze", "max_speed", math.inf, "a positive number"),
        ("Myriad-PointMaze-Maze", "control_period", 0.0, "a positive number"),
        ("Myriad-PointMaze-Maze", "robot_radius", -0.1, "a positive number"),
        ("Myriad-PointMaze-Maze-Goal", "goal_radius", -0.5, "a positive number"),
        ("Myriad-AntMaze-Maze", "decimation", 0, "at least 1"),
        ("Myriad-AntMaze-Maze", "joint_noise", -1.0, "at least 0"),
        ("Myriad-Ant", "episode_steps", 0, "at least 1"),
        ("Myriad-Velocity-Quadruped", "yaw_noise", math.nan, "at least 0"),
        ("Myriad-Velocity-Quadruped", "command_steps", 0, "at least 1"),
        ("Myriad-Gridworld-Room", "episode_steps", 0, "at least 1"),
    ],
)
def test_numbers_out_of_range_are_named_with_what_is_expected(task, field, value, expected):
    entry = registry.get(task)
    setattr(entry.cfg, field, value)
    with pytest.raises(ConfigurationError, match=rf"env\.{field}={value}; expected .*{expected}"):
        entry.make_task(entry.cfg)


def test_the_goal_has_a_sharp_rim():
    env = make_env("Myriad-PointMaze-Empty-Goal", num_envs=3, overrides={"goal": [3.0, 1.0], "goal_radius": 0.5})
    state = env.simulator.state()
    state.root_pos_w[:, :2] = torch.tensor([[3.49, 1.0], [3.51, 1.0], [3.4, 1.4]])
    assert env.task.terminated(state).tolist() == [True, False, False]
    assert env.task.reward(state)["goal"].tolist() == [1.0, 0.0, 0.0]


def test_walls_of_a_drawing_become_few_boxes():
    assert len(arenas.maze().boxes) == 4 + 31
    cave = arenas.cave()
    solid = sum(4 * box.half_size[0] * box.half_size[1] for box in cave.boxes[4:])
    assert solid == sum(line.count("#") for line in arenas._CAVE.splitlines())


def test_registry_refuses_duplicates_and_unknown_backends():
    entry = registry.get("Myriad-PointMaze-Maze")
    with pytest.raises(ConfigurationError, match="registered already"):
        registry.register(entry)
    other = TaskEntry("Myriad-New", "maze", ("torhc",), entry.cfg, entry.make_task, "New.", 1)
    with pytest.raises(ConfigurationError, match="Did you mean torch"):
        registry.register(other)
