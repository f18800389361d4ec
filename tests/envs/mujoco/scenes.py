"""Small simulators and states shared by the tests of this folder."""

from __future__ import annotations

import torch

from myriad_lab.envs.arena import Arena, Box
from myriad_lab.envs.mujoco.simulator import MujocoSimulator
from myriad_lab.envs.robot import RobotCfg
from myriad_lab.envs.robot_state import InitialState
from myriad_lab.tasks.locomotion.robots.robots import ANT

OPEN = Arena("open", (-10.0, 10.0, -10.0, 10.0))
WALLED = Arena("walled", (-10.0, 10.0, -10.0, 10.0), (Box((2.0, 0.0), (0.25, 4.0), 1.5),))


def standing(robot: RobotCfg, num: int) -> InitialState:
    """Return ``num`` robots at rest in their default pose at the origin."""
    position, quat = torch.zeros(num, 3), torch.zeros(num, 4)
    position[:, 2] = robot.start_height
    quat[:, 0] = 1.0
    joints = torch.tensor(robot.default_joint_pos).repeat(num, 1)
    return InitialState(position, quat, torch.zeros(num, 3), torch.zeros(num, 3), joints, torch.zeros_like(joints))


def make_simulator(robot: RobotCfg = ANT, num_envs: int = 4, arena: Arena = OPEN, **kwargs) -> MujocoSimulator:
    """Return a simulator whose robots stand in their default pose."""
    kwargs.setdefault("num_threads", 1)
    simulator = MujocoSimulator(robot, arena, num_envs, **kwargs)
    simulator.reset(torch.arange(num_envs), standing(robot, num_envs))
    return simulator


def random_actions(simulator: MujocoSimulator, steps: int, seed: int = 0) -> torch.Tensor:
    """Return actions in [-1, 1], shape (steps, num_envs, num_actions)."""
    generator = torch.Generator().manual_seed(seed)
    shape = (steps, simulator.num_envs, len(simulator.robot.action.names))
    return (2.0 * torch.rand(shape, generator=generator) - 1.0).to(simulator.device)


def run(simulator: MujocoSimulator, actions: torch.Tensor) -> torch.Tensor:
    """Step through ``actions`` and return the full state rows at the end."""
    for action in actions:
        assert not simulator.step(action).any()
    return rows(simulator)


def rows(simulator: MujocoSimulator) -> torch.Tensor:
    """Return everything a task can read, as one matrix with a row per robot (a copy)."""
    state = simulator.state()
    return torch.cat([getattr(state, name) for name in state.__dataclass_fields__], dim=1)


def check_snapshot(simulator, other, atol=0.0):
    """Let another simulator go on from a snapshot in the middle of a run, after some steps of its own."""
    actions = random_actions(simulator, 30)
    run(simulator, actions[:15])
    snapshot = simulator.state_dict()
    expected_now, expected_later = rows(simulator), run(simulator, actions[15:])
    run(other, actions[20:23])
    other.load_state_dict(snapshot)
    assert torch.equal(rows(other), expected_now)
    torch.testing.assert_close(run(other, actions[15:]), expected_later, rtol=0.0, atol=atol)
