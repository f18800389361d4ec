"""Films: writing mp4 files, and drawings of robots seen from above where nothing better can be rendered."""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from myriad_lab.errors import ConfigurationError

GROUND, WALL = (250, 251, 253), (91, 100, 114)
BLOCK = 16
"""Video codecs want edges that are multiples of this [pixel]."""
FADE = 0.35
"""Opacity of the trails."""


def find_ffmpeg() -> str | None:
    """Return the program that encodes films: the system's, else the one of imageio-ffmpeg; ``None`` without either."""
    system = shutil.which("ffmpeg")
    if system is not None or importlib.util.find_spec("imageio_ffmpeg") is None:
        return system
    import imageio_ffmpeg

    return imageio_ffmpeg.get_ffmpeg_exe()


def require_video() -> str:
    """Return the program that encodes films, or find out before the work that there is none.

    Raises:
        ConfigurationError: Saying what to install.
    """
    program = find_ffmpeg()
    if program is None:
        raise ConfigurationError(
            "writing videos needs ffmpeg; install it, or bring it along with: pip install 'myriad-lab[viz]'"
        )
    return program


def write_mp4(path: str | Path, frames: Iterable[np.ndarray], fps: float) -> Path:
    """Write frames, uint8 (height, width, 3), as an H.264 film; a partial film never gets the final name.

    Raises:
        ConfigurationError: If there is no ffmpeg, no frame, or ffmpeg refuses; says why.
    """
    program, path = require_video(), Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".tmp-{path.name}")
    stream = iter(frames)
    first = next(stream, None)
    if first is None:
        raise ConfigurationError(f"{path}: no frame to write")
    size = f"{first.shape[1]}x{first.shape[0]}"
    source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", size, "-r", f"{fps:g}", "-i", "-"]
    target = ["-an", "-c:v", "libx264", "-pix_fmt", "yuv420p", "-crf", "23", "-movflags", "+faststart", "-f", "mp4"]
    command = [program, "-loglevel", "error", "-y", *source, *target, str(partial)]
    try:
        with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as encoder:
            assert encoder.stdin is not None
            assert encoder.stderr is not None
            try:
                with contextlib.suppress(BrokenPipeError):  # its own words come below
                    for frame in itertools.chain((first,), stream):
                        encoder.stdin.write(np.ascontiguousarray(frame).data)
                    encoder.stdin.close()
            except BaseException:
                encoder.kill()
                raise
            told = encoder.stderr.read().decode(errors="replace").strip()
        if encoder.returncode != 0:
            reason = told.splitlines()[0] if told else encoder.returncode
            raise ConfigurationError(f"{path}: ffmpeg failed with {reason}")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


class TopDownDrawing:
    """Robots as discs with trails, on a map with its walls, drawn with numpy alone."""

    def __init__(
        self,
        arena: Mapping[str, Any],
        colors: Sequence[Sequence[float]],
        width: int = 960,
        goal: Sequence[float] | None = None,
        goal_radius: float = 0.0,
    ) -> None:
        """Draw the background.

        Args:
            arena: ``Arena.to_dict()``.
            colors: One colour (r, g, b) in [0, 1] per robot.
            width: Width of a picture [pixel]; the height follows from the extent.
            goal: Goal x, y [m].
            goal_radius: Distance that counts as there [m].
        """
        x_min, x_max, y_min, y_max = arena["extent"]
        self._low = np.array([x_min, y_min])
        self._width = -(-width // BLOCK) * BLOCK
        self._scale = self._width / (x_max - x_min)
        self._height = max(1, round((y_max - y_min) * self._scale / BLOCK)) * BLOCK
        self._colors = np.round(255 * np.asarray(colors, dtype=np.float64)).astype(np.int64)
        self._radius = max(4.0, float(arena.get("robot_radius") or 0.0) * self._scale)
        self._canvas = np.full((self._height, self._width, 3), GROUND, dtype=np.uint8)
        x, y = self._pixel_centers()
        if arena.get("height_field"):
            self._shade(np.asarray(arena["height_field"], dtype=np.float64))
        for box in arena["boxes"]:
            (cx, cy), (half_x, half_y) = box["center"], box["half_size"]
            self._canvas[(np.abs(x - cx) <= half_x) & (np.abs(y - cy) <= half_y)] = WALL
        if goal is not None:
            distance = np.hypot(x - goal[0], y - goal[1])
            ring = np.abs(distance - max(goal_radius, 0.1)) < 2.0 / self._scale
            self._canvas[ring | (distance < 4.0 / self._scale)] = (193, 18, 31)

    def draw(self, positions: np.ndarray) -> np.ndarray:
        """Return a picture, uint8 (height, width, 3); the robots leave a trail for the pictures to come.

        Args:
            positions: x, y of each robot [m], shape (num_robots, 2 or more); rows that are not finite are left out.
        """
        frame = self._canvas.copy()
        for robot, (x, y) in enumerate(positions[:, :2]):
            if np.isfinite(x + y):
                self._disc(frame, x, y, self._radius, self._colors[robot], 1.0)
                self._disc(self._canvas, x, y, 2.0, self._colors[robot], FADE)
        return frame

    def break_trails(self, robots: np.ndarray) -> None:
        """Nothing to do: the trail is made of single dots."""
        return

    def close(self) -> None:
        """Nothing to free."""
        return

    def _disc(self, picture: np.ndarray, x: float, y: float, radius: float, color: np.ndarray, opacity: float) -> None:
        column, row = (np.array([x, y]) - self._low) * self._scale
        row = self._height - row
        reach = int(np.ceil(radius)) + 1
        top, left = max(0, int(row) - reach), max(0, int(column) - reach)
        patch = picture[top : int(row) + reach + 1, left : int(column) + reach + 1]
        rows, columns = np.ogrid[top : top + patch.shape[0], left : left + patch.shape[1]]
        # One pixel of soft edge.
        cover = np.clip(radius + 0.5 - np.hypot(rows + 0.5 - row, columns + 0.5 - column), 0.0, 1.0)[..., None]
        patch[:] = np.round(patch + opacity * cover * (color - patch.astype(np.float64))).astype(np.uint8)

    def _pixel_centers(self) -> tuple[np.ndarray, np.ndarray]:
        columns, rows = np.arange(self._width) + 0.5, np.arange(self._height) + 0.5
        x = self._low[0] + columns / self._scale
        y = self._low[1] + (self._height - rows) / self._scale
        return x[None, :], y[:, None]

    def _shade(self, heights: np.ndarray) -> None:
        """Darken the ground with its height."""
        rows = np.linspace(heights.shape[0] - 1, 0, self._height).round().astype(np.int64)
        columns = np.linspace(0, heights.shape[1] - 1, self._width).round().astype(np.int64)
        share = (heights / max(float(heights.max()), 1e-9))[rows][:, columns, None]
        self._canvas[:] = np.round(self._canvas * (1.0 - 0.35 * share)).astype(np.uint8)
