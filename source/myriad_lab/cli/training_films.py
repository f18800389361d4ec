"""Films of the population while it trains (``train --video``)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from myriad_lab.cli.play import EXPLORERS, film, shown_heads
from myriad_lab.cli.scenes import make_scene
from myriad_lab.monitor.video import require_video, write_mp4
from myriad_lab.runners.callbacks import Callback
from myriad_lab.runners.rollout import actor_policy

if TYPE_CHECKING:
    import numpy as np

    from myriad_lab.algorithms.algorithm import Step
    from myriad_lab.envs.contract import VecEnv


class _Films(Callback):
    """What the films of a training share: when, how long, and whether they can be written at all."""

    def __init__(self, interval: int, length: int) -> None:
        """Find out whether films can be written.

        Args:
            interval: Iterations between two films.
            length: Control steps of a film.

        Raises:
            ConfigurationError: If there is no ffmpeg.
        """
        require_video()
        self._interval = interval
        self._length = length

    def _due(self, runner: Any) -> int | None:
        """Return the iteration that has just been done, if there shall be a film of it."""
        done = runner.iteration + 1  # the runner counts an iteration once its callbacks are through
        return done if done % self._interval == 0 else None


class TrainingFilms(_Films):
    """Writes a film every ``interval`` iterations, into the run's folder; training is the same with and without it."""

    def __init__(self, make_env: Callable[[int], VecEnv], algorithm: str, interval: int, length: int) -> None:
        """Find out whether films can be written.

        Args:
            make_env: Builds the env of the film for a number of robots.
            algorithm: Name of the algorithm; explorers are shown with their noise.
            interval: Iterations between two films.
            length: Control steps of a film.

        Raises:
            ConfigurationError: If there is no ffmpeg.
        """
        super().__init__(interval, length)
        self._make_env = make_env
        self._noisy = algorithm in EXPLORERS

    def on_iteration(self, runner: Any, metrics: dict[str, float]) -> None:
        """Write a film if it is time for one."""
        if (done := self._due(runner)) is not None:
            # Copying the actor draws initial weights, which are overwritten, from the global generator.
            with torch.random.fork_rng(devices=[]):
                self._write(runner, done)

    def _write(self, runner: Any, done: int) -> None:
        heads = shown_heads(runner.actor.num_policies)
        actor = runner.actor.select(heads).eval()
        env = self._make_env(len(heads))
        try:
            generator = torch.Generator(env.device).manual_seed(done)
            policy = actor_policy(actor.to(env.device), deterministic=not self._noisy, generator=generator)
            path = runner.run_folder.videos / f"training_{done:06d}.mp4"
            film(env, policy, path, heads, runner.actor.num_policies, length=self._length)
        finally:
            env.close()


class ViewerFilms(_Films):
    """Films the training itself, through a viewer of Isaac Lab, where no second env can be made for it.

    The film of iteration ``i`` shows the steps after it; the pictures are halved, since they wait in memory.
    """

    def __init__(self, interval: int, length: int) -> None:
        """See ``_Films``."""
        super().__init__(interval, length)
        self._scene: Any = None
        self._pictures: list[np.ndarray] = []
        self._steps, self._name = 0, ""

    def on_start(self, runner: Any) -> None:
        """Find the viewer, before the first step."""
        self._scene = make_scene(runner.env, range(runner.num_policies), runner.num_policies)

    def on_step(self, runner: Any, step: Step) -> None:
        """Take every other picture of the film that is being made."""
        if not self._name:
            return
        if self._steps % 2 == 0:
            self._pictures.append(self._scene.draw()[::2, ::2].copy())  # a view would keep the whole picture
        self._steps += 1
        if self._steps >= self._length:
            self._write(runner)

    def on_iteration(self, runner: Any, metrics: dict[str, float]) -> None:
        """Begin a film if it is time for one."""
        if (done := self._due(runner)) is not None and not self._name:
            self._name, self._steps = f"training_{done:06d}.mp4", 0

    def on_stop(self, runner: Any) -> None:
        """Write the film that is being made, as far as it has come."""
        if self._pictures:
            self._write(runner)

    def _write(self, runner: Any) -> None:
        write_mp4(runner.run_folder.videos / self._name, self._pictures, 0.5 / runner.env.spec.control_period)
        self._pictures, self._name = [], ""
