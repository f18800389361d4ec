"""Observations, rewards and ends of the locomotion tasks and the ant maze, by hand on constructed states."""

from __future__ import annotations

import math

import pytest
import torch

from myriad_lab.envs.mujoco.model import build_model
from myriad_lab.envs.robot import RobotCfg
from myriad_lab.envs.robot_state import RobotState
from myriad_lab.errors import ConfigurationError
from myriad_lab.tasks.locomotion.ant import AntCfg, make_ant
from myriad_lab.tasks.locomotion.base import GROUND
from myriad_lab.tasks.locomotion.robots.robots import ANT, QUADRUPED
from myriad_lab.tasks.locomotion.velocity import VelocityCfg, VelocityTask
from myriad_lab.tasks.maze.ant_maze import AntMazeCfg, AntMazeTask
from myriad_lab.tasks.registry import make_env

DT = 1 / 60


def state_of(robot: RobotCfg, num: int = 1) -> RobotState:
    """Return robots at rest in their default pose, 1 m above the ground, facing +x."""
    joints = torch.tensor(robot.default_joint_pos).repeat(num, 1)
    actions = torch.zeros(num, len(robot.action.names))
    quat = torch.zeros(num, 4)
    quat[:, 0] = 1.0
    position = torch.tensor([[0.0, 0.0, 1.0]]).repeat(num, 1)
    contacts = torch.zeros(num, len(robot.contact_bodies))
    still = torch.zeros(num, 3)
    zero = torch.zeros_like(joints)
    return RobotState(
        position, quat, still.clone(), still.clone(), joints, zero, contacts, actions, actions.clone(), zero.clone()
    )


def about(axis: int, angle: float) -> torch.Tensor:
    """Return the quaternion (1, 4) of a rotation by ``angle`` [rad] about axis 0, 1 or 2."""
    quat = torch.zeros(1, 4)
    quat[0, 0], quat[0, 1 + axis] = math.cos(angle / 2), math.sin(angle / 2)
    return quat


@pytest.fixture
def ant():
    task = make_ant(AntCfg())
    task.bind(1, "cpu")
    return task


@pytest.fixture
def velocity():
    task = VelocityTask(VelocityCfg())
    task.bind(1, "cpu")
    return task


def test_run_reward_by_hand(ant):
    state = state_of(ANT)
    state.root_lin_vel_w[0] = torch.tensor([2.0, 5.0, -1.0])
    state.actions[0, :2] = torch.tensor([0.5, -1.0])
    state.joint_vel[0, :2] = torch.tensor([-4.0, 3.0])
    state.root_quat_w[:] = about(2, math.pi / 3)  # heading projection 0.5
    terms = {name: value.item() for name, value in ant.reward(state).items()}
    assert terms == pytest.approx(
        {
            "progress": 2.0,
            "alive": 0.5,
            "up": 0.1,
            "heading": 0.5 * 0.5 / 0.8,
            "action": -0.005 * 1.25,
            "energy": -0.05 * 0.1 * 5.0,
            "death": 0.0,
        },
        abs=1e-6,
    )


def test_run_ends_in_a_fall(ant):
    state = state_of(ANT)
    state.root_pos_w[0, 2] = 0.29
    state.root_quat_w[:] = about(0, math.pi / 2)
    terms = ant.reward(state)
    assert ant.terminated(state).tolist() == [True]
    assert [terms[name].item() for name in ("alive", "up", "death")] == [0.0, 0.0, -2.0]
    state.root_pos_w[0, 2] = 0.31
    assert ant.terminated(state).tolist() == [False]


