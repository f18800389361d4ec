"""What every backend and task must keep of the VecEnv contract; parametrised over the registry.

Isaac Lab allows one env at a time in a process, so an env is played and closed before the next one is built.
"""

from __future__ import annotations

import io
from typing import Any, NamedTuple

import pytest
import torch
from tensordict import TensorDict

from myriad_lab.envs.contract import VecEnv
from myriad_lab.envs.isaaclab.cfg import IsaacLabCfg
from myriad_lab.envs.mujoco import engine
from myriad_lab.tasks.registry import is_registered, list_tasks, make_env

OLD_MUJOCO = "mujoco without batch"
ENGINES = ("newton_mjwarp", "ovphysx")
IN_ISAACLAB = (
    "Myriad-AntMaze-Maze-Goal",
    "Myriad-AntMaze-Pyramid",
    "Myriad-Ant",
    "Myriad-Humanoid",
    "Myriad-Velocity-Quadruped",
)
"""Ours there: each robot, walls, a height field, a goal; the others differ in the map alone."""
ON_WARP = ("Myriad-AntMaze-Maze",)
"""Ours on MuJoCo-Warp: one robot, for its kernels take half a minute to compile on a machine that has none of them."""
STOCK = ("Isaac-Ant-Direct", "Isaac-Ant")
"""Tasks of Isaac Lab, a direct and a manager-based one."""
NUM_ENVS = 3
EPISODE = 4
FOREVER = 10_000
GROUPS = ("policy", "critic", "features")


def cases() -> list[Any]:
    """Return (task, backend) for all that there is; those on Isaac Lab are for its own environment."""
    native = [(entry.id, name) for entry in list_tasks() for name in entry.backends if name in ("torch", "mujoco")]
    native += [(task, "mujoco_warp") for task in ON_WARP]
    native.append(("Myriad-AntMaze-Maze", OLD_MUJOCO))
    foreign = [(task, f"isaaclab {physics}") for physics in ENGINES for task in (*IN_ISAACLAB, *STOCK)]
    return [
        *(pytest.param(*case, id="-".join(case)) for case in native),
        *(pytest.param(*case, id="-".join(case), marks=pytest.mark.isaaclab) for case in foreign),
    ]


pytestmark = pytest.mark.parametrize(("task_id", "backend"), cases())


