from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from myriad_lab.envs.mujoco import render
from myriad_lab.envs.mujoco.compat import mujoco
from myriad_lab.envs.mujoco.model import build_model
from myriad_lab.envs.mujoco.render import PopulationRenderer, find_library
from myriad_lab.errors import ConfigurationError
from myriad_lab.tasks import registry

EXTENT = (-4.0, 4.0, -2.0, 2.0)
RED, GREEN = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0)


@pytest.fixture
def model() -> Any:
    entry = registry.get("Myriad-Ant")
    task = entry.make_task(entry.cfg)
    return build_model(task.robot, task.arena)


@pytest.fixture
def renderer(model: Any) -> Iterator[PopulationRenderer]:
    if find_library() is None:
        pytest.skip("neither EGL nor OSMesa works here")
    scene = PopulationRenderer(model, EXTENT, [RED, GREEN], width=320, height=192)
    yield scene
    scene.close()


def poses(model: Any, *positions: tuple[float, float]) -> np.ndarray:
    rows = np.tile(model.qpos0, (len(positions), 1))
    rows[:, :2] = positions
    rows[:, 2] = 0.5
    return rows


def where(picture: np.ndarray, channel: int) -> np.ndarray:
    """Return rows and columns of the pixels of a saturated colour."""
    values = picture.astype(np.int64)
    others = np.delete(values, channel, axis=2).max(axis=2)
    return np.argwhere(values[..., channel] > others + 60)


def test_each_robot_is_drawn_in_its_colour_at_its_place(renderer: PopulationRenderer, model: Any) -> None:
    picture = renderer.draw(poses(model, (-2.5, 0.0), (2.5, 0.0)))
    assert picture.shape == (192, 320, 3)
    red, green = where(picture, 0), where(picture, 1)
    assert len(red) > 50
    assert len(green) > 50
    assert red[:, 1].max() < 160 < green[:, 1].min()
    further = renderer.draw(poses(model, (0.0, 1.8), (0.0, -1.8)), trails=False)
    assert where(further, 0)[:, 0].mean() < where(further, 1)[:, 0].mean(), "y points away from the camera"


def test_the_whole_extent_is_in_view(renderer: PopulationRenderer, model: Any) -> None:
    for x, y in [(-3.2, -1.2), (3.2, 1.2), (-3.2, 1.2)]:
        pixels = where(renderer.draw(poses(model, (x, y), (0.0, 0.0)), trails=False), 0)
        assert len(pixels) > 50
        assert (pixels.min(axis=0) > 0).all()
        assert (pixels.max(axis=0) < (191, 319)).all()


def test_trails_follow_and_break(renderer: PopulationRenderer, model: Any) -> None:
    for x in (-3.0, -2.0, -1.0):
        renderer.draw(poses(model, (x, 0.0), (0.0, -1.5)))
    together = len(where(renderer.draw(poses(model, (0.0, 1.5), (0.0, -1.5))), 0))
    renderer.break_trails(np.array([True, False]))
    moved = len(where(renderer.draw(poses(model, (3.0, 1.5), (0.0, -1.5))), 0))
    bare = len(where(renderer.draw(poses(model, (3.0, 1.5), (0.0, -1.5)), trails=False), 0))
    assert together > bare + 20
    # The jump to the new start is not drawn, and what came before stays but for the last piece.
    assert bare < moved <= together + 5


def test_trails_cost_little(renderer: PopulationRenderer, model: Any) -> None:
    renderer.draw(poses(model, (-3.0, 0.0), (0.0, -1.5)), trails=False)
    bare = renderer._scene.ngeom
    renderer.draw(poses(model, (-2.0, 0.0), (1.0, -1.5)))
    kinds = [renderer._scene.geoms[place].type for place in range(bare, renderer._scene.ngeom)]
    assert kinds == [mujoco.mjtGeom.mjGEOM_LINE.value] * 2  # anything solid has hundreds of triangles


def test_without_a_library_the_error_says_what_to_install(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(render, "find_library", lambda: None)
    with pytest.raises(ConfigurationError, match="install libegl1 or libosmesa6"):
        PopulationRenderer(model, EXTENT, [RED])
