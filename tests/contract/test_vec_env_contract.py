"""What every backend and task must keep of the VecEnv contract; parametrised over the registry."""

from __future__ import annotations

import io

import pytest
import torch

from myriad_lab.envs.contract import VecEnv
from myriad_lab.envs.mujoco import engine
from myriad_lab.tasks.registry import list_tasks, make_env

OLD_MUJOCO = "mujoco without batch"
CASES = [(entry.id, backend) for entry in list_tasks() for backend in entry.backends]
CASES.append(("Myriad-AntMaze-Maze", OLD_MUJOCO))
NUM_ENVS = 3
EPISODE = 4
FOREVER = 10_000

pytestmark = pytest.mark.parametrize(("task_id", "backend"), CASES, ids=[f"{t}-{b}" for t, b in CASES])


@pytest.fixture(autouse=True)
def installed(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the simulator find a MuJoCo older than 3.17, where that is the case."""
    if backend == OLD_MUJOCO:
        monkeypatch.setattr(engine, "HAS_BATCH", False)


def build(task_id: str, backend: str, *, steps: int = EPISODE, seed: int = 3, final_obs: bool = True) -> VecEnv:
    return make_env(
        task_id,
        backend=backend.split()[0],
        num_envs=NUM_ENVS,
        seed=seed,
        final_obs=final_obs,
        overrides={"episode_steps": steps},
        num_threads=1,
    )


def actions_of(env: VecEnv, count: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [2 * torch.rand(env.num_envs, env.num_actions, generator=generator) - 1 for _ in range(count)]


def assert_same(first, second, rows=slice(None)) -> None:
    assert set(first.keys()) == set(second.keys())
    for group in first.keys():  # noqa: SIM118 - a TensorDict iterates over rows
        torch.testing.assert_close(first[group][rows], second[group][rows], rtol=0, atol=0)


def test_shapes_dtypes_ends_and_auto_reset(task_id, backend):
    env = build(task_id, backend)
    for step, actions in enumerate(actions_of(env, 2 * EPISODE + 1), start=1):
        obs, rewards, dones, extras = env.step(actions)
        for group in ("policy", "critic", "features"):
            assert obs[group].shape == (NUM_ENVS, env.spec.group_size(group))
            assert obs[group].dtype == torch.float32
            assert extras["final_obs"][group].shape == obs[group].shape
        assert rewards.shape == dones.shape == (NUM_ENVS,)
        assert (rewards.dtype, dones.dtype) == (torch.float32, torch.long)
        for name in ("terminated", "time_outs", "diverged"):
            assert extras[name].shape == (NUM_ENVS,)
            assert extras[name].dtype == torch.bool
        assert not (extras["terminated"] & extras["time_outs"]).any()
        assert torch.equal(extras["terminated"] | extras["time_outs"], dones.bool())
        assert bool(extras["log"]) == bool(dones.any())
        assert torch.equal(env.episode_length_buf[dones.bool()], torch.zeros(int(dones.sum()), dtype=torch.long))
        if step % EPISODE == 0:
            assert dones.all()
            assert extras["log"]["Episode_Termination/time_out"] + extras["log"]["Episode_Termination/terminated"] == 3
        assert_same(obs, env.get_observations())
    env.close()
    env.close()


def test_final_observation_is_the_one_before_the_reset(task_id, backend):
    short, endless = build(task_id, backend), build(task_id, backend, steps=FOREVER)
    for actions in actions_of(short, EPISODE):
        obs, _, _, extras = short.step(actions)
        true_obs, _, ended, _ = endless.step(actions)
    assert not ended.any()
    assert_same(extras["final_obs"], true_obs)
    if short.spec.action.kind != "discrete":  # a walker on a grid may have come back to the start
        assert (obs["policy"] != true_obs["policy"]).any(1).all()
    plain = build(task_id, backend, final_obs=False)
    assert not plain.provides_final_obs
    assert "final_obs" not in plain.step(actions)[3]
    for env in (short, endless, plain):
        env.close()


def test_partial_resets_touch_only_their_rows(task_id, backend):
    env, endless = build(task_id, backend, steps=50), build(task_id, backend, steps=FOREVER)
    script = actions_of(env, 6)
    for actions in script[:2]:
        env.step(actions)
        endless.step(actions)
    env.episode_length_buf[1] = 49
    others = [0, 2]
    for index, actions in enumerate(script[2:]):
        obs, rewards, dones, _ = env.step(actions)
        true_obs, true_rewards, _, _ = endless.step(actions)
        assert dones.tolist() == ([0, 1, 0] if index == 0 else [0, 0, 0])
        assert_same(obs, true_obs, others)
        assert torch.equal(rewards[others], true_rewards[others])
    assert env.episode_length_buf.tolist() == [6, 3, 6]
    before = env.get_observations()
    assert_same(env.reset(torch.tensor([2])), before, [0, 1])
    assert env.episode_length_buf.tolist() == [6, 3, 0]
    env.close()
    endless.close()


def test_seeds_reproduce_and_differ(task_id, backend):
    first, second, other = (build(task_id, backend, seed=seed) for seed in (5, 5, 6))
    assert_same(first.get_observations(), second.get_observations())
    differs = False
    for actions in actions_of(first, 3 * EPISODE + 1):
        outcome, repeat, elsewhere = first.step(actions), second.step(actions), other.step(actions)
        assert_same(outcome[0], repeat[0])
        assert torch.equal(outcome[1], repeat[1])
        assert torch.equal(outcome[2], repeat[2])
        differs |= not torch.equal(outcome[0]["policy"], elsewhere[0]["policy"])
    assert differs
    for env in (first, second, other):
        env.close()


def test_state_round_trip_is_bit_exact(task_id, backend):
    env = build(task_id, backend)
    script = actions_of(env, 2 * EPISODE + 3)
    for actions in script[:3]:
        env.step(actions)
    file = io.BytesIO()
    torch.save(env.state_dict(), file)
    expected = [env.step(actions) for actions in script[3:]]
    file.seek(0)
    copy = build(task_id, backend, seed=99)
    copy.load_state_dict(torch.load(file, weights_only=True))
    for actions, (obs, rewards, dones, extras) in zip(script[3:], expected, strict=True):
        obs_again, rewards_again, dones_again, extras_again = copy.step(actions)
        assert_same(obs_again, obs)
        assert_same(extras_again["final_obs"], extras["final_obs"])
        assert torch.equal(rewards_again, rewards)
        assert torch.equal(dones_again, dones)
        assert extras_again["log"] == extras["log"]
    env.close()
    copy.close()


def test_observations_are_not_views(task_id, backend):
    env = build(task_id, backend)
    for actions in actions_of(env, EPISODE + 1):
        obs, _, _, extras = env.step(actions)
        kept, kept_final = obs.clone(), extras["final_obs"].clone()
        env.step(-actions)
        assert_same(obs, kept)
        assert_same(extras["final_obs"], kept_final)
        now = env.get_observations()
        for handed_out in (env.get_observations(), env.reset(torch.tensor([], dtype=torch.long))):
            for group in ("policy", "critic", "features"):
                handed_out[group].fill_(-7.0)
        assert_same(env.get_observations(), now)
    env.close()


def test_actions_are_clamped_and_checked(task_id, backend):
    env, twin = build(task_id, backend), build(task_id, backend)
    script = actions_of(env, 2)
    assert_same(env.step(4 * script[0].sign())[0], twin.step(script[0].sign())[0])
    bad = script[1].clone()
    bad[2, 0] = torch.nan
    with pytest.raises(ValueError, match=r"NaN in the actions of envs \[2\]"):
        env.step(bad)
    with pytest.raises(ValueError, match="shape"):
        env.step(script[1][:, :-1])
    assert_same(env.step(script[1])[0], twin.step(script[1])[0])
    env.close()
    twin.close()
