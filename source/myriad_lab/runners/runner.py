"""What every runner has: counters, observers, checkpoints, and its policy as a function and as a file."""

from __future__ import annotations

import copy
import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict

from myriad_lab.envs.contract import VecEnv
from myriad_lab.functional.collective import ALONE
from myriad_lab.monitor.logger import Logger
from myriad_lab.networks.population import PopulationActor
from myriad_lab.portfolio.manifest import Manifest
from myriad_lab.portfolio.run_folder import RunFolder
from myriad_lab.runners.callbacks import Callback, CallbackList

logger = logging.getLogger(__name__)


class Runner(ABC):
    """Base of the runners, with RSL-RL's names; an algorithm adds its iteration, ``save`` and ``load``."""

    algorithm_name: str

    def __init__(
        self,
        env: VecEnv,
        cfg: Any,
        runner_cfg: Any,
        run_folder: RunFolder | str | Path | None,
        device: torch.device | str,
        seed: int,
        callbacks: Sequence[Callback],
        loggers: Sequence[Logger],
        manifest: Mapping[str, Any] | None,
    ) -> None:
        """Keep what a run is made of.

        Args:
            env: Env of ``VecEnv``'s contract.
            cfg: Settings of the algorithm, a dataclass.
            runner_cfg: Settings of the loop; has ``keep_checkpoints``.
            run_folder: Where bundles go; ``None`` writes nothing.
            device: Where networks and storage live.
            seed: Seed of the run.
            callbacks: Observers, in order.
            loggers: Take the metrics of each iteration.
            manifest: Entries of the bundles' manifest that only the caller knows, e.g. ``config`` and ``parent``.
        """
        self.env, self.cfg, self.runner_cfg = env, cfg, runner_cfg
        self.run_folder = RunFolder(run_folder) if isinstance(run_folder, str | Path) else run_folder
        self.device, self.seed = torch.device(device), seed
        self.callbacks, self.loggers = CallbackList(callbacks), list(loggers)
        self.manifest_entries = dict(manifest or {})
        self.iteration, self.env_steps, self.wall_time = 0, 0, 0.0
        self.metrics: dict[str, float] = {}
        self.ranks, self.writes = ALONE, True
        """Those that train one population, and whether this one writes; the others take part in the saving alone."""
        self._best = -float("inf")
        self._stop = False

    @property
    @abstractmethod
    def actor(self) -> PopulationActor:
        """The policies."""

    @property
    @abstractmethod
    def best_metric(self) -> str:
        """Logged metric, larger is better, that decides which checkpoint is ``best``."""

    @property
    def num_policies(self) -> int:
        """Policies in training."""
        return self.actor.num_policies

    @property
    def sizes(self) -> dict[str, int]:
        """Envs and policies of all ranks."""
        ranks = self.ranks.world_size
        return {"num_envs": ranks * self.env.num_envs, "num_policies": ranks * self.num_policies}

    def learn(self, num_learning_iterations: int) -> None:
        """Run that many iterations, fewer after ``request_stop``; the last one is saved where there is a run folder.

        Raises:
            NanGuardError: If something is not finite; the last checkpoint stays.
            WorkerDied: If a learner process of PQL dies; the last checkpoint stays.
        """
        self._stop = saved = False
        last = self.iteration + num_learning_iterations
        if self.run_folder is not None and (reached := self.run_folder.checkpoint_path(self.iteration)).is_dir():
            self._mark_if_best(reached)  # a kill may have come between its saving and its mark
        try:
            self.callbacks.on_start(self)
            self._begin()
            while self.iteration < last and not self._asked_to_stop():
                self._iterate()
                if saved := self._save_is_due():
                    self._checkpoint()
            if not saved:  # whoever asked for the end, and when
                self._checkpoint()
        finally:
            try:
                self._end()
            finally:
                self.callbacks.on_stop(self)

    @abstractmethod
    def save(self, path: str | Path) -> Path:
        """Write a bundle with everything needed to resume; returns its folder."""

    @abstractmethod
    def _iterate(self) -> None:
        """Collect, learn, set ``metrics`` and close the iteration."""

    def _begin(self) -> None:  # noqa: B027 - most runners have nothing to do there
        """Do what comes before the first iteration of ``learn``."""

    def _end(self) -> None:  # noqa: B027
        """Do what comes at the end of ``learn``, also after an error."""

    def _save_is_due(self) -> bool:
        interval = self.runner_cfg.save_interval
        return interval > 0 and self.iteration % interval == 0

    def request_stop(self) -> None:
        """Finish the iteration in progress, save and return from ``learn``; safe to call from a signal handler."""
        self._stop = True

    def get_inference_policy(self, device: torch.device | str | None = None) -> Callable[[TensorDict], torch.Tensor]:
        """Return the deterministic policies of all envs: observations to actions in [-1, 1], (num_envs, num_actions).

        Another ``device`` gets a copy; the training stays where it is.
        """
        moved = device is not None and torch.device(device) != self.device
        actor = copy.deepcopy(self.actor).to(device) if moved else self.actor

        def policy(obs: TensorDict) -> torch.Tensor:
            with torch.no_grad():
                return actor.act(obs["policy"], deterministic=True).action

        return policy

    def export_policy_to_jit(self, path: str | Path, filename: str = "policy.pt", head: int | None = None) -> Path:
        """Write TorchScript of one policy, or of several with the head as an input; returns the file."""
        from myriad_lab.export.torchscript import export_torchscript

        return export_torchscript(*self._exported(head, Path(path) / filename))

    def export_policy_to_onnx(self, path: str | Path, filename: str = "policy.onnx", head: int | None = None) -> Path:
        """Write ONNX of one policy, or of several with the head as an input; returns the file."""
        from myriad_lab.export.onnx import export_onnx

        return export_onnx(*self._exported(head, Path(path) / filename))

    def _exported(self, head: int | None, path: Path) -> tuple[torch.nn.Module, Path, int, bool]:
        """Return policy, file, width of the observation and whether the head is an input."""
        actor = self.actor
        if head is None and actor.num_policies > 1:
            return actor.indexed(), path, actor.num_obs, True
        return actor.single(head or 0), path, actor.num_obs, False

    def _begin_anew(self, ranks_before: int) -> None:
        """Start new episodes, since the envs of the bundle were dealt out to another number of ranks."""
        if self.writes:
            told = ranks_before, self.ranks.world_size
            logger.warning("The envs were dealt out to %d ranks, and are to %d now: they begin new episodes.", *told)
        self.env.reset()

    def _asked_to_stop(self) -> bool:
        """Return whether some rank is asked to stop: all of them must leave the loop at the same iteration."""
        return bool(self.ranks.any(torch.tensor(self._stop, device=self.device)))

    def _close_iteration(self) -> None:
        """Tell the observers the metrics of an iteration, and count it."""
        self.callbacks.on_iteration(self, self.metrics)
        for sink in self.loggers:
            sink.log(self.metrics, self.iteration)
        self.iteration += 1

    def _restore(self, manifest: Manifest, best: float) -> None:
        """Take up counters, metrics and the best score so far where a bundle left them."""
        self.iteration, self.env_steps, self.wall_time = manifest.iteration, manifest.env_steps, manifest.wall_time
        self.metrics = {name: value for name, value in manifest.metrics.items() if value is not None}
        self._best = best
        for sink in self.loggers:
            sink.rewind(self.iteration)

    def _checkpoint(self) -> None:
        """Save, mark the best and drop the oldest, where there is a run folder."""
        if self.run_folder is None:
            return
        if self._score() >= self._best:
            self._best = self._score()  # before saving: a resumed run knows it
        path = self.save(self.run_folder.checkpoint_path(self.iteration))
        if not self.writes:
            return
        self._mark_if_best(path)
        self.run_folder.prune(self.runner_cfg.keep_checkpoints)
        self.callbacks.on_checkpoint(self, path)

    def _score(self) -> float:
        """Return the metric that decides which checkpoint is best; NaN, which is never best, where it is not there."""
        return self.metrics.get(self.best_metric, math.nan)

    def _mark_if_best(self, path: Path) -> None:
        if self.run_folder is not None and self.writes and self._score() >= self._best:
            self.run_folder.mark_best(path)

    def _manifest(self, **entries: Any) -> Manifest:
        """Return the manifest of a bundle: what all runners know, ``entries``, and what the caller knows better."""
        arena = getattr(getattr(self.env, "task", None), "arena", None)
        common = {
            "task": self.env.spec.task,
            "algorithm": self.algorithm_name,
            "spec": self.env.spec.to_dict(),
            "network": {},
            **self.sizes,
            "config": {"agent": asdict(self.cfg)},
            "iteration": self.iteration,
            "env_steps": self.env_steps,
            "wall_time": self.wall_time,
            "metrics": dict(self.metrics),
            "best_metric": {"name": self.best_metric, "mode": "max"},
            "arena": None if arena is None else arena.to_dict(),
        }
        return Manifest(**(common | entries | self.manifest_entries))
