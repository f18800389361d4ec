from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from evaluation.films import read_film
from myriad_lab.errors import ConfigurationError
from myriad_lab.monitor.video import WALL, TopDownDrawing, require_video, write_mp4

ARENA = {
    "extent": [-4.0, 4.0, -2.0, 2.0],
    "boxes": [{"center": [2.0, 1.0], "half_size": [1.0, 0.5], "height": 1.0}],
    "height_field": None,
    "start": [0.0, 0.0],
    "robot_radius": 0.2,
}
RED, BLUE = (1.0, 0.0, 0.0), (0.0, 0.0, 1.0)


def pixel(frame: np.ndarray, x: float, y: float) -> tuple[int, ...]:
    """Return the colour at a position [m]; y points up."""
    height, width, _ = frame.shape
    return tuple(int(c) for c in frame[int((2.0 - y) / 4.0 * height), int((x + 4.0) / 8.0 * width)])


def test_drawing_puts_robots_and_walls_where_they_are() -> None:
    frame = TopDownDrawing(ARENA, [RED, BLUE], width=800).draw(np.array([[-3.0, 1.5], [1.0, -1.0]]))
    assert frame.shape == (400, 800, 3)
    assert frame.dtype == np.uint8
    assert pixel(frame, -3.0, 1.5) == (255, 0, 0)
    assert pixel(frame, 1.0, -1.0) == (0, 0, 255)
    assert pixel(frame, 2.9, 1.4) == WALL
    assert pixel(frame, 1.1, 0.6) == WALL
    assert pixel(frame, 2.9, -1.4) != WALL


def test_robots_leave_a_trail_and_lost_ones_are_left_out() -> None:
    drawing = TopDownDrawing(ARENA, [RED], width=800)
    drawing.draw(np.array([[-3.0, 0.0]]))
    frame = drawing.draw(np.array([[np.nan, 0.0]]))
    trail = pixel(frame, -3.0, 0.0)
    assert trail[0] > trail[1] + 50
    assert (frame == (255, 0, 0)).all(axis=-1).sum() == 0
    drawing.draw(np.array([[400.0, -400.0]]))  # far outside the map
    corner = drawing.draw(np.array([[4.0, 2.0]]))
    assert pixel(corner, 3.99, 1.99) == (255, 0, 0)


def test_goal_and_hills_are_drawn() -> None:
    plain = TopDownDrawing(ARENA, [RED]).draw(np.zeros((1, 2)))
    with_goal = TopDownDrawing(ARENA, [RED], goal=[-2.0, -1.0], goal_radius=0.5).draw(np.zeros((1, 2)))
    assert pixel(with_goal, -2.0, -1.0) != pixel(plain, -2.0, -1.0)
    assert pixel(with_goal, -1.5, -1.0) != pixel(plain, -1.5, -1.0)
    hill = np.zeros((5, 9))
    hill[4, 0] = 2.0  # y_max, x_min
    shaded = TopDownDrawing({**ARENA, "height_field": hill.tolist()}, [RED]).draw(np.zeros((1, 2)))
    assert sum(pixel(shaded, -3.9, 1.9)) < sum(pixel(shaded, 3.9, -1.9)) - 100


def test_film_can_be_read_back(tmp_path: Path) -> None:
    frames = [np.full((64, 96, 3), 20 * i, dtype=np.uint8) for i in range(10)]
    path = write_mp4(tmp_path / "videos" / "film.mp4", iter(frames), fps=20)
    film, rate = read_film(path)
    assert film.shape == (10, 64, 96, 3)
    assert rate == 20
    assert np.abs(film.reshape(10, -1).mean(axis=1) - 20 * np.arange(10)).max() < 6


def test_failed_film_leaves_nothing(tmp_path: Path) -> None:
    def broken():
        yield np.zeros((64, 96, 3), dtype=np.uint8)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_mp4(tmp_path / "film.mp4", broken(), fps=10)
    with pytest.raises(ConfigurationError, match="no frame to write"):
        write_mp4(tmp_path / "film.mp4", iter(()), fps=10)
    with pytest.raises(ConfigurationError, match=r"ffmpeg failed with [^\n]*not divisible by 2[^\n]*$"):
        write_mp4(tmp_path / "film.mp4", [np.zeros((63, 95, 3), dtype=np.uint8)], fps=10)
    assert list(tmp_path.iterdir()) == []


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ConfigurationError, match=r"needs ffmpeg.*myriad-lab\[viz\]"):
        require_video()
