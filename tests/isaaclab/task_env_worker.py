"""Plays our tasks on one engine of Isaac Lab and writes what it saw, for ``test_task_env``: ``worker ENGINE FILE``.

A process of its own per engine, because a process has one simulation context and one physics runtime.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import torch

NUM_ENVS = 4
FORBIDDEN = {"pxr", "scipy", "omni", "carb", "isaacsim"}
FREE_FALL_HEIGHT = 3.0
STEPS = 20
REST_HEIGHT = 0.56


def load_cfg(task_id: str, engine: str) -> Any:
    from isaaclab_tasks.utils import load_cfg_from_registry

    cfg = load_cfg_from_registry(task_id, "env_cfg_entry_point")
    cfg.sim.physics = getattr(cfg.sim.physics, engine)
    cfg.sim.device, cfg.seed, cfg.compute_final_obs = "cpu", 0, True
    cfg.scene.num_envs = NUM_ENVS
    return cfg


@contextmanager
def made(task_id: str, engine: str, together: bool | None = None, **task: Any) -> Iterator[Any]:
    import gymnasium

    cfg = load_cfg(task_id, engine)
    cfg.arena_per_env = None if together is None else not together
    for name, value in task.items():
        setattr(cfg.task, name, value)
    env = gymnasium.make(task_id, cfg=cfg).unwrapped
    env.reset()
    try:
        yield env
    finally:
        env.close()


def make_initial(env: Any, position: tuple[float, float, float], generator: torch.Generator | None = None) -> Any:
    """Return upright robots at ``position``, at rest, or where a generator is given tilted and moving a little."""
    from myriad_lab.envs.robot_state import InitialState

    robot = env.task.robot
    joints = torch.tensor(robot.default_joint_pos).repeat(NUM_ENVS, 1)
    still = torch.zeros(NUM_ENVS, 3)
    quat = torch.tensor([[1.0, 0.0, 0.0, 0.0]]).repeat(NUM_ENVS, 1)
    initial = InitialState(torch.tensor([position]).repeat(NUM_ENVS, 1), quat, still, still, joints, 0 * joints)
    if generator is None:
        return initial
    noise = {f.name: torch.randn(getattr(initial, f.name).shape, generator=generator) for f in fields(initial)}
    initial.root_quat_w = torch.nn.functional.normalize(quat + 0.1 * noise["root_quat_w"], dim=1)
    initial.root_lin_vel_w, initial.root_ang_vel_w = noise["root_lin_vel_w"], noise["root_ang_vel_w"]
    initial.joint_pos, initial.joint_vel = joints + 0.05 * noise["joint_pos"].abs(), noise["joint_vel"]
    return initial


def start_at(env: Any, initial: Any) -> None:
    """Start all episodes anew, in the given states."""
    env.reset()
    env.write_state(torch.arange(NUM_ENVS), initial)


def rows_of(state: Any) -> dict[str, torch.Tensor]:
    return {f.name: getattr(state, f.name).clone() for f in fields(state)}


def random_steps(env: Any) -> dict[str, Any]:
    """Read back a state, then act at random."""
    generator = torch.Generator().manual_seed(0)
    first = env.reset(seed=3)[0]["features"]
    again = env.reset(seed=3)[0]["features"]
    initial = make_initial(env, (*env_start(env), FREE_FALL_HEIGHT), generator)
    start_at(env, initial)
    wrote, read = rows_of(initial), rows_of(env.robot_state())
    finite = True
    for _ in range(STEPS):
        actions = 4.0 * torch.rand(NUM_ENVS, env.single_action_space.shape[0], generator=generator) - 2.0
        obs, rewards, *_ = env.step(actions)
        finite &= all(bool(torch.isfinite(value).all()) for value in (*obs.values(), rewards))
    state = env.robot_state()
    return {
        "same_start": bool(torch.equal(first, again)),
        "error": {name: float((wrote[name] - read[name]).abs().max()) for name in wrote},
        "finite": finite and not bool(env.extras["diverged"].any()),
        "largest_action": float(state.actions.abs().max()),
        "shapes": {name: tuple(value.shape) for name, value in obs.items()},
        "rewards": tuple(rewards.shape),
        "max_episode_length": env.max_episode_length,
        "step_dt": env.step_dt,
    }


def env_start(env: Any) -> tuple[float, float]:
    return env.task.arena.start


def beside_mujoco(env: Any) -> dict[str, Any]:
    """Let an ant fall, twitch and stand, here and on MuJoCo."""
    from myriad_lab.envs.mujoco.simulator import MujocoSimulator

    simulator = MujocoSimulator(env.task.robot, env.task.arena, NUM_ENVS, num_threads=1)
    num_actions = len(env.task.robot.action.names)

    def play(initial: Any, actions: torch.Tensor, steps: int) -> dict[str, dict[str, torch.Tensor]]:
        start_at(env, initial)
        simulator.reset(torch.arange(NUM_ENVS), initial)
        for _ in range(steps):
            env.step(actions)
            simulator.step(actions)
        return {"here": rows_of(env.robot_state()), "mujoco": rows_of(simulator.state())}

    idle, pulse = torch.zeros(NUM_ENVS, num_actions), torch.zeros(NUM_ENVS, num_actions)
    pulse[:, 0], pulse[:, 3] = 0.3, -0.4
    high, low = (*env_start(env), FREE_FALL_HEIGHT), (*env_start(env), REST_HEIGHT)
    stand = make_initial(env, low)
    stand.joint_pos[:, 1::2] = 0.099
    return {
        "fall": play(make_initial(env, high, torch.Generator().manual_seed(1)), idle, 10),
        "pulse": play(make_initial(env, high), pulse, 3),
        "stand": play(stand, idle, 30),
        "drop": play(make_initial(env, (*env_start(env), 0.6)), idle, 60),
    }


def partial_reset(env: Any) -> dict[str, Any]:
    start_at(env, make_initial(env, (*env_start(env), 0.6)))
    for _ in range(3):
        env.step(0.5 * torch.ones(NUM_ENVS, env.single_action_space.shape[0]))
    before, ages = rows_of(env.robot_state()), env.episode_length_buf.clone()
    env._reset_idx(torch.tensor([2], dtype=torch.int32))
    after = rows_of(env.robot_state())
    return {"before": before, "after": after, "ages": (ages, env.episode_length_buf.clone())}


def at_the_goal(env: Any) -> dict[str, Any]:
    """Put robot 1 on the goal."""
    goal = env.task.goal
    initial = make_initial(env, (*env_start(env), REST_HEIGHT))
    initial.root_pos_w[1, :2] = torch.tensor(goal)
    start_at(env, initial)
    obs, rewards, terminated, time_outs, extras = env.step(torch.zeros(NUM_ENVS, 8))
    seen = {"rewards": rewards, "terminated": terminated, "time_outs": time_outs, "features": obs["features"]}
    seen |= {"success": extras["success"], "diverged": extras["diverged"], "final": extras["final_obs"]["features"]}
    result: dict[str, Any] = {name: value.clone() for name, value in seen.items()}
    result |= {"goal": torch.tensor(goal), "start": torch.tensor(env_start(env)), "log": dict(extras["log"])}
    *_, extras = env.step(torch.zeros(NUM_ENVS, 8))
    return result | {"log_next": "log" in extras, "success_next": extras["success"].clone()}


def against_a_wall(env: Any) -> torch.Tensor:
    """Throw ants at the eastern wall and return how far they got [m], shape (steps, num_envs)."""
    initial = make_initial(env, (env.task.arena.extent[1] - 1.5, 0.0, REST_HEIGHT))
    initial.root_lin_vel_w = torch.tensor([[6.0, 0.0, 0.0]]).repeat(NUM_ENVS, 1)
    start_at(env, initial)
    way = []
    for _ in range(40):
        env.step(torch.zeros(NUM_ENVS, 8))
        way.append(env.robot_state().root_pos_w[:, 0])
    return torch.stack(way)


def at_one_place(env: Any) -> dict[str, torch.Tensor]:
    """Let all ants drop at one place, of which three start as one."""
    initial = make_initial(env, (*env_start(env), 0.6))
    initial.root_pos_w[3, 0] += 2.0
    start_at(env, initial)
    for _ in range(30):
        env.step(torch.zeros(NUM_ENVS, 8))
    return rows_of(env.robot_state())


def on_a_slope(env: Any) -> dict[str, torch.Tensor]:
    """Let ants stand half way up the pyramid, and return how high they are above the ground [m]."""
    spot = torch.tensor([-5.0, 0.0])
    ground = float(env.task.arena.height_at(spot))
    start_at(env, make_initial(env, (*spot.tolist(), ground + 0.7)))
    for _ in range(15):
        env.step(torch.zeros(NUM_ENVS, 8))
    position = env.robot_state().root_pos_w
    return {"ground": torch.tensor(ground), "above": position[:, 2] - env.task.arena.height_at(position[:, :2])}


def main(engine: str, path: str) -> None:
    import myriad_lab.tasks.isaaclab as ours

    for task_id in ours.task_ids():
        load_cfg(task_id, engine).validate()
    results: dict[str, Any] = {"loaded": sorted({name.split(".")[0] for name in sys.modules} & FORBIDDEN)}
    if engine == "ovphysx":
        from myriad_lab.envs.isaaclab.pinned_shim import install_pinned_shim

        install_pinned_shim()
    results["steps"] = {}
    for task_id in ours.task_ids():
        with made(task_id, engine) as env:
            results["steps"][task_id] = random_steps(env)
            if task_id == "Myriad-AntMaze-Maze-Goal":
                results["goal"] = at_the_goal(env)
            if task_id == "Myriad-AntMaze-Pyramid":
                results["slope"] = on_a_slope(env)
            if task_id == "Myriad-AntMaze-Maze":
                results["partial"] = partial_reset(env)
    with made("Myriad-AntMaze-Empty", engine, fall_ends=False) as env:
        results["mujoco"] = beside_mujoco(env)
        results["wall"] = against_a_wall(env)
    with made("Myriad-AntMaze-Empty", engine, together=True, fall_ends=False) as env:
        results["one_place"] = at_one_place(env)
        results["wall_together"] = against_a_wall(env)
    torch.save(results, path)


if __name__ == "__main__":
    main(*sys.argv[1:])
