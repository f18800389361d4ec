from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from evaluation.films import read_film
from export.test_example import make_bundle
from myriad_lab.cli import play, viewers
from myriad_lab.cli.main import main
from myriad_lab.cli.play import MAX_ROBOTS, PlayCfg, record
from myriad_lab.cli.train import train
from myriad_lab.envs.mujoco.render import find_library
from myriad_lab.errors import ConfigurationError
from myriad_lab.monitor.video import TopDownDrawing
from myriad_lab.portfolio.run_folder import RunFolder

ANTS = "Myriad-AntMaze-Maze"


@pytest.fixture
def topdown(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """Draw from above as if neither EGL nor OSMesa worked; returns the positions drawn."""
    drawn: list[np.ndarray] = []
    original = TopDownDrawing.draw

    def draw(self: TopDownDrawing, positions: np.ndarray) -> np.ndarray:
        drawn.append(positions)
        return original(self, positions)

    monkeypatch.setattr("myriad_lab.envs.mujoco.render.find_library", lambda: None)
    monkeypatch.setattr(TopDownDrawing, "draw", draw)
    return drawn


def test_film_of_ants(tmp_path: Path, topdown: list[np.ndarray]) -> None:
    bundle = make_bundle(tmp_path, ANTS, {"decimation": 2})
    path = record(bundle, PlayCfg(length=12, num_envs=4), out=tmp_path / "film.mp4")
    frames, rate = read_film(path)
    assert rate == 30
    assert len(frames) == len(topdown) == 6, "60 control steps a second become 30 pictures"
    assert frames.shape[1] % 16 == frames.shape[2] % 16 == 0
    assert topdown[0].shape == (4, 15)
    assert np.ptp(frames.astype(int), axis=0).max() > 50, "something moves"


def test_film_of_ants_by_mujoco_s_own_renderer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if find_library() is None:
        pytest.skip("neither EGL nor OSMesa works here")
    monkeypatch.setattr(TopDownDrawing, "draw", lambda *arguments: pytest.fail("drawn from above"))
    bundle = make_bundle(tmp_path, ANTS, {"decimation": 2})
    frames, rate = read_film(record(bundle, PlayCfg(length=12, num_envs=4), out=tmp_path / "film.mp4"))
    assert (len(frames), rate) == (6, 30)
    assert np.ptp(frames.astype(int), axis=0).max() > 50, "something moves"


def test_zero_and_random_actors_differ(tmp_path: Path, topdown: list[np.ndarray]) -> None:
    bundle = make_bundle(tmp_path, ANTS, {"start_noise": 0.0, "joint_noise": 0.0})
    last = {}
    for actor in ("zero", "random", "trained"):
        record(bundle, PlayCfg(actor=actor, length=12), heads=[0], out=tmp_path / f"{actor}.mp4")
        last[actor] = topdown[-1]
    assert not np.allclose(last["zero"], last["random"])
    assert not np.allclose(last["trained"], last["random"])
    assert not np.allclose(last["trained"], last["zero"])
    with pytest.raises(ConfigurationError, match="expected one of trained, zero, random"):
        record(bundle, PlayCfg(actor="dance"), out=tmp_path / "film.mp4")


def test_command_writes_beside_the_bundle(
    tmp_path: Path, topdown: list[np.ndarray], capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = make_bundle(tmp_path, ANTS, {})
    assert main(["play", "--checkpoint", str(bundle.path), "--policy", "1", "--video_length", "4"]) == 0
    film = bundle.path / "videos" / "head_1_trained_b.mp4"
    assert str(film) in capsys.readouterr().out
    assert len(read_film(film)[0]) == 4
    assert topdown[-1].shape[0] == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--out", "."], "expected the name of a film, FILE.mp4"),
        (["--out", "film.gif"], "--out film.gif: expected the name of a film, FILE.mp4"),
        (["--out", "folder.mp4"], "cannot write to folder.mp4: it is a folder"),
        (["--out", "/proc/film.mp4"], "cannot write to /proc"),
        (["--speed", "1e-9"], "--speed 1e-09: expected 0.01 to 100 times real time"),
        (["--speed", "1000"], "--speed 1000: expected 0.01 to 100"),
    ],
)
def test_a_film_that_cannot_be_had_is_refused_before_any_work(
    arguments: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def work(*_: object, **__: object) -> None:
        raise AssertionError("work was done")

    bundle = make_bundle(tmp_path, ANTS, {})
    Path("folder.mp4").mkdir()
    monkeypatch.setattr(play, "env_of", work)
    assert main(["play", "--checkpoint", str(bundle.path), *arguments]) == 2
    assert says in capsys.readouterr().err


def test_too_many_heads_are_thinned_evenly() -> None:
    shown = play.shown_heads(1000)
    assert len(shown) == len(set(shown)) == MAX_ROBOTS
    assert (shown[0], shown[-1]) == (0, 999)
    assert play.shown_heads(2) == [0, 1]
    assert play.shown_heads(100, [7, 3]) == [7, 3]


def test_viewer_needs_a_display(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    bundle = make_bundle(tmp_path, ANTS, {})
    with pytest.raises(ConfigurationError, match="--viz needs a display"):
        viewers.view(bundle)


def test_viewer_shows_the_robot_of_the_head_until_it_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mujoco

    shown: list[np.ndarray] = []

    class Window:
        def __init__(self, model: Any, data: Any) -> None:
            self.data = data

        def __enter__(self) -> Window:
            return self

        def __exit__(self, *error: object) -> None:
            shown.append(np.zeros(0))

        def is_running(self) -> bool:
            return len(shown) < 3

        def sync(self) -> None:
            shown.append(self.data.qpos.copy())

    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr(mujoco, "viewer", SimpleNamespace(launch_passive=Window), raising=False)
    monkeypatch.setitem(sys.modules, "mujoco.viewer", mujoco.viewer)
    bundle = make_bundle(tmp_path, ANTS, {})

    def view(head: int) -> list[np.ndarray]:
        shown.clear()
        viewers.view(bundle, PlayCfg(speed=8.0), heads=[head])
        return list(shown)

    first, second, third, closed = view(1)
    assert first.shape == (15,)
    assert 0.2 < first[2] < 1.0, "the ant stands"
    assert not np.array_equal(first, second)
    assert not np.array_equal(second, third)
    assert closed.size == 0
    assert np.array_equal(view(1)[2], third)
    assert not np.array_equal(view(0)[2], third), "another head moves otherwise"


def test_films_do_not_change_the_training(tmp_path: Path) -> None:
    flags = {"task": "Myriad-PointMaze-Empty", "num_envs": 8, "num_policies": 2, "max_iterations": 2, "logger": "none"}
    small = ["env.episode_steps=12", "agent.k=3"]
    weights, films = [], []
    for name, video in (("with", True), ("without", False)):
        extra = {"runs_root": str(tmp_path / name), "video": video, "video_interval": 2, "video_length": 4}
        result = train({**flags, **extra}, small)
        weights.append(torch.load(result.checkpoint / "weights.pt", weights_only=True))
        films.append(sorted(path.name for path in RunFolder(result.folder).videos.glob("*")))
    assert films == [["training_000002.mp4"], []]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
