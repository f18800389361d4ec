"""What draws the robots of an env, for films."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from myriad_lab.errors import ConfigurationError

if TYPE_CHECKING:
    import numpy as np

    from myriad_lab.envs.contract import VecEnv

log = logging.getLogger(__name__)


def env_colors(env: VecEnv, heads: Sequence[int], num_policies: int) -> list[Any]:
    """Return the colour of the head of each env, red, green, blue in 0 .. 1."""
    from myriad_lab.evaluation.plots import head_colors

    palette = head_colors(num_policies)
    return [palette[head] for head in heads for _ in range(env.num_envs // len(heads))]


def has_viewers(env: VecEnv) -> bool:
    """Return whether viewers of Isaac Lab show the env."""
    inner: Any = getattr(env, "inner", None)
    return bool(inner is not None and inner.sim.visualizers)


def make_scene(env: VecEnv, heads: Sequence[int], num_policies: int) -> Any:
    """Return what draws the robots of an env: its own viewer, MuJoCo's renderer, or the drawing from above.

    MuJoCo draws the robots of Isaac Lab too: robot and arena are the same files.

    Args:
        env: Robots of head after head, as many for each.
        heads: The heads, for their colours.
        num_policies: Heads of the whole population.

    Raises:
        ConfigurationError: If the env is not one of Myriad Lab's own tasks, and has no viewer.
    """
    from myriad_lab.monitor.video import TopDownDrawing

    colors = env_colors(env, heads, num_policies)
    if has_viewers(env):
        from myriad_lab.envs.isaaclab.viewer import ViewerScene

        return ViewerScene(env, colors)  # pyright: ignore[reportArgumentType]
    task: Any = getattr(env, "task", None)
    if task is None:
        raise ConfigurationError(
            f"{env.spec.task} has no arena that could be drawn; show it with a viewer of Isaac Lab, --viz newton_gl"
        )
    if task.robot.mjcf is not None:
        from myriad_lab.envs.mujoco.model import build_model
        from myriad_lab.envs.mujoco.render import PopulationRenderer, find_library

        if find_library() is not None:
            model = getattr(getattr(env, "simulator", None), "model", None) or build_model(task.robot, task.arena)
            return PopulationRenderer(model, _framed(env), colors)
        log.warning("neither EGL nor OSMesa works here, so the film is a drawing from above; install libegl1")
    goal = getattr(task, "goal", None)
    arena = {**task.arena.to_dict(), "extent": list(_framed(env))}
    return TopDownDrawing(arena, colors, goal=goal, goal_radius=getattr(task.cfg, "goal_radius", 0.0))


def _framed(env: VecEnv) -> tuple[float, float, float, float]:
    """Return what is shown: the map, or on open ground the surroundings of the start."""
    task: Any = env.task  # pyright: ignore[reportAttributeAccessIssue]
    if task.arena.boxes or task.arena.height_field is not None:
        return task.arena.extent
    (x, y), (x_min, x_max, y_min, y_max) = task.arena.start, task.arena.extent
    half = min(8.0, (x_max - x_min) / 2, (y_max - y_min) / 2)
    return x - half, x + half, y - half, y + half


def positions(env: VecEnv) -> np.ndarray:
    """Return the generalised positions of all robots, shape (num_envs, 7 + joints): x, y, z, quaternion, joints.

    Nothing is known of the robots of Isaac Lab's own tasks, which its viewers draw by themselves: no columns then.
    """
    import numpy as np
    import torch

    if getattr(env, "task", None) is None:
        return np.zeros((env.num_envs, 0))
    state = env.robot_state()  # pyright: ignore[reportAttributeAccessIssue]
    return torch.cat((state.root_pos_w, state.root_quat_w, state.joint_pos), dim=1).double().cpu().numpy()
