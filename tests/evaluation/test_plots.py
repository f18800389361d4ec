from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from myriad_lab.evaluation.plots import (
    band_over_runs,
    head_colors,
    head_maps,
    learning_curves,
    read_curve,
    to_png,
    visitation_map,
)

ARENA = {
    "name": "room",
    "extent": [-4.0, 4.0, -3.0, 3.0],
    "boxes": [{"center": [0.0, 1.0], "half_size": [0.2, 1.5], "height": 1.0}],
    "height_field": None,
    "start": [-3.0, -2.0],
    "robot_radius": 0.2,
}


def to_array(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"), dtype=np.int64)


def count_near(picture: np.ndarray, color: tuple[float, float, float], tolerance: int = 12) -> int:
    return int((np.abs(picture - np.round(255 * np.array(color))).max(axis=-1) < tolerance).sum())


def blob(x: float, y: float, rows: int = 20_000) -> np.ndarray:
    return np.random.default_rng(0).uniform(-0.7, 0.7, (rows, 2)) + np.array([x, y])


def test_colors_are_distinct() -> None:
    for num_heads in (1, 10, 40):
        colors = np.array(head_colors(num_heads))
        assert colors.shape == (num_heads, 3)
        assert len(np.unique(np.round(colors, 3), axis=0)) == num_heads


def test_map_shows_each_head_in_its_colour_and_the_walls() -> None:
    visits = [blob(-2.0, -1.0), blob(2.5, -1.0)]
    picture = to_array(to_png(visitation_map(visits, ARENA)))
    without = to_array(to_png(visitation_map([visits[0], np.zeros((0, 2))], ARENA)))
    colors = head_colors(2)
    assert count_near(picture, colors[0]) > 3000
    assert count_near(picture, colors[1]) > 3000
    assert count_near(without, colors[1]) < 0.5 * count_near(picture, colors[1])  # the legend stays
    wall = tuple(int("5b6472"[i : i + 2], 16) / 255 for i in (0, 2, 4))
    assert count_near(picture, wall) > 1000
    assert count_near(to_array(to_png(visitation_map(visits, {**ARENA, "boxes": []}))), wall) < 500


def test_map_puts_x_to_the_right_and_y_up() -> None:
    picture = to_array(to_png(visitation_map([blob(3.0, 2.0)], {**ARENA, "boxes": []})))
    rows, columns = np.nonzero(np.abs(picture - np.round(255 * np.array(head_colors(1)[0]))).max(axis=-1) < 12)
    inside = columns < 0.85 * picture.shape[1]  # without the legend
    assert rows[inside].mean() < 0.4 * picture.shape[0]
    assert columns[inside].mean() > 0.5 * picture.shape[1]


def test_small_maps_and_maps_without_an_arena() -> None:
    visits = [blob(x, 0.0, 500) for x in (-2.0, 0.0, 2.0, 3.0, -3.0)]
    figure = head_maps(visits, ARENA, heads=[0, 4], titles=["a", "b"], goal=[1.0, 1.0], goal_radius=0.5)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["a", "b"]
    assert len(head_maps(visits, None).axes) == 5
    assert to_png(visitation_map([np.zeros((3, 2))], None)).startswith(b"\x89PNG")
    hills = {**ARENA, "height_field": (np.add.outer(np.arange(5.0), np.arange(6.0))).tolist()}
    assert to_png(visitation_map(visits, hills, goal=[1.0, 1.0])).startswith(b"\x89PNG")


def test_curves_skip_what_is_no_number() -> None:
    run = [{"env_steps": i, "a": float(i), "b": None if i % 2 else 1.0, "c": "text"} for i in range(10)]
    x, y = read_curve(run, "b", "env_steps")
    np.testing.assert_array_equal(x, [0, 2, 4, 6, 8])
    np.testing.assert_array_equal(y, np.ones(5))
    figure = learning_curves([run], {"a": "A", "b": "B", "c": "C", "missing": "M"})
    assert figure is not None
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["A", "B"]
    assert learning_curves([run], {"missing": "M"}) is None
    assert learning_curves([[]], {"a": "A"}) is None


def test_band_over_seeds() -> None:
    steps = np.arange(11.0)
    curves = [(steps, steps + offset) for offset in (-1.0, 0.0, 1.0)]
    grid, mean, low, high = band_over_runs([(x[2:], y[2:]) if i else (x, y) for i, (x, y) in enumerate(curves)])
    assert grid[0] == 2.0
    np.testing.assert_allclose(mean, grid, atol=1e-9)
    assert ((low < mean) & (mean < high)).all()
    assert (low >= mean - 1.0).all()
    figure = learning_curves([[{"env_steps": i, "a": i * s} for i in range(5)] for s in (1, 2, 3)], {"a": "A"})
    assert figure is not None
    assert len(figure.axes[0].collections) == 1, "several seeds get a band"


@pytest.mark.parametrize("num_heads", [1, 17])
def test_many_heads_have_no_legend(num_heads: int) -> None:
    figure = visitation_map([blob(0.0, -2.0, 50)] * num_heads, ARENA)
    assert (figure.axes[0].get_legend() is not None) == (num_heads <= 16)
