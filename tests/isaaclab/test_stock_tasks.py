"""Tasks of Isaac Lab as our VecEnv, on both engines that need no Isaac Sim; robots are stand-ins (``stand_ins.py``)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from myriad_lab.cli.plan import make_plan
from myriad_lab.envs.contract import VecEnv
from myriad_lab.envs.isaaclab.cfg import IsaacLabCfg
from myriad_lab.errors import ConfigurationError

pytestmark = [pytest.mark.isaaclab, pytest.mark.timeout(600)]

ENGINES = ("newton_mjwarp", "ovphysx")
NUM_ENVS = 8
EPISODE = 4
STEPS = 20
GROUPS = ("policy", "critic", "features")
NOISELESS = ("env.observations.policy.enable_corruption=False",)
# Isaac Lab sets the commands after the final observations are read: a turn that is regulated towards a heading is there
# still that of the step before.
STEADY = (*NOISELESS, "env.commands.base_velocity.heading_command=False")
PRESETS = sorted(path.stem for path in (Path(__file__).parents[2] / "config" / "task").glob("isaac-*.yaml"))


class Stock(NamedTuple):
    """A stock task, and how its own end is brought about."""

    feature: str
    size: int
    period: float
    end: Callable[[Any], None]
    overrides: tuple[str, ...] = ()
    gains: tuple[float, float] | None = None


def set_field(name: str, value: float) -> Callable[[Any], None]:
    """Return what moves the bound of a direct task's end."""
    return lambda inner: setattr(inner.cfg, name, value)


def set_param(term: str, name: str, value: Any) -> Callable[[Any], None]:
    """Return what moves the bound of a manager-based task's end."""
    return lambda inner: inner.termination_manager.get_term_cfg(term).params.update({name: value})


def accept_any_pose(inner: Any) -> None:
    """Let every pose of the hand be the one asked for."""
    cfg = inner.command_manager.get_term("ee_pose").cfg
    cfg.position_success_threshold = cfg.orientation_success_threshold = 10.0


TASKS = {
    "Isaac-Cartpole-Direct": Stock("joint_pos:cartpole", 2, 1 / 60, set_field("max_cart_pos", 0.0)),
    "Isaac-Cartpole": Stock("joint_pos", 2, 1 / 60, set_param("cart_out_of_bounds", "bounds", (9.0, 9.0)), NOISELESS),
    "Isaac-Humanoid-Direct": Stock("root_xy", 2, 1 / 60, set_field("termination_height", 9.0)),
    "Isaac-Humanoid": Stock("root_xy", 2, 1 / 60, set_param("torso_height", "minimum_height", 9.0)),
    "Isaac-Velocity-Flat-UnitreeGo2": Stock("root_xy", 2, 1 / 50, set_param("base_contact", "threshold", -1.0), STEADY),
    "Isaac-Reach-Franka": Stock("body_pos:panda_hand", 3, 1 / 30, accept_any_pose, NOISELESS),
}


@contextmanager
def made(task_id: str, engine: str, steps: int) -> Iterator[Any]:
    """Make an env and close it in any case, since a process has room for one."""
    from myriad_lab.envs.isaaclab.launch import make_isaaclab_env

    stock = TASKS[task_id]
    env = make_isaaclab_env(
        task_id,
        IsaacLabCfg(physics=engine, features=[stock.feature]),
        num_envs=NUM_ENVS,
        seed=3,
        # half a step less, since Isaac Lab rounds up
        overrides=[f"env.episode_length_s={(steps - 0.5) * stock.period}", *stock.overrides],
    )
    try:
        yield env
    finally:
        env.close()


