"""What is seen of an Isaac Lab env: a coloured ball above every robot for its head, and pictures for a film."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from myriad_lab.envs.isaaclab.adapter import IsaacLabEnv
from myriad_lab.errors import ConfigurationError

Color = Sequence[float]
"""Red, green, blue in 0 .. 1."""
BALL_RADIUS = 0.01
"""Radius of the ball that tells the head, over the width of the scene; at least 0.12 m."""
MARGIN = 4.0
"""What is shown around the outermost robots [m], on open ground."""


class HeadMarkers:
    """A ball above the robot of each env, in the colour of its head; every viewer that draws markers shows them.

    The camera is put where all robots are seen.
    """

    def __init__(self, env: IsaacLabEnv, colors: Sequence[Color]) -> None:
        """Make one ball for each colour.

        Args:
            env: The env; a scene without an articulation called ``robot`` has no balls.
            colors: Colour of each env.
        """
        import isaaclab.sim as sim_utils
        from isaaclab.markers import VisualizationMarkers, VisualizationMarkersCfg

        self._robot: Any = env.inner.scene.articulations.get("robot")
        different = sorted({tuple(float(part) for part in color) for color in colors})
        self._kinds = torch.tensor([different.index(tuple(float(part) for part in color)) for color in colors])
        center, width = _scene(env)
        env.inner.sim.set_camera_view((center[0], center[1] - 0.6 * width, 0.65 * width), (*center, 0.0))
        radius = max(0.12, BALL_RADIUS * width)
        self._above = torch.tensor((0.0, 0.0, 0.4 + 2 * radius), device=env.device)
        balls = {
            f"head_{i}": sim_utils.SphereCfg(
                radius=radius, visual_material=sim_utils.PreviewSurfaceCfg(diffuse_color=color)
            )
            for i, color in enumerate(different)
        }
        self._markers = VisualizationMarkers(VisualizationMarkersCfg(prim_path="/Visuals/heads", markers=balls))
        self.update()

    def update(self) -> None:
        """Move the balls to where the robots are."""
        if self._robot is not None:
            where = self._robot.data.root_pos_w.torch + self._above
            self._markers.visualize(translations=where, marker_indices=self._kinds)


class ViewerScene:
    """Pictures of a viewer, for ``write_mp4``."""

    def __init__(self, env: IsaacLabEnv, colors: Sequence[Color]) -> None:
        """Find a viewer that gives pictures.

        Raises:
            ConfigurationError: None of the viewers does.
        """
        self._viewer = camera_of(env)
        self._env = env
        self._markers = HeadMarkers(env, colors)

    def draw(self, positions: np.ndarray | None = None) -> np.ndarray:
        """Return the picture now, uint8 ``(height, width, 3)``; the env is looked at itself, not ``positions``."""
        self._markers.update()
        picture = self._viewer.render_rgb_array()
        if picture is None:
            raise ConfigurationError(
                f"the viewer {type(self._viewer).__name__} gives no pictures; take --viz newton_gl"
            )
        return picture[..., :3].copy()

    def break_trails(self, ended: np.ndarray) -> None:
        """Do nothing: there are no trails."""

    def close(self) -> None:
        """Do nothing: the viewer is closed with the env."""


def _scene(env: IsaacLabEnv) -> tuple[tuple[float, float], float]:
    """Return the middle x, y and the width [m] of what the robots of all envs may be in."""
    origins = env.inner.scene.env_origins[:, :2].cpu()
    low, high = origins.amin(0), origins.amax(0)
    arena = getattr(env.task, "arena", None)
    if arena is not None and arena.boxes:
        x_min, x_max, y_min, y_max = arena.extent
        low, high = low + torch.tensor((x_min, y_min)), high + torch.tensor((x_max, y_max))
    else:
        low, high = low - MARGIN, high + MARGIN
    x, y = ((low + high) / 2).tolist()
    return (x, y), float((high - low).max())


def camera_of(env: IsaacLabEnv) -> Any:
    """Return the first viewer of the env that gives pictures.

    Raises:
        ConfigurationError: None does.
    """
    viewers = list(env.inner.sim.visualizers)
    for viewer in viewers:
        if hasattr(viewer, "render_rgb_array"):
            return viewer
    names = ", ".join(type(viewer).__name__ for viewer in viewers) or "none"
    raise ConfigurationError(
        f"no viewer that gives pictures is there ({names}); film {env.spec.task} with --viz newton_gl"
    )
