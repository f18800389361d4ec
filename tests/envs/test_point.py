"""Point robots never enter a wall, stop at it and slide along it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from myriad_lab.envs.arena import Arena, Box
from myriad_lab.envs.contract import ActionSpec
from myriad_lab.envs.robot import RobotCfg
from myriad_lab.envs.robot_state import InitialState
from myriad_lab.envs.torch.collision import BoxCollider
from myriad_lab.envs.torch.grid import GridMap, GridSimulator
from myriad_lab.envs.torch.point import PointSimulator
from myriad_lab.errors import ConfigurationError
from myriad_lab.tasks.maze.arenas import get_arena
from myriad_lab.tasks.registry import make_env

WALL = Arena("wall", (-4.0, 4.0, -4.0, 4.0), (Box((1.0, 0.0), (0.005, 1.0), 1.0),))


def strictly_inside(xy: torch.Tensor, bounds: torch.Tensor) -> torch.Tensor:
    left, right, bottom, top = bounds.unbind(1)
    x, y = xy[:, :1], xy[:, 1:]
    return ((x > left) & (x < right) & (y > bottom) & (y < top)).any(1)


@pytest.mark.parametrize("name", ["maze", "cave"])
def test_4096_random_walkers_never_enter_a_wall(name):
    arena = get_arena(name).scaled(0.4)
    bounds = arena.bounds(0.1).float()
    collider = BoxCollider(arena, 0.1, 0.25, "cpu")
    generator = torch.Generator().manual_seed(0)
    xy = torch.tensor(arena.start).repeat(4096, 1)
    heading = 2 * torch.rand(4096, 2, generator=generator) - 1
    for step in range(200):
        if step % 10 == 0:
            heading = 2 * torch.rand(4096, 2, generator=generator) - 1
        xy = collider.slide(xy, (0.3 * heading).clamp(-0.25, 0.25))
        assert not strictly_inside(xy, bounds).any()
    reached = arena.cell_of(xy).unique(dim=0)
    assert len(reached) > 200, "the walkers must get somewhere for the test to mean anything"


def test_lookup_agrees_with_every_box_at_every_place():
    arena = get_arena("cave").scaled(0.4)
    collider = BoxCollider(arena, 0.1, 0.25, "cpu")
    generator = torch.Generator().manual_seed(1)
    xy = torch.tensor([8.0, 4.8]) * (2 * torch.rand(20_000, 2, generator=generator) - 1)
    xy = xy[~strictly_inside(xy, arena.bounds(0.1).float())]
    move = 0.25 * (2 * torch.rand(len(xy), 2, generator=generator) - 1)
    torch.testing.assert_close(collider.slide(xy, move), _slide_one_box_at_a_time(xy, move, arena), rtol=0, atol=0)


def _slide_one_box_at_a_time(xy, move, arena):
    end = xy.clone()
    for axis, other in ((0, 1), (1, 0)):
        start, target = end[:, axis].clone(), end[:, axis] + move[:, axis]
        for box in arena.bounds(0.1).float():
            low, high = box[2 * axis], box[2 * axis + 1]
            beside = (end[:, other] > box[2 * other]) & (end[:, other] < box[2 * other + 1])
            target = torch.where(beside & (start <= low), target.minimum(low), target)
            target = torch.where(beside & (start >= high), target.maximum(high), target)
        end[:, axis] = target
    return end


def test_stops_slides_and_does_not_tunnel():
    collider = BoxCollider(WALL, 0.1, 2.0, "cpu")
    xy = torch.tensor([[0.0, 0.0], [0.0, 0.0], [0.0, 1.2], [2.0, 0.0], [0.895, 0.5]])
    move = torch.tensor([[2.0, 0.0], [2.0, 0.5], [2.0, 0.0], [-2.0, -0.3], [0.0, 2.0]])
    expected = torch.tensor([[0.895, 0.0], [0.895, 0.5], [2.0, 1.2], [1.105, -0.3], [0.895, 2.5]])
    torch.testing.assert_close(collider.slide(xy, move), expected)


def robot(speed: float = 2.5) -> RobotCfg:
    action = ActionSpec(("x", "y"), "velocity", "m/s", (speed, speed), (0.0, 0.0))
    return RobotCfg(name="point", action=action, physics_dt=0.1, decimation=1, radius=0.1)


def test_full_action_moves_a_quarter_metre_and_velocity_is_the_real_one():
    simulator = PointSimulator(robot(), WALL, 2)
    actions = torch.tensor([[1.0, -1.0], [0.5, 0.0]])
    for _ in range(4):
        diverged = simulator.step(actions)
    state = simulator.state()
    torch.testing.assert_close(state.root_pos_w[:, :2], torch.tensor([[0.895, -1.0], [0.5, 0.0]]))
    torch.testing.assert_close(state.root_lin_vel_w[1], torch.tensor([1.25, 0.0, 0.0]))
    assert not diverged.any()
    for _ in range(5):
        simulator.step(actions)
    assert simulator.state().root_pos_w[1, 0] == pytest.approx(0.895)
    assert simulator.state().root_lin_vel_w[1, 0] == 0.0
    assert torch.equal(simulator.state().previous_actions, actions)


def test_reset_of_one_row_and_state_round_trip():
    simulator = PointSimulator(robot(), WALL, 3)
    simulator.step(torch.rand(3, 2))
    kept = simulator.state_dict()
    ones, zeros = torch.ones(1, 3), torch.zeros(1, 0)
    simulator.reset(torch.tensor([1]), InitialState(-ones, torch.ones(1, 4), ones, ones, zeros, zeros))
    assert simulator.state().root_pos_w[1].tolist() == [-1.0, -1.0, -1.0]
    assert simulator.state().root_lin_vel_w[1].tolist() == [0.0, 0.0, 0.0]
    for row in (0, 2):
        assert torch.equal(simulator.state().root_pos_w[row], kept["root_pos_w"][row])
    simulator.load_state_dict(kept)
    assert torch.equal(simulator.state().root_pos_w, kept["root_pos_w"])


def test_start_inside_a_wall_is_refused():
    with pytest.raises(ConfigurationError, match="inside a wall"):
        PointSimulator(robot(), replace(WALL, start=(1.0, 0.0)), 1)


def test_a_delay_of_the_actions_is_refused():
    slow = robot()
    slow = replace(slow, action=replace(slow.action, delay_steps=2))
    with pytest.raises(ConfigurationError, match="delay_steps=2, the torch backend knows no delay"):
        PointSimulator(slow, WALL, 1)
    with pytest.raises(ConfigurationError, match="delay_steps=2, the torch backend knows no delay"):
        GridSimulator(slow, GridMap(("S.",)), 0.0, 1, "cpu", 0)


def test_65536_envs_step_together():
    env = make_env("Myriad-PointMaze-Cave-Goal", num_envs=65_536)
    obs, rewards, _, _ = env.step(torch.ones(65_536, 2))
    assert obs["policy"].shape == (65_536, 10)
    assert not rewards.any()


@pytest.mark.parametrize("arena", ["maze", "cave"])
def test_the_far_goal_is_beyond_a_random_walk_but_within_an_episode(arena):
    env = make_env(f"Myriad-PointMaze-{arena.title()}-Goal", num_envs=1000, seed=0)
    generator = torch.Generator().manual_seed(0)
    for _ in range(env.max_episode_length):
        _, _, _, extras = env.step(2 * torch.rand(1000, 2, generator=generator) - 1)
        assert not extras["terminated"].any()
    ix, iy = env.task.arena.cell_of(torch.tensor(env.task.goal)).tolist()
    assert env.task.arena.geodesic()[ix, iy] < 0.5 * 0.25 * env.max_episode_length