def script(env: VecEnv, count: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [2 * torch.rand(env.num_envs, env.num_actions, generator=generator) - 1 for _ in range(count)]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("task_id", TASKS)
def test_random_steps_and_both_ends(task_id: str, engine: str) -> None:
    with made(task_id, engine, 10_000) as env:
        seen = [env.step(actions)[0] for actions in script(env, EPISODE)][-1]
    with made(task_id, engine, EPISODE) as env:
        assert env.spec.control_period == pytest.approx(TASKS[task_id].period)
        assert env.spec.group_size("features") == TASKS[task_id].size
        if TASKS[task_id].gains:  # of a motor that Isaac Lab computes, and not the engine
            assert set(zip(env.spec.robot["stiffness"], env.spec.robot["damping"], strict=True)) == {
                TASKS[task_id].gains
            }
        for step, actions in enumerate(script(env, STEPS), start=1):
            obs, rewards, dones, extras = env.step(actions)
            assert all(torch.isfinite(group[name]).all() for group in (obs, extras["final_obs"]) for name in GROUPS)
            assert torch.isfinite(rewards).all()
            assert not extras["diverged"].any()
            assert not extras["terminated"].any()
            assert extras["time_outs"].tolist() == dones.bool().tolist() == [step % EPISODE == 0] * NUM_ENVS
            if step == EPISODE:
                for name in GROUPS:
                    torch.testing.assert_close(extras["final_obs"][name], seen[name], rtol=0, atol=0)
                assert (obs["policy"] != seen["policy"]).any(1).all()
        TASKS[task_id].end(env.inner)
        env.episode_length_buf[:] = EPISODE - 1  # both ends at once, of which one is told
        _, _, dones, extras = env.step(script(env, 1)[0])
        assert dones.all()
        assert extras["terminated"].all()
        assert not extras["time_outs"].any()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("preset", PRESETS)
def test_presets_fit_the_tasks(preset: str, engine: str) -> None:
    from myriad_lab.envs.isaaclab.launch import list_isaaclab_tasks

    (task_id,) = (name for name in list_isaaclab_tasks() if name.lower() == preset)
    plan = make_plan({"task": task_id, "backend": "isaaclab", "device": "cpu"}, [f"physics={engine}"])
    assert plan.env.isaaclab is not None
    assert plan.env.isaaclab.physics == engine
    assert plan.run.num_envs == 512
    assert plan.env.num_features in (2, 3)
    assert plan.env.episode_steps > 100


@pytest.mark.parametrize(
    ("task_id", "groups"),
    [("Isaac-Lift-Franka", ("policy", "proprio", "perception")), ("IsaacContrib-DrLegs-Walk", ("policy",))],
    ids=["history of groups", "history of a term"],
)
def test_final_observations_with_a_history_are_refused_and_the_advice_mends_it(
    task_id: str, groups: tuple[str, ...]
) -> None:
    from myriad_lab.envs.isaaclab.final_obs import check_final_obs
    from myriad_lab.envs.isaaclab.launch import resolve_env_cfg

    with pytest.raises(ConfigurationError, match=r"set env\.observations\.GROUP\.history_length=0") as refused:
        check_final_obs(task_id, resolve_env_cfg(task_id, IsaacLabCfg()))
    assert all(f"{group}." in str(refused.value) for group in groups)
    mended = [f"env.observations.{group}.history_length=0" for group in groups]
    check_final_obs(task_id, resolve_env_cfg(task_id, IsaacLabCfg(), mended))


def test_null_switches_off_what_is_no_number() -> None:
    from myriad_lab.envs.isaaclab.launch import resolve_env_cfg

    task = "Isaac-Velocity-Flat-UnitreeGo2"
    words = ["env.events.push_robot=null", "env.observations.policy.base_lin_vel=null"]
    cfg = resolve_env_cfg(task, IsaacLabCfg(), words)
    assert cfg.events.push_robot is None
    assert cfg.observations.policy.base_lin_vel is None
    with pytest.raises(ConfigurationError, match=r"env\.sim\.dt=null; expected float"):
        resolve_env_cfg(task, IsaacLabCfg(), ["env.sim.dt=null"])


def test_what_playing_leaves_out_may_have_been_set_for_training() -> None:
    from myriad_lab.envs.isaaclab.launch import resolve_env_cfg

    task = "Isaac-Velocity-Flat-UnitreeGo2"
    force = "env.events.base_external_force_torque.params.force_range=[0.0,5.0]"
    trained = resolve_env_cfg(task, IsaacLabCfg(), [force, "env.episode_length_s=7.0"])
    assert list(trained.events.base_external_force_torque.params["force_range"]) == [0.0, 5.0]
    played = resolve_env_cfg(task, IsaacLabCfg(play_mode=True), [force, "env.episode_length_s=7.0"])
    assert played.events.base_external_force_torque is None
    assert played.episode_length_s == 7.0
    with pytest.raises(ConfigurationError, match=r"unknown key env\.events\.push_robots"):
        resolve_env_cfg(task, IsaacLabCfg(play_mode=True), ["env.events.push_robots=null"])
