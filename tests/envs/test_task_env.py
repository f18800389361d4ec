"""TaskEnv on a simulator and a task whose every number is known."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from myriad_lab.envs.arena import Arena
from myriad_lab.envs.contract import ActionSpec, TermSpec
from myriad_lab.envs.robot import RobotCfg
from myriad_lab.envs.robot_state import InitialState
from myriad_lab.envs.shard import Shard
from myriad_lab.envs.task_env import TaskEnv
from myriad_lab.envs.torch.point import PointSimulator
from myriad_lab.errors import ConfigurationError
from myriad_lab.tasks.registry import make_env

ROBOT = RobotCfg(
    "point", ActionSpec(("x", "y"), "velocity", "m/s", (1.0, 1.0), (0.0, 0.0)), physics_dt=1.0, decimation=1
)
ARENA = Arena("open", (-9.0, 9.0, -9.0, 9.0))


class BreakableSimulator(PointSimulator):
    """A point simulator that reports the rows of ``broken`` as diverged in the next step."""

    def __init__(self, num_envs: int) -> None:
        super().__init__(ROBOT, ARENA, num_envs)
        self.broken: list[int] = []

    def step(self, actions):
        diverged = super().step(actions)
        diverged[self.broken] = True
        self.broken = []
        return diverged


@dataclass
class LineCfg:
    episode_steps: int = 5


class LineTask:
    """Reward x and a constant; the true end is x >= 2; success is y >= 1 at any time."""

    robot, arena = ROBOT, ARENA

    def __init__(self, told: int = 2) -> None:
        self.cfg = LineCfg()
        self.told = told
        self.poison: dict[int, float] = {}
        self.poison_obs: dict[int, float] = {}

    def observation_terms(self):
        terms = (TermSpec("xy", (self.told,), "m"),)
        return {"policy": terms, "critic": terms, "features": terms}

    def bind(self, num_envs, device):
        self.started = torch.zeros(num_envs, dtype=torch.long)

    def observe(self, state):
        seen = state.root_pos_w[:, :2].clone()
        for row, value in self.poison_obs.items():
            seen[row] = value
        return {"policy": {"xy": seen}, "critic": {"xy": state.root_pos_w[:, :2]}}

    def features(self, state):
        return state.root_pos_w[:, :2]

    def reward(self, state):
        forward = state.root_pos_w[:, 0].clone()
        for row, value in self.poison.items():
            forward[row] = value
        return {"forward": forward, "alive": torch.full_like(forward, 0.5)}

    def terminated(self, state):
        return state.root_pos_w[:, 0] >= 2.0

    def success(self, state):
        return state.root_pos_w[:, 1] >= 1.0

    def reset_distribution(self, num, generator):
        zeros, nothing = torch.zeros(num, 3), torch.zeros(num, 0)
        return InitialState(zeros, torch.zeros(num, 4), zeros, zeros, nothing, nothing)

    def on_reset(self, env_ids, generator):
        self.started[env_ids] += 1

    def on_step(self, state, generator):
        return

    def state_dict(self):
        return {"started": self.started.clone()}

    def load_state_dict(self, state):
        self.started = state["started"].clone()


@pytest.fixture
def env():
    return TaskEnv(LineTask(), BreakableSimulator(4), seed=0)


def along(*x: float) -> torch.Tensor:
    return torch.stack((torch.tensor(x), torch.zeros(len(x))), dim=1)


def test_rewards_ends_and_final_observations_by_hand(env):
    env.step(along(1.0, 0.5, 0.0, -1.0))
    obs, rewards, dones, extras = env.step(along(1.0, 0.5, 0.0, -1.0))
    assert rewards.tolist() == [2.5, 1.5, 0.5, -1.5]
    assert dones.tolist() == [1, 0, 0, 0]
    assert extras["terminated"].tolist() == [True, False, False, False]
    assert not extras["time_outs"].any()
    assert extras["final_obs"]["policy"][0].tolist() == [2.0, 0.0]
    assert obs["policy"].tolist() == [[0.0, 0.0], [1.0, 0.0], [0.0, 0.0], [-2.0, 0.0]]
    assert extras["log"]["Episode_Reward/forward"] == 1.0 + 2.0
    assert extras["log"]["Episode_Reward/alive"] == 1.0
    assert extras["log"]["Episode_Termination/terminated"] == 1.0
    assert extras["log"]["Metrics/episode_length"] == 2.0
    assert env.task.started.tolist() == [2, 1, 1, 1]


def test_a_true_end_wins_over_the_time_limit(env):
    env.episode_length_buf[:] = 4
    _, _, _, extras = env.step(torch.zeros(4, 2))
    assert extras["time_outs"].all()
    env.simulator.state().root_pos_w[0, 0] = 1.5
    env.episode_length_buf[:2] = 4
    _, _, _, extras = env.step(along(1.0, 1.0, 0.0, 0.0))
    assert extras["terminated"].tolist() == [True, False, False, False]
    assert extras["time_outs"].tolist() == [False, True, False, False]


def test_success_is_remembered_until_the_episode_ends(env):
    up = torch.tensor([[0.0, 1.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    env.step(up)
    env.step(-up)
    for _ in range(2):
        _, _, _, extras = env.step(torch.zeros(4, 2))
        assert extras["success"].tolist() == [True, False, False, False]
    _, _, dones, extras = env.step(torch.zeros(4, 2))
    assert dones.all()
    assert extras["success"].tolist() == [True, False, False, False]
    assert extras["log"]["Metrics/success"] == 0.25
    assert not env.step(torch.zeros(4, 2))[3]["success"].any()


def test_a_diverged_row_is_a_time_out_without_reward_and_with_the_last_sane_observation(env):
    env.step(along(0.5, 0.5, 0.5, 0.5))
    env.simulator.broken = [2]
    obs, rewards, dones, extras = env.step(along(1.0, 0.25, 1.0, 0.25))
    assert extras["diverged"].tolist() == [False, False, True, False]
    assert extras["time_outs"].tolist() == [False, False, True, False]
    assert not extras["terminated"].any()
    assert dones.tolist() == [0, 0, 1, 0]
    assert rewards.tolist() == [2.0, 1.25, 0.0, 1.25]
    assert extras["final_obs"]["policy"].tolist() == [[1.5, 0.0], [0.75, 0.0], [0.5, 0.0], [0.75, 0.0]]
    assert obs["policy"][2].tolist() == [0.0, 0.0]
    assert extras["log"]["Episode_Termination/diverged"] == 1.0
    assert extras["log"]["Episode_Termination/time_out"] == 0.0
    assert extras["log"]["Episode_Reward/forward"] == 0.5
    assert env.step(torch.zeros(4, 2))[3]["log"] == {}


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_reward_or_observation_that_is_not_finite_counts_as_diverged(env, value):
    env.task.poison = {1: value}
    _, rewards, _, extras = env.step(torch.zeros(4, 2))
    assert extras["diverged"].tolist() == [False, True, False, False]
    assert rewards.tolist() == [0.5, 0.0, 0.5, 0.5]
    env.task.poison, env.task.poison_obs = {}, {3: value}
    _, rewards, _, extras = env.step(torch.zeros(4, 2))
    assert extras["diverged"].tolist() == [False, False, False, True]
    assert torch.isfinite(extras["final_obs"]["policy"]).all()
    assert rewards.tolist() == [0.5, 0.5, 0.5, 0.0]


def test_infinite_actions_are_clamped_and_many_nan_are_summed_up(env):
    obs = env.step(torch.tensor([[torch.inf, 0.0], [-torch.inf, 0.0], [9.0, 0.0], [0.0, 0.0]]))[0]
    assert obs["policy"][:, 0].tolist() == [1.0, -1.0, 1.0, 0.0]
    big = TaskEnv(LineTask(), BreakableSimulator(20), seed=0)
    with pytest.raises(ValueError, match=r"\[0, 1, 2, 3, 4, 5, 6, 7\] and 12 more"):
        big.step(torch.full((20, 2), torch.nan))


def test_reset_takes_ids_and_refuses_bad_ones(env):
    env.step(along(0.5, 0.5, 0.5, 0.5))
    obs = env.reset(torch.tensor([3, 1, 1]))
    assert obs["policy"][:, 0].tolist() == [0.5, 0.0, 0.5, 0.0]
    assert env.task.started.tolist() == [1, 2, 1, 2]
    with pytest.raises(ConfigurationError, match="not all in 0"):
        env.reset(torch.tensor([4]))
    assert env.reset()["policy"].abs().sum() == 0.0


def test_a_task_that_announces_other_terms_is_refused():
    with pytest.raises(ConfigurationError, match="announces"):
        TaskEnv(LineTask(told=3), BreakableSimulator(2), seed=0)


def test_a_task_whose_first_observation_is_not_finite_is_refused():
    task = LineTask()
    task.poison_obs = {1: torch.nan}
    with pytest.raises(
        ConfigurationError, match=r"'policy' is not finite at the start, in 1 of 2 envs, columns \[0, 1\]"
    ):
        TaskEnv(task, BreakableSimulator(2), seed=0)


def test_a_state_of_another_size_is_refused(env):
    other = TaskEnv(LineTask(), BreakableSimulator(2), seed=0)
    with pytest.raises(ConfigurationError, match="4 envs, this env 2"):
        other.load_state_dict(env.state_dict())


def test_rsl_rl_may_stagger_episodes_by_assigning_the_counter(env):
    env.episode_length_buf = torch.tensor([4, 0, 2, 0])
    assert env.step(torch.zeros(4, 2))[2].tolist() == [1, 0, 0, 0]


def test_blocks_of_a_batch_start_together_as_the_whole_batch_and_singly_on_their_own():
    def make(index: int, count: int):
        return make_env("Myriad-PointMaze-Maze", num_envs=4 // count, seed=3, shard=Shard(index, count))

    whole, blocks = make(0, 1), [make(i, 2) for i in range(2)]
    for _ in range(2):
        starts = [env.reset()["policy"] for env in blocks]
        assert torch.equal(torch.cat(starts), whole.reset()["policy"])
    single = [env.reset(torch.tensor([0]))["policy"][0] for env in blocks]
    assert not torch.equal(*single)
    again = make(1, 2)
    again.load_state_dict(blocks[1].state_dict())
    assert torch.equal(again.reset(torch.tensor([1]))["policy"], blocks[1].reset(torch.tensor([1]))["policy"])
    assert torch.equal(again.reset()["policy"], blocks[1].reset()["policy"])
