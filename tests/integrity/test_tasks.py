"""Every registered task: terms, groups, rewards, ends and goals hang together."""

from __future__ import annotations

import pytest
import torch

from myriad_lab.envs.contract import EnvSpec
from myriad_lab.errors import ConfigurationError
from myriad_lab.tasks.registry import get, list_tasks, make_env

ENTRIES = list_tasks()
IDS = [entry.id for entry in ENTRIES]
GOAL_IDS = [name for name in IDS if name.endswith("-Goal")]
EXPLORED_FREELY = [e.id for e in ENTRIES if e.family in ("maze", "gridworld") and e.id not in GOAL_IDS]


def small_env(task_id: str, num_envs: int = 4, **overrides):
    return make_env(task_id, num_envs=num_envs, seed=1, overrides=overrides, num_threads=1)


def random_actions(env) -> torch.Tensor:
    return 2 * torch.rand(env.num_envs, env.num_actions, generator=torch.Generator().manual_seed(0)) - 1


def test_the_families_are_complete():
    mazes = [f"Myriad-PointMaze-{name}" for name in ("Empty", "Maze", "Cave")]
    mazes += [f"Myriad-AntMaze-{name}" for name in ("Empty", "Maze", "Pyramid", "Cave")]
    others = ["Myriad-Ant", "Myriad-Humanoid", "Myriad-Velocity-Quadruped"]
    grids = ["Myriad-Gridworld-Room", "Myriad-Gridworld-Maze"]
    assert set(IDS) == {*mazes, *[f"{name}-Goal" for name in mazes], *others, *grids}


@pytest.mark.parametrize("task_id", IDS)
def test_fifty_random_steps_are_finite_and_terms_fit(task_id):
    env = small_env(task_id)
    task = env.task
    observed = task.observe(env.simulator.state())
    for group in ("policy", "critic"):
        terms = env.spec.observations[group]
        assert [term.name for term in terms] == list(observed[group])
        joined = torch.cat([observed[group][term.name].reshape(env.num_envs, -1) for term in terms], dim=1)
        assert torch.equal(joined, env.get_observations()[group])
        assert joined.shape[1] == env.spec.group_size(group)
    assert env.num_actions == len(env.spec.action.scale) == len(env.spec.action.offset)
    assert env.max_episode_length == get(task_id).cfg.episode_steps
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        actions = 2 * torch.rand(env.num_envs, env.num_actions, generator=generator) - 1
        obs, rewards, _, extras = env.step(actions)
        assert all(torch.isfinite(obs[group]).all() for group in env.spec.observations)
        assert torch.isfinite(rewards).all()
        assert not extras["diverged"].any()
    env.close()


@pytest.mark.parametrize("task_id", IDS)
def test_cfg_is_handed_out_as_a_copy_and_round_trips(task_id):
    from omegaconf import OmegaConf

    first = get(task_id)
    first.cfg.episode_steps = 123_456
    assert get(task_id).cfg.episode_steps != 123_456
    assert OmegaConf.to_object(OmegaConf.structured(get(task_id).cfg)) == get(task_id).cfg
    assert first.description.endswith(".")


@pytest.mark.parametrize("task_id", EXPLORED_FREELY)
def test_reward_free_tasks_have_no_reward_and_no_end_but_time_and_an_ant_s_fall(task_id):
    env = small_env(task_id, episode_steps=12)
    for step in range(1, 25):
        _, rewards, dones, extras = env.step(random_actions(env))
        assert not rewards.any()
        assert not extras["terminated"].any()
        assert dones.bool().all() == (step % 12 == 0)
        assert "success" not in extras
    state = env.simulator.state()
    assert not env.task.terminated(state).any()
    state.root_quat_w[:] = torch.tensor([0.0, 1.0, 0.0, 0.0])  # on the back
    assert env.task.terminated(state).tolist() == ["Ant" in task_id] * 4
    env.close()