@pytest.fixture(autouse=True)
def installed(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the simulator find a MuJoCo older than 3.17, where that is the case."""
    if backend == OLD_MUJOCO:
        monkeypatch.setattr(engine, "HAS_BATCH", False)


class Outcome(NamedTuple):
    obs: TensorDict
    rewards: torch.Tensor
    dones: torch.Tensor
    extras: dict[str, Any]


def build(task_id: str, backend: str, *, steps: int = EPISODE, seed: int = 3, final_obs: bool = True) -> VecEnv:
    name, *words = backend.split()
    overrides: dict[str, Any] = {"episode_steps": steps}
    if not is_registered(task_id):  # half a step less, since Isaac Lab rounds up; its ants step 60 times a second
        overrides = {"episode_length_s": (steps - 0.5) / 60}
    return make_env(
        task_id,
        backend=name,
        num_envs=NUM_ENVS,
        seed=seed,
        final_obs=final_obs,
        overrides=overrides,
        num_threads=1,
        isaaclab=IsaacLabCfg(physics=words[0]) if name == "isaaclab" else None,
    )


def actions_of(env: VecEnv, count: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [2 * torch.rand(env.num_envs, env.num_actions, generator=generator) - 1 for _ in range(count)]


def play(env: VecEnv, count: int) -> list[Outcome]:
    """Step an env and close it."""
    outcomes = [Outcome(*env.step(actions)) for actions in actions_of(env, count)]
    env.close()
    return outcomes


def assert_same(first, second, rows=slice(None)) -> None:
    assert set(first.keys()) == set(second.keys())
    for group in first.keys():  # noqa: SIM118 - a TensorDict iterates over rows
        torch.testing.assert_close(first[group][rows], second[group][rows], rtol=0, atol=0)


def test_shapes_dtypes_ends_and_auto_reset(task_id, backend):
    env = build(task_id, backend)
    for step, actions in enumerate(actions_of(env, 2 * EPISODE + 1), start=1):
        obs, rewards, dones, extras = env.step(actions)
        for group in GROUPS:
            assert obs[group].shape == (NUM_ENVS, env.spec.group_size(group))
            assert obs[group].dtype == torch.float32
            assert extras["final_obs"][group].shape == obs[group].shape
        assert rewards.shape == dones.shape == (NUM_ENVS,)
        assert (rewards.dtype, dones.dtype) == (torch.float32, torch.long)
        for name in ("terminated", "time_outs", "diverged"):
            assert extras[name].shape == (NUM_ENVS,)
            assert extras[name].dtype == torch.bool
        assert not (extras["terminated"] & extras["time_outs"]).any()
        assert not extras["diverged"].any()
        assert torch.equal(extras["terminated"] | extras["time_outs"], dones.bool())
        assert bool(extras["log"]) == bool(dones.any())
        assert torch.equal(env.episode_length_buf[dones.bool()], torch.zeros(int(dones.sum()), dtype=torch.long))
        if step % EPISODE == 0:
            assert dones.all()
            assert extras["log"]["Episode_Termination/diverged"] == 0
            if is_registered(task_id):
                ends = (extras["log"][f"Episode_Termination/{end}"] for end in ("time_out", "terminated"))
                assert sum(ends) == NUM_ENVS
        assert_same(obs, env.get_observations())
    env.close()
    env.close()


def test_final_observation_is_the_one_before_the_reset(task_id, backend):
    env = build(task_id, backend)
    kind = env.spec.action.kind
    short = play(env, EPISODE)[-1]
    endless = play(build(task_id, backend, steps=FOREVER), EPISODE)[-1]
    assert not endless.dones.any()
    assert_same(short.extras["final_obs"], endless.obs)
    if kind != "discrete":  # a walker on a grid may have come back to the start
        assert (short.obs["policy"] != endless.obs["policy"]).any(1).all()
    plain = build(task_id, backend, final_obs=False)
    assert not plain.provides_final_obs
    assert "final_obs" not in play(plain, 1)[0].extras


def test_partial_resets_touch_only_their_rows(task_id, backend):
    endless = play(build(task_id, backend, steps=FOREVER), 6)
    env = build(task_id, backend, steps=50)
    script = actions_of(env, 6)
    for actions in script[:2]:
        env.step(actions)
    env.episode_length_buf[1] = 49
    others = [0, 2]
    for index, (actions, true) in enumerate(zip(script[2:], endless[2:], strict=True)):
        obs, rewards, dones, _ = env.step(actions)
        assert dones.tolist() == ([0, 1, 0] if index == 0 else [0, 0, 0])
        assert_same(obs, true.obs, others)
        assert torch.equal(rewards[others], true.rewards[others])
    assert env.episode_length_buf.tolist() == [6, 3, 6]
    before = env.get_observations()
    assert_same(env.reset(torch.tensor([2])), before, [0, 1])
    assert env.episode_length_buf.tolist() == [6, 3, 0]
    env.close()


def test_seeds_reproduce_and_differ(task_id, backend):
    runs, starts = [], []
    for seed in (5, 5, 6):
        env = build(task_id, backend, seed=seed)
        starts.append(env.get_observations())
        runs.append(play(env, 3 * EPISODE + 1))
    assert_same(starts[0], starts[1])
    for outcome, repeat in zip(runs[0], runs[1], strict=True):
        assert_same(outcome.obs, repeat.obs)
        assert torch.equal(outcome.rewards, repeat.rewards)
        assert torch.equal(outcome.dones, repeat.dones)
    pairs = zip(runs[0], runs[2], strict=True)
    assert any(not torch.equal(outcome.obs["policy"], other.obs["policy"]) for outcome, other in pairs)


def test_state_round_trip(task_id, backend):
    env = build(task_id, backend)
    script = actions_of(env, 2 * EPISODE + 3)
    for actions in script[:3]:
        env.step(actions)
    file = io.BytesIO()
    torch.save(env.state_dict(), file)
    expected = [env.step(actions) for actions in script[3:]]
    env.close()
    copies = []
    for seed in (99, 100):
        file.seek(0)
        copy = build(task_id, backend, seed=seed)
        copy.load_state_dict(torch.load(file, weights_only=True))
        lengths = copy.episode_length_buf.clone()
        copies.append([Outcome(*copy.step(actions)) for actions in script[3:]])
        copy.close()
    if backend.startswith("isaaclab"):  # no snapshot is to be had: all episodes start anew
        assert lengths.tolist() == [0] * NUM_ENVS
        expected = copies[1]
    for again, (obs, rewards, dones, extras) in zip(copies[0], expected, strict=True):
        assert_same(again.obs, obs)
        assert_same(again.extras["final_obs"], extras["final_obs"])
        assert torch.equal(again.rewards, rewards)
        assert torch.equal(again.dones, dones)
        assert again.extras["log"] == extras["log"]


def test_observations_are_not_views(task_id, backend):
    env = build(task_id, backend)
    for actions in actions_of(env, EPISODE + 1):
        obs, rewards, dones, extras = env.step(actions)
        kept, kept_final = obs.clone(), extras["final_obs"].clone()
        others = {"rewards": rewards, "dones": dones} | {name: extras[name] for name in ("terminated", "time_outs")}
        kept_others = {name: value.clone() for name, value in others.items()}
        env.step(-actions)
        assert_same(obs, kept)
        assert_same(extras["final_obs"], kept_final)
        assert_same(others, kept_others)
        now = env.get_observations()
        for handed_out in (env.get_observations(), env.reset(torch.tensor([], dtype=torch.long))):
            for group in GROUPS:
                handed_out[group].fill_(-7.0)
        assert_same(env.get_observations(), now)
    env.close()


def test_actions_are_clamped_and_checked(task_id, backend):
    env = build(task_id, backend)
    script = actions_of(env, 2)
    first = env.step(4 * script[0].sign())[0]
    bad = script[1].clone()
    bad[2, 0] = torch.nan
    with pytest.raises(ValueError, match=r"NaN in the actions of envs \[2\]"):
        env.step(bad)
    with pytest.raises(ValueError, match="shape"):
        env.step(script[1][:, :-1])
    second = env.step(script[1])[0]
    env.close()
    twin = build(task_id, backend)
    assert_same(first, twin.step(script[0].sign())[0])
    assert_same(second, twin.step(script[1])[0])
    twin.close()
