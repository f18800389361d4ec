"""RSL-RL's own PPO on our envs, from scratch or from a head of a portfolio, with our logs and bundles."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from myriad_lab.algorithms.algorithm import Step
from myriad_lab.envs.contract import VecEnv
from myriad_lab.errors import CheckpointError, ConfigurationError
from myriad_lab.monitor.logger import Logger
from myriad_lab.monitor.nan_guard import check_state
from myriad_lab.networks.population import PopulationActor
from myriad_lab.portfolio.bundle import check_resume, load_bundle, save_bundle
from myriad_lab.portfolio.plain_state import capture_rng_state, restore_rng_state
from myriad_lab.portfolio.run_folder import RunFolder
from myriad_lab.runners.callbacks import Callback
from myriad_lab.runners.episode_tracker import EpisodeTracker
from myriad_lab.runners.mean_log import MeanLog
from myriad_lab.runners.ppo_cfg import PPOCfg
from myriad_lab.runners.rsl_rl_bridge import HeadModel, RslEnvView, RslRecorder, population_from_mlp
from myriad_lab.runners.runner import Runner

logger = logging.getLogger(__name__)


@dataclass
class PPORunnerCfg:
    """Loop around PPO."""

    save_interval: int = 100
    """Iterations between two checkpoints."""
    keep_checkpoints: int = 5
    """Newest checkpoints kept, beside the best one."""
    tracked_episodes: int = 100
    """Episodes that the logged means run over."""

    def validate(self) -> None:
        """Raise ``ConfigurationError`` where a value is out of range."""
        for name in ("save_interval", "keep_checkpoints", "tracked_episodes"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"{name}={getattr(self, name)} must be at least 1")


class PPORunner(Runner):
    """Runs RSL-RL's ``OnPolicyRunner`` one iteration at a time and keeps its mouth shut.

    RSL-RL owns rollout storage, returns, losses, optimiser and adaptive learning rate; this class owns the run folder,
    the logs, the bundles and the resumption. The critic reads the ``critic`` group, the actor the ``policy`` group.

    Args:
        env: The env.
        cfg: PPO.
        runner_cfg: Loop.
        run_folder: Where bundles go; ``None`` for a run that leaves nothing.
        device: Of the networks.
        seed: Seed of torch's global generator, which RSL-RL draws from.
        head: Population of one policy to start from; ``None`` for RSL-RL's standard MLP.
        callbacks: Observers.
        loggers: Where the metrics go.
        manifest: Entries of the bundles' manifest that only the caller knows, e.g. ``config`` and ``parent``.

    Raises:
        ConfigurationError: Where a value is out of range or the head does not fit the env.
    """

    algorithm_name = "ppo"

    def __init__(
        self,
        env: VecEnv,
        cfg: PPOCfg,
        runner_cfg: PPORunnerCfg | None = None,
        run_folder: RunFolder | str | Path | None = None,
        device: torch.device | str = "cpu",
        seed: int = 0,
        *,
        head: PopulationActor | None = None,
        callbacks: Sequence[Callback] = (),
        loggers: Sequence[Logger] = (),
        manifest: Mapping[str, Any] | None = None,
    ) -> None:
        cfg.validate(env.num_envs)
        runner_cfg = runner_cfg or PPORunnerCfg()
        runner_cfg.validate()
        super().__init__(env, cfg, runner_cfg, run_folder, device, seed, callbacks, loggers, manifest)
        self._has_success = False
        self._log = MeanLog()
        self.obs_groups = {"actor": ["policy"], "critic": ["critic" if "critic" in env.spec.observations else "policy"]}
        self.episodes = EpisodeTracker(env.num_envs, 1, env.device, self.runner_cfg.tracked_episodes)
        torch.manual_seed(seed)
        self._recorder = RslRecorder()
        self._build(head)

    @property
    def actor(self) -> PopulationActor:
        """The policy as a population of one: a converted copy from scratch, the network itself from a head."""
        model = self._rsl.alg.get_policy()
        return model.actor if isinstance(model, HeadModel) else population_from_mlp(model, self.cfg.activation)

    @property
    def num_policies(self) -> int:
        """Always 1."""
        return 1

    def save(self, path: str | Path) -> Path:
        """Write a bundle that ``evaluate``, ``export`` and ``load`` read.

        Raises:
            CheckpointError: Where it cannot be written.
            NanGuardError: If a network or its optimiser is not finite; nothing is written then.
        """
        learner = self._rsl.alg.save()
        check_state(learner)
        state = {
            "rsl": learner,
            "learning_rate": self._rsl.alg.learning_rate,
            "from_head": self.from_head,
            "env": self.env.state_dict(),
            "episodes": self.episodes.state_dict(),
            "rng": capture_rng_state(),
            "best": self._best,
            "has_success": self._has_success,
        }
        return save_bundle(path, self.actor, self._manifest(obs_groups=self.obs_groups), state)

    def load(self, path: str | Path) -> None:
        """Go on from a bundle that ``save`` wrote, bit-exactly on the CPU; another learning rate counts from here.

        Raises:
            CheckpointError: If the bundle is damaged, or of another task or size; says what differs.
        """
        bundle = load_bundle(path, self.device)
        asked = {"task": self.env.spec.task, "algorithm": self.algorithm_name, **self.sizes}
        check_resume(bundle.manifest, self.env.spec, **asked)
        state = bundle.load_train_state()
        if state["from_head"] != self.from_head:
            # The bundle says how the run began; a resumed command need not name the portfolio again.
            self._build(bundle.actor if state["from_head"] else None)
        try:
            self._rsl.alg.load(state["rsl"], None, strict=True)
        except (RuntimeError, ValueError) as error:
            raise CheckpointError(f"the checkpoint does not fit the networks of this configuration: {error}") from error
        # where another one is asked for, start from there, and not from where the old one had moved to
        saved = bundle.manifest.config.get("agent", {}).get("learning_rate", self.cfg.learning_rate)
        kept = saved == self.cfg.learning_rate
        rate = self._rsl.alg.learning_rate = state["learning_rate"] if kept else self.cfg.learning_rate
        for group in self._rsl.alg.optimizer.param_groups:
            group["lr"] = rate
        self.env.load_state_dict(state["env"])
        self.episodes.load_state_dict(state["episodes"])
        if not self.env.resumes_episodes:
            self.episodes.restart()
        restore_rng_state(state["rng"])
        self._has_success = state["has_success"]
        self._restore(bundle.manifest, state["best"])

    @property
    def best_metric(self) -> str:
        """Success where the task knows one, the return elsewhere."""
        return "Train/success" if self._has_success else "Train/mean_reward"

    def _begin(self) -> None:
        if self.iteration == 0 and self.cfg.random_episode_start:
            lengths = torch.randint_like(self.env.episode_length_buf, int(self.env.max_episode_length))
            self._view.episode_length_buf = lengths

    def _build(self, head: PopulationActor | None) -> None:
        """Set up the env view and RSL-RL's runner for a start from scratch or from a head."""
        self.from_head = head is not None
        groups = sorted({name for names in self.obs_groups.values() for name in names})
        squash = "clip" if head is None else head.cfg.squash
        self._view = RslEnvView(self.env, groups, squash, self._on_step)
        actor = self.cfg.mlp_actor()
        if head is not None:
            actor = {"class_name": HeadModel, "actor": head, "min_log_std": self.cfg.min_log_std}
        self._rsl = self._make_rsl(self.cfg.to_rsl(self.obs_groups, actor))

    def _make_rsl(self, cfg: dict[str, Any]) -> Any:
        # GitPython, which RSL-RL's logger imports, refuses to load on machines without git unless told so.
        os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
        from rsl_rl.runners import OnPolicyRunner

        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            rsl = OnPolicyRunner(self._view, cfg, log_dir=None, device=str(self.device))
        logger.debug("%s", printed.getvalue())
        rsl.logger = self._recorder  # pyright: ignore[reportAttributeAccessIssue]
        return rsl

    def _iterate(self) -> None:
        started = time.perf_counter()
        self._rsl.learn(1)
        told, steps = self._recorder.last, self.cfg.num_steps_per_env * self.env.num_envs
        elapsed = time.perf_counter() - started
        self.wall_time += elapsed
        self.env_steps += steps
        self.metrics = {
            "env_steps": float(self.env_steps),
            "wall_time": self.wall_time,
            **self.episodes.summary(self._has_success),
            **{f"Loss/{name}": float(value) for name, value in told["loss_dict"].items() if name != "entropy"},
            "Policy/entropy": float(told["loss_dict"]["entropy"]),
            "Policy/mean_std": float(told["action_std"].detach().mean()),
            "Policy/learning_rate": float(told["learning_rate"]),
            "Perf/env_steps_per_second": steps / elapsed,
            "Perf/rollout_s": float(told["collect_time"]),
            "Perf/update_s": float(told["learn_time"]),
            "Perf/updates": float((self.iteration + 1) * self.cfg.num_learning_epochs * self.cfg.num_mini_batches),
            **self._log.read(),
        }
        self._log = MeanLog()
        self._close_iteration()

    def _on_step(self, step: Step, extras: dict[str, Any]) -> None:
        success = extras.get("success")
        self._has_success = self._has_success or success is not None
        dones = step.terminated | step.time_outs
        none = torch.zeros_like(dones)
        self.episodes.step(step.rewards, dones, step.valid, none if success is None else success)
        self._log.add(extras.get("log", {}))
        self.callbacks.on_step(self, step)