@pytest.mark.parametrize("angle", [-2.0, 0.7])
def test_run_angles_and_body_frame(ant, angle):
    state = state_of(ANT)
    state.root_lin_vel_w[0] = torch.tensor([0.0, 3.0, 0.0])
    state.root_ang_vel_w[0] = torch.tensor([0.0, 0.0, 1.5])
    state.root_quat_w[:] = about(2, angle)
    terms = ant.observe(state)["policy"]
    assert terms["yaw"].item() == pytest.approx(angle, abs=1e-6)
    assert terms["angle_to_target"].item() == pytest.approx(-angle, abs=1e-6)
    assert terms["heading_projection"].item() == pytest.approx(math.cos(angle), abs=1e-6)
    assert terms["up_projection"].item() == pytest.approx(1.0)
    expected = torch.tensor([[3.0 * math.sin(angle), 3.0 * math.cos(angle), 0.0]])
    torch.testing.assert_close(terms["lin_vel_b"], expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(terms["ang_vel_b"], state.root_ang_vel_w)
    state.root_quat_w[:] = about(0, angle)
    terms = ant.observe(state)["policy"]
    assert terms["roll"].item() == pytest.approx(angle, abs=1e-6)
    assert terms["up_projection"].item() == pytest.approx(math.cos(angle), abs=1e-6)


def test_velocity_reward_by_hand(velocity):
    state = state_of(QUADRUPED)
    velocity.rewarded_command = torch.tensor([[1.0, 0.0, 0.5]])
    # Turned by 90 degrees to the left: the world's +y is the body's +x.
    state.root_quat_w[:] = about(2, math.pi / 2)
    state.root_lin_vel_w[0] = torch.tensor([-0.3, 0.6, 0.2])  # body: 0.6, 0.3
    state.root_ang_vel_w[0] = torch.tensor([0.0, 2.0, 0.1])  # body: roll rate 2
    state.joint_torques[0, 0] = 3.0
    state.actions[0, 0], state.previous_actions[0, 1] = 0.5, -0.5
    terms = {name: value.item() for name, value in velocity.reward(state).items()}
    assert terms == pytest.approx(
        {
            "linear": DT * 2.0 * math.exp(-(0.4**2 + 0.3**2) / 0.25),
            "angular": DT * 1.0 * math.exp(-(0.4**2) / 0.25),
            "vertical": -DT * 2.0 * 0.04,
            "tilt_rate": -DT * 0.05 * 4.0,
            "tilt": 0.0,
            "torque": -DT * 2.0e-4 * 9.0,
            "action_rate": -DT * 0.02 * 0.5,
            "air_time": 0.0,
            "fall": 0.0,
        },
        abs=1e-6,
    )


def test_velocity_ends_when_tipped_over(velocity):
    state = state_of(QUADRUPED)
    for degrees, fallen in ((59, False), (61, True)):
        state.root_quat_w[:] = about(1, math.radians(degrees))
        assert velocity.terminated(state).tolist() == [fallen]
        assert velocity.reward(state)["fall"].item() == (-1.0 if fallen else 0.0)
        gravity = velocity.observe(state)["policy"]["projected_gravity"][0]
        torch.testing.assert_close(gravity[2].item(), -math.cos(math.radians(degrees)), atol=1e-6, rtol=0)


def test_air_time_is_paid_at_landing(velocity):
    state, generator = state_of(QUADRUPED), torch.Generator().manual_seed(0)
    velocity.command = torch.tensor([[1.0, 0.0, 0.0]])
    state.contact_forces[0] = torch.tensor([50.0, 50.0, 50.0, 0.0])
    for _ in range(30):
        velocity.on_step(state, generator)
        assert velocity.reward(state)["air_time"].item() == 0.0
    state.contact_forces[0, 3] = 50.0
    velocity.on_step(state, generator)
    assert velocity.reward(state)["air_time"].item() == pytest.approx(DT * (30 * DT - 0.2), rel=1e-4)
    velocity.on_step(state, generator)
    assert velocity.reward(state)["air_time"].item() == 0.0


def test_commands_are_redrawn_on_time_and_within_bounds():
    num, task = 500, VelocityTask(VelocityCfg(command_steps=3, standing_share=0.3))
    task.bind(num, "cpu")
    generator = torch.Generator().manual_seed(0)
    task.on_reset(torch.arange(num), generator)
    first, state = task.command.clone(), state_of(QUADRUPED, num)
    low, high = torch.tensor(task.cfg.command_low), torch.tensor(task.cfg.command_high)
    assert (first >= low).all()
    assert (first <= high).all()
    assert 0.2 < (first == 0).all(1).float().mean() < 0.4
    task.on_step(state, generator)
    task.on_reset(torch.tensor([7]), generator)
    changed = (task.command != first).any(1)
    assert changed.nonzero().flatten().tolist() == [7]
    first = task.command.clone()
    task.on_step(state, generator)
    assert torch.equal(task.command, first)
    task.on_step(state, generator)
    assert torch.equal(task.command[7], first[7])
    assert (task.command != first).any(1).float().mean() > 0.8
    assert torch.equal(task.rewarded_command, first), "the action was chosen under the command of before"


def test_bad_commands_are_refused():
    with pytest.raises(ConfigurationError, match="low <= high"):
        make_env("Myriad-Velocity-Quadruped", num_envs=1, overrides={"command_low": [2.0, 0.0, 0.0]})


def test_actions_may_reach_the_limits_of_the_joints_that_the_model_has():
    robot = VelocityTask(VelocityCfg()).robot
    model = build_model(robot, GROUND)
    ranges = [tuple(model.joint(name).range.tolist()) for name in robot.joint_names]
    assert ranges == list(robot.joint_limits)
    wide = VelocityTask(VelocityCfg(joint_limit_actions=True)).robot.action
    for name, scale, offset, (low, high) in zip(wide.names, wide.scale, wide.offset, ranges, strict=True):
        reached = (offset - scale, offset + scale)
        assert reached[0] == pytest.approx(low) or reached[1] == pytest.approx(high), name
        assert reached[0] <= low + 1e-9
        assert reached[1] >= high - 1e-9


def test_the_critic_of_the_quadruped_is_privileged():
    env = make_env("Myriad-Velocity-Quadruped", num_envs=2, num_threads=1)
    policy = {term.name for term in env.spec.observations["policy"]}
    critic = {term.name for term in env.spec.observations["critic"]}
    assert critic - policy == {"lin_vel_b", "contacts"}
    assert env.spec.action.delay_steps == 1
    assert len(env.spec.robot["stiffness"]) == 12


def test_ant_maze_observes_body_and_place_but_no_goal():
    free, goal = (AntMazeTask(AntMazeCfg(arena="maze", sparse_goal=sparse)) for sparse in (False, True))
    assert free.observation_terms() == goal.observation_terms()
    free.bind(1, "cpu")
    state = state_of(ANT)
    state.root_pos_w[0, :2] = torch.tensor([10.0, -6.0])
    state.root_quat_w[:] = about(2, 0.5)
    state.root_lin_vel_w[0] = torch.tensor([1.0, 0.0, 0.0])
    terms = free.observe(state)["policy"]
    torch.testing.assert_close(terms["position"], torch.tensor([[0.5, -0.5]]))
    torch.testing.assert_close(terms["heading"], torch.tensor([[math.cos(0.5), math.sin(0.5)]]))
    torch.testing.assert_close(terms["projected_gravity"], torch.tensor([[0.0, 0.0, -1.0]]))
    torch.testing.assert_close(terms["lin_vel_b"], torch.tensor([[math.cos(0.5), -math.sin(0.5), 0.0]]))
    assert free.features(state).tolist() == [[10.0, -6.0]]


def test_an_ant_on_its_back_goes_on_where_falls_end_nothing():
    env = make_env("Myriad-AntMaze-Maze", num_envs=2, overrides={"fall_ends": False}, num_threads=1)
    initial = env.task.reset_distribution(2, torch.Generator().manual_seed(0))
    initial.root_quat_w[:] = about(0, math.pi)
    env.simulator.reset(torch.arange(2), initial)
    for _ in range(60):
        obs, _, dones, extras = env.step(torch.zeros(2, 8))
        assert not dones.any()
        assert not extras["diverged"].any()
    assert (obs["policy"][:, -28:-25].abs() <= 1).all()
    assert env.simulator.state().root_pos_w[:, 2].max() < 0.6


def test_all_ants_of_a_maze_start_at_one_place():
    env = make_env("Myriad-AntMaze-Cave", num_envs=64, num_threads=1)
    start = torch.tensor(env.task.arena.start)
    spread = (env.get_observations()["features"] - start).abs().max()
    assert 0.05 < spread <= 0.1 + 1e-6


@pytest.mark.parametrize("suffix", ["", "-Goal"])
def test_an_ant_on_its_back_ends_its_episode_without_a_reward(suffix):
    for falls in (True, False):
        env = make_env(f"Myriad-AntMaze-Maze{suffix}", num_envs=3, overrides={"fall_ends": falls}, num_threads=1)
        state = env.simulator.state()
        # Upright, lying on its side as far as 80 degrees, and on its back.
        half = torch.deg2rad(torch.tensor([0.0, 80.0, 170.0])) / 2
        state.root_quat_w[:] = torch.stack((half.cos(), half.sin(), torch.zeros(3), torch.zeros(3)), dim=1)
        assert env.task.terminated(state).tolist() == [False, False, falls]
        assert not any(reward.any() for reward in env.task.reward(state).values())


def test_longer_control_steps_move_ants_further():
    assert AntMazeTask(AntMazeCfg(decimation=4)).robot.control_period == pytest.approx(1 / 30)
    actions = 2 * torch.rand(40, 16, 8, generator=torch.Generator().manual_seed(0)) - 1
    reach = []
    for decimation in (2, 6):
        env = make_env("Myriad-AntMaze-Empty", num_envs=16, overrides={"decimation": decimation}, num_threads=1)
        for action in actions:
            obs, *_ = env.step(action.sign())
        reach.append(obs["features"].norm(dim=1).mean())
    assert reach[1] > reach[0] > 0.05
