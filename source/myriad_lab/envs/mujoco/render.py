"""Off-screen pictures of several robots of one model in one scene."""

from __future__ import annotations

import functools
import importlib
import logging
import subprocess
import sys
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from myriad_lab.envs.mujoco.compat import mujoco
from myriad_lab.errors import ConfigurationError

LIBRARIES = ("egl", "osmesa")
"""OpenGL libraries that draw without a display, the faster one first."""
ELEVATION = -68.0
"""Angle of the camera over the ground [deg], downwards."""
MAX_GEOMS = 20_000
TRAIL_GEOMS = 12_000
"""Segments of all trails together; longer trails get coarser."""
TRAIL_WIDTH = 1 / 240
"""Width of a trail over the height of the picture."""


@functools.cache
def find_library() -> str | None:
    """Return the library that works here, ``None`` if there is none.

    It is tried in a process of its own: a bad driver may kill it, and PyOpenGL cannot change its mind.
    """
    for library in LIBRARIES:
        code = f"from mujoco.{library} import GLContext; c = GLContext(8, 8); c.make_current(); c.free()"
        if subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0:
            return library
    return None


class PopulationRenderer:
    """Draws robots of one model, one after the other into one scene, each in its colour, with a trail behind it.

    The robots do not see one another, neither here nor in training.
    """

    def __init__(
        self,
        model: Any,
        extent: Sequence[float],
        colors: Sequence[Sequence[float]],
        width: int = 1280,
        height: int = 720,
    ) -> None:
        """Open the OpenGL context.

        Args:
            model: The ``mujoco.MjModel`` of the scene with one robot.
            extent: What the camera shows: x_min, x_max, y_min, y_max [m].
            colors: One colour (r, g, b) in [0, 1] per robot.
            width: Width of a picture [pixel].
            height: Height of a picture [pixel].

        Raises:
            ConfigurationError: If no library that draws without a display works here.
        """
        library = find_library()
        if library is None:
            raise ConfigurationError(
                "drawing MuJoCo without a display needs EGL or OSMesa; install libegl1 or libosmesa6 (Debian, Ubuntu)"
            )
        logging.getLogger("OpenGL").setLevel(logging.WARNING)
        self._model, self._colors = model, [np.array([*color, 1.0], dtype=np.float32) for color in colors]
        model.vis.global_.offwidth, model.vis.global_.offheight = width, height
        _light(model)
        self._context = importlib.import_module(f"mujoco.{library}").GLContext(width, height)
        self._context.make_current()
        self._gpu = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_150.value)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, self._gpu)
        self._rectangle = mujoco.MjrRect(0, 0, width, height)
        self._scene = mujoco.MjvScene(model, maxgeom=MAX_GEOMS)
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
            self._scene.flags[flag] = 0
        self._option, self._perturb = mujoco.MjvOption(), mujoco.MjvPerturb()
        self._data = mujoco.MjData(model)
        self._camera = _camera(extent, width / height, float(model.vis.global_.fovy))
        self._trails: list[np.ndarray] = []
        model.vis.map.zfar = max(float(model.vis.map.zfar), 6.0 * self._camera.distance / float(model.stat.extent))

    def draw(self, qpos: np.ndarray, *, trails: bool = True) -> np.ndarray:
        """Return a picture, uint8 (height, width, 3).

        Args:
            qpos: Generalised positions of each robot, shape (num_robots, nq); the first entries are x, y, z.
            trails: Whether to draw where the robots have been in the pictures so far.
        """
        self._context.make_current()
        self._trails.append(qpos[:, :3].copy())
        for index, row in enumerate(qpos):
            self._data.qpos[:] = row
            mujoco.mj_kinematics(self._model, self._data)
            mujoco.mj_comPos(self._model, self._data)
            mujoco.mj_camlight(self._model, self._data)
            self._add_robot(index)
        if trails:
            self._add_trails()
        mujoco.mjr_render(self._rectangle, self._scene, self._gpu)
        picture = np.empty((self._rectangle.height, self._rectangle.width, 3), dtype=np.uint8)
        mujoco.mjr_readPixels(picture, None, self._rectangle, self._gpu)
        return picture[::-1]

    def break_trails(self, robots: np.ndarray) -> None:
        """Interrupt the trails of robots that start anew, bool (num_robots,)."""
        if self._trails and robots.any():
            self._trails[-1] = np.where(robots[:, None], np.nan, self._trails[-1])

    def close(self) -> None:
        """Free the OpenGL context."""
        self._context.make_current()
        self._gpu.free()
        self._context.free()

    def _add_robot(self, index: int) -> None:
        """Add the moving bodies; with the first robot, the scene itself."""
        arguments = (self._model, self._data, self._option, self._perturb)
        before = 0
        if index == 0:
            mujoco.mjv_updateScene(*arguments, self._camera, mujoco.mjtCatBit.mjCAT_ALL.value, self._scene)
        else:
            before = self._scene.ngeom
            mujoco.mjv_addGeoms(*arguments, mujoco.mjtCatBit.mjCAT_DYNAMIC.value, self._scene)
        for place in range(before, self._scene.ngeom):
            geom = self._scene.geoms[place]
            if geom.category == mujoco.mjtCatBit.mjCAT_DYNAMIC.value:
                geom.rgba[:] = self._colors[index]

    def _add_trails(self) -> None:
        path = np.stack(self._trails)
        stride = max(1, path.shape[0] * path.shape[1] // TRAIL_GEOMS + 1)
        for robot, color in enumerate(self._colors):
            faint = np.array([*color[:3], 0.55], dtype=np.float32)
            points = path[::stride, robot]
            for begin, end in pairwise(points):
                # NaN, which compares as false, separates episodes.
                if self._scene.ngeom < MAX_GEOMS and 0.0 < float(np.linalg.norm(end - begin)) < np.inf:
                    self._add_line(begin, end, faint)

    def _add_line(self, begin: np.ndarray, end: np.ndarray, color: np.ndarray) -> None:
        geom, width = self._scene.geoms[self._scene.ngeom], max(1.0, TRAIL_WIDTH * self._rectangle.height)
        # A capsule has a thousand triangles: thousands of them take a software renderer ten times as long as the rest.
        kind = mujoco.mjtGeom.mjGEOM_LINE
        mujoco.mjv_initGeom(geom, kind, np.zeros(3), np.zeros(3), np.zeros(9), color)
        mujoco.mjv_connector(geom, kind, width, begin.astype(np.float64), end.astype(np.float64))
        self._scene.ngeom += 1


def _light(model: Any) -> None:
    """Light the scene evenly from the camera; shadows on a software renderer cost more than all the rest."""
    light = model.vis.headlight
    light.ambient[:], light.diffuse[:], light.specular[:] = 0.45, 0.55, 0.1


def _camera(extent: Sequence[float], ratio: float, fovy: float) -> Any:
    """Return a camera that looks down obliquely from as near as lets it see the whole extent."""
    x_min, x_max, y_min, y_max = extent
    camera = mujoco.MjvCamera()
    camera.lookat[:] = middle = np.array([(x_min + x_max) / 2, (y_min + y_max) / 2, 0.0])
    camera.azimuth, camera.elevation = 90.0, ELEVATION
    tilt = np.radians(ELEVATION)
    forward, up = np.array([0.0, np.cos(tilt), np.sin(tilt)]), np.array([0.0, -np.sin(tilt), np.cos(tilt)])
    corners = np.array([[x, y, 0.0] for x in (x_min, x_max) for y in (y_min, y_max)]) - middle
    slope = np.tan(np.radians(fovy) / 2)
    # A corner is in view if |its offset across| <= slope (distance + its offset along), for both picture axes.
    needed = np.maximum(np.abs(corners[:, 0]) / (slope * ratio), np.abs(corners @ up) / slope) - corners @ forward
    camera.distance = 1.07 * float(needed.max())
    return camera
