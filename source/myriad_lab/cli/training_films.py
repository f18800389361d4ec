"""Films of the population while it trains (``train --video``)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from myriad_lab.cli.play import EXPLORERS, film, shown_heads
from myriad_lab.runners.callbacks import Callback
from myriad_lab.runners.rollout import actor_policy

if TYPE_CHECKING:
    from myriad_lab.envs.contract import VecEnv


class TrainingFilms(Callback):
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
        from myriad_lab.monitor.video import require_video

        require_video()
        self._make_env = make_env
        self._noisy = algorithm in EXPLORERS
        self._interval = interval
        self._length = length

    def on_iteration(self, runner: Any, metrics: dict[str, float]) -> None:
        """Write a film if it is time for one."""
        done = runner.iteration + 1  # the runner counts an iteration once its callbacks are through
        if done % self._interval == 0:
            # Copying the actor draws initial weights, which are overwritten, from the global generator.
            with torch.random.fork_rng():
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