@pytest.mark.parametrize("task_id", GOAL_IDS)
def test_goals_are_free_far_reachable_and_unseen(task_id):
    goal_env, free_env = small_env(task_id), small_env(task_id.removesuffix("-Goal"))
    task, arena = goal_env.task, goal_env.task.arena
    goal = torch.tensor(task.goal, dtype=torch.float64)
    assert arena.is_free(goal)
    distances = arena.geodesic()
    ix, iy = arena.cell_of(goal).tolist()
    share_nearer = (distances[torch.isfinite(distances)] <= distances[ix, iy]).double().mean()
    assert abs(float(share_nearer) - 0.8) < 0.02
    assert task.cfg.goal_radius == (1.0 if "Ant" in task_id else 0.5)
    assert goal_env.spec.observations == free_env.spec.observations
    assert goal_env.spec.action == free_env.spec.action
    for _ in range(3):
        obs, free_obs = goal_env.step(random_actions(goal_env))[0], free_env.step(random_actions(free_env))[0]
        for group in ("policy", "features"):
            assert torch.equal(obs[group], free_obs[group])
    goal_env.close()
    free_env.close()


@pytest.mark.parametrize("task_id", GOAL_IDS)
def test_reaching_the_goal_pays_one_and_terminates(task_id):
    start = get(task_id.removesuffix("-Goal")).make_task(get(task_id.removesuffix("-Goal")).cfg).arena.start
    env = small_env(task_id, goal=list(start), goal_radius=2.0)
    _, rewards, dones, extras = env.step(torch.zeros(env.num_envs, env.num_actions))
    assert rewards.tolist() == [1.0] * 4
    assert dones.tolist() == [1] * 4
    assert extras["terminated"].all()
    assert extras["success"].all()
    assert extras["log"]["Episode_Reward/goal"] == 1.0
    assert extras["log"]["Metrics/success"] == 1.0
    env.close()


@pytest.mark.parametrize("task_id", [name for name in IDS if "Maze-" in name and "Grid" not in name])
def test_features_of_mazes_are_metres_in_the_world(task_id):
    env = small_env(task_id)
    features = env.get_observations()["features"]
    start = torch.tensor(env.task.arena.start)
    assert (features - start).abs().max() <= env.task.cfg.start_noise + 1e-6
    assert [term.unit for term in env.spec.observations["features"]] == ["m"]
    position = env.get_observations()["policy"][:, :2]
    half = torch.tensor(env.task.arena.half_extent)
    torch.testing.assert_close(position * half, features, atol=1e-5, rtol=1e-5)
    env.close()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"task_id": "Myriad-PointMaze-Mazes"}, "Did you mean Myriad-PointMaze-Maze"),
        ({"backend": "mujoco"}, "runs on torch"),
        ({"device": "cuda:99"}, "not there"),
        ({"num_envs": 0}, "at least 1"),
        ({"overrides": {"goal_radios": 1.0}}, "Did you mean goal_radius"),
        ({"overrides": {"goal.x": 1.0}}, "Unknown field"),
        ({"overrides": {"goal_radius": "wide"}}, "does not fit"),
        ({"overrides": {"goal": [0.0, 0.0]}}, "inside a wall"),
        ({"overrides": {"goal": [99.0, 0.0]}}, "outside the extent"),
        ({"overrides": {"goal": [1.0]}}, "has 1 numbers"),
        ({"overrides": {"arena": "mace"}}, "Did you mean maze"),
        ({"overrides": {"start_noise": 3.0}}, "reaches into a wall"),
        ({"task_id": "Myriad-PointMaze-Maze", "overrides": {"goal": [1.0, 1.0]}}, "variant ending in -Goal"),
        ({"task_id": "Myriad-Gridworld-Room", "overrides": {"slip": 1.5}}, "between 0 and 1"),
        ({"task_id": "Myriad-Gridworld-Room", "overrides": {"map": "rom"}}, "Did you mean room"),
    ],
)
def test_bad_input_is_named_before_any_work(arguments, message):
    defaults = {"task_id": "Myriad-PointMaze-Maze-Goal", "num_envs": 4}
    with pytest.raises(ConfigurationError, match=message):
        make_env(**{**defaults, **arguments})


def test_spec_is_plain_data():
    import json

    spec = small_env("Myriad-PointMaze-Maze").spec
    assert isinstance(spec, EnvSpec)
    data = json.loads(json.dumps(spec.to_dict()))
    assert data["task"] == "Myriad-PointMaze-Maze"
    assert [term["name"] for term in data["observations"]["policy"]] == ["position", "position_fourier"]
    assert data["action"]["scale"] == [2.5, 2.5]
