"""Runner of parallel Q-learning: one process, or collector and two learners side by side, over the same learner."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from myriad_lab.algorithms.algorithm import Step
from myriad_lab.algorithms.pql import PQL, PQLCfg
from myriad_lab.envs.contract import VecEnv
from myriad_lab.errors import CheckpointError, ConfigurationError, nearest
from myriad_lab.networks.population import PopulationActor
from myriad_lab.portfolio.bundle import check_resume, describe_network, load_bundle, save_bundle
from myriad_lab.portfolio.manifest import Manifest
from myriad_lab.portfolio.plain_state import capture_rng_state, restore_rng_state
from myriad_lab.portfolio.run_folder import RunFolder
from myriad_lab.runners.callbacks import Callback, CallbackList
from myriad_lab.runners.episode_tracker import EpisodeTracker
from myriad_lab.runners.parallel_q_processes import ParallelLearners, guard_slots

logger = logging.getLogger(__name__)

MODES = ("interleaved", "parallel")
Evaluator = Callable[[PopulationActor], dict[str, float]]


@dataclass
class ParallelQRunnerCfg:
    """Settings of the loop around PQL."""

    mode: str = "interleaved"
    """``interleaved`` (one process, repeatable) or ``parallel`` (collector, value and policy learner at once)."""
    num_steps_per_iteration: int = 100
    """Env steps of all envs per iteration: the interval of logs, callbacks and checkpoints."""
    max_lead: int = 8
    """Env steps the collector, and policy updates the value learner, may run ahead in parallel mode."""
    value_device: str | None = None
    """Device of the value learner; the collector's by default."""
    policy_device: str | None = None
    """Device of the policy learner; the collector's by default."""
    learner_threads: int = 1
    """CPU threads of each learner process."""
    save_interval: int = 50
    """Iterations between checkpoints, 0 for one at the end alone."""
    keep_checkpoints: int = 3
    """Checkpoints kept, beside the best one."""
    save_replay: bool = False
    """Whether checkpoints hold the replay memory; without it, a resumed run first collects ``warmup_steps`` again."""
    evaluation_interval: int = 0
    """Iterations between evaluations, 0 for none; needs an evaluator."""
    best_metric: str = "Train/mean_reward"
    """Logged metric, larger is better, that decides which checkpoint is ``best``."""
    halving_iterations: list[int] = field(default_factory=list)
    """Successive halving: after each of these iterations the better half of the heads goes on with all envs."""

    def validate(self) -> None:
        """Raise ``ConfigurationError`` where a value is out of range."""
        if self.mode not in MODES:
            raise ConfigurationError(f"mode={self.mode!r} is unknown. {nearest(self.mode, MODES)}")
        for name in ("num_steps_per_iteration", "max_lead", "learner_threads", "keep_checkpoints"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"{name}={getattr(self, name)} must be at least 1.")


class ParallelQRunner:
    """Trains a population by PQL on an env; in both modes ``algorithm`` holds the collector's networks.

    Args:
        env: The env; must provide final observations.
        actor: The policies, trained in place.
        algorithm_cfg: Settings of PQL.
        cfg: Settings of the loop.
        run_folder: Where checkpoints go; ``None`` saves nothing unless ``save`` is called.
        device: Device of the collector, the replay memory and, by default, the learners.
        seed: Seed of the algorithm.
        seeded: Whether ``actor`` comes from a portfolio.
        callbacks: Observers, in order.
        evaluator: Called with the actor every ``evaluation_interval`` iterations; its entries are logged.
        manifest_info: Further fields of the manifests, e.g. ``config`` and ``parent``.

    Raises:
        ConfigurationError: If the env lacks final observations, or numbers do not fit.
    """

    def __init__(
        self,
        env: VecEnv,
        actor: PopulationActor,
        algorithm_cfg: PQLCfg,
        cfg: ParallelQRunnerCfg,
        run_folder: RunFolder | None = None,
        device: torch.device | str = "cpu",
        seed: int = 0,
        *,
        seeded: bool = False,
        callbacks: Sequence[Callback] = (),
        evaluator: Evaluator | None = None,
        manifest_info: dict[str, Any] | None = None,
    ) -> None:
        cfg.validate()
        if not getattr(env, "provides_final_obs", False):
            raise ConfigurationError(
                "PQL learns from the true last observation of each episode, and this env does not give it: build it "
                "with final_obs=True, or wrap it so that extras['final_obs'] is filled."
            )
        self.env, self.cfg, self.run_folder, self.device = env, cfg, run_folder, torch.device(device)
        sizes = {group: env.spec.group_size(group) for group in env.spec.observations}
        self.algorithm = PQL(
            actor,
            algorithm_cfg,
            env.num_envs,
            sizes,
            device,
            seed,
            seeded=seeded,
            guard_slots=guard_slots(algorithm_cfg, cfg.max_lead),
        )
        self.callbacks = CallbackList(callbacks)
        self.evaluator = evaluator
        self.iteration, self.env_steps, self.wall_time = 0, 0, 0.0
        self._manifest_info = dict(manifest_info or {})
        self._metrics: dict[str, float] = {}
        self._best_score = float("-inf")
        self._tracker = EpisodeTracker(env.num_envs, actor.num_policies, self.device)
        self._has_success = False
        self._obs = env.get_observations()
        self._learners: ParallelLearners | None = None
        self._stop_requested = False

    @property
    def actor(self) -> PopulationActor:
        """The policies, as the collector has them."""
        return self.algorithm.actor

    @property
    def num_policies(self) -> int:
        """Heads still in training."""
        return self.algorithm.num_policies

    @property
    def learners(self) -> ParallelLearners | None:
        """The learner processes while ``learn`` runs in parallel mode."""
        return self._learners

    def learn(self, num_learning_iterations: int) -> None:
        """Train for this many iterations, or until ``request_stop``; saves at the end.

        Raises:
            WorkerDied: If a learner process dies; the last checkpoint stays.
        """
        self._stop_requested = False
        self.callbacks.on_start(self)
        try:
            self._start_learners()
            for _ in range(num_learning_iterations):
                self._iterate()
                if self._stop_requested:
                    break
            self._sync()
            if self.run_folder is not None and not self._is_due(self.cfg.save_interval):
                self.save(self.run_folder.checkpoint_path(self.iteration))
        finally:
            self._stop_learners()
            self.callbacks.on_stop(self)

    def request_stop(self) -> None:
        """Finish the iteration in progress, save and return from ``learn``."""
        self._stop_requested = True

    def save(self, path: str | Path) -> Path:
        """Write a bundle with all that is needed to resume."""
        self._sync()
        state = {
            "algorithm": self.algorithm.state_dict(),
            "env": self.env.state_dict(),
            "tracker": self._tracker.state_dict(),
            "rng": capture_rng_state(),
            "runner": {"has_success": self._has_success, "best_score": self._best_score},
        }
        replay = self.algorithm.replay.state_dict() if self.cfg.save_replay else None
        path = save_bundle(path, self.actor, self._manifest(), state, replay)
        if self.run_folder is not None and path.parent == self.run_folder.checkpoints:
            score = self._metrics.get(self.cfg.best_metric)
            if score is not None and score > self._best_score:
                self._best_score = score
                self.run_folder.mark_best(path.name)
            self.run_folder.prune(self.cfg.keep_checkpoints)
        self.callbacks.on_checkpoint(self, path)
        return path

    def load(self, path: str | Path) -> None:
        """Resume from a bundle of ``save``; bit-exact in interleaved mode on the CPU if it holds the replay memory.

        Raises:
            CheckpointError: If the bundle is of another task or shape, or holds no training state.
        """
        bundle = load_bundle(path, self.device)
        heads = bundle.manifest.num_policies
        if self.cfg.halving_iterations and heads < self.num_policies:
            self._keep_heads(list(range(heads)))
        check_resume(bundle.manifest, self.env.spec, self.num_policies, self.env.spec.task)
        if bundle.manifest.algorithm != "pql":
            raise CheckpointError(f"{path} was trained by {bundle.manifest.algorithm}; seed from it instead.")
        state = bundle.load_train_state()
        self.algorithm.load_state_dict(state["algorithm"])
        self.env.load_state_dict(state["env"])
        self._tracker.load_state_dict(state["tracker"])
        restore_rng_state(state["rng"])
        self._has_success = bool(state["runner"]["has_success"])
        self._best_score = float(state["runner"]["best_score"])
        if bundle.has_replay:
            self.algorithm.replay.load_state_dict(bundle.load_replay())
        else:
            self.algorithm.restart_replay()
        manifest = bundle.manifest
        self.iteration, self.env_steps, self.wall_time = manifest.iteration, manifest.env_steps, manifest.wall_time
        self._obs = self.env.get_observations()

    def get_inference_policy(self) -> Callable[[Any], torch.Tensor]:
        """Return the deterministic policies of all heads, observations of all envs to actions in [-1, 1]."""
        return lambda obs: self.actor.act(obs["policy"], deterministic=True).action

    def _iterate(self) -> None:
        started = time.perf_counter()
        means = MeanLog()
        for _ in range(self.cfg.num_steps_per_iteration):
            means.add(self._step())
        self.iteration += 1
        elapsed = time.perf_counter() - started
        self.wall_time += elapsed
        self._metrics = self._collect_metrics(means.read(), elapsed)
        if self.iteration in self.cfg.halving_iterations and self.num_policies > 1:
            self._halve()
        if self.evaluator is not None and self._is_due(self.cfg.evaluation_interval):
            self._sync()
            self._metrics |= self.evaluator(self.actor)
        self.callbacks.on_iteration(self, self._metrics)
        if self.run_folder is not None and self._is_due(self.cfg.save_interval):
            self.save(self.run_folder.checkpoint_path(self.iteration))

    def _step(self) -> dict[str, torch.Tensor]:
        """Do one env step and, in interleaved mode, the updates it earned; returns scalars to average."""
        if self._learners is not None:
            self._learners.before_step()
        obs = self._obs
        actions = self.algorithm.act(obs)
        next_obs, rewards, dones, extras = self.env.step(actions.to(self.env.device))
        next_obs = next_obs.to(self.device)
        step = Step(
            obs=obs,
            actions=actions,
            rewards=rewards.to(self.device),
            terminated=extras["terminated"].to(self.device),
            time_outs=extras["time_outs"].to(self.device),
            next_obs=next_obs,
            final_obs=extras["final_obs"].to(self.device),
            valid=~extras["diverged"].to(self.device),
        )
        self.algorithm.observe(step)
        self._obs = next_obs
        self.env_steps += self.env.num_envs
        success = extras.get("success")
        self._has_success |= success is not None
        reached = torch.zeros_like(step.valid) if success is None else success.to(self.device)
        self._tracker.step(step.rewards, dones.to(self.device).bool(), step.valid, reached)
        self.callbacks.on_step(self, step)
        log = dict(extras.get("log", {}))
        if self._learners is None:
            return {**log, **self.algorithm.update()}
        self._learners.after_step()
        return log

    def _collect_metrics(self, means: dict[str, float], elapsed: float) -> dict[str, float]:
        counts = (self.algorithm.value_updates, self.algorithm.policy_updates)
        metrics = {**means, **self._tracker.summary(self._has_success)}
        if self._learners is not None:
            metrics |= self._learners.metrics()
            counts = self._learners.updates()
        rate = self.cfg.num_steps_per_iteration * self.env.num_envs / elapsed
        metrics |= {"Perf/env_steps_per_second": rate, "Perf/iteration_seconds": elapsed}
        metrics |= {"Perf/value_updates": float(counts[0]), "Perf/policy_updates": float(counts[1])}
        return metrics

    def _halve(self) -> None:
        """Go on with the better half of the heads; nothing happens while no head is better than another."""
        returns = self._tracker.head_means()[0].nan_to_num(nan=float("-inf"))
        if bool((returns == returns[0]).all()):
            logger.warning("Iteration %d: all heads have the same return, none is dropped.", self.iteration)
            return
        count = next(n for n in range(max(1, self.num_policies // 2), 0, -1) if self.env.num_envs % n == 0)
        kept = sorted(returns.argsort(descending=True, stable=True)[:count].tolist())
        logger.info("Iteration %d: heads %s go on with all envs.", self.iteration, kept)
        self._sync()
        self._stop_learners()
        self._keep_heads(kept)
        self._start_learners()

    def _keep_heads(self, kept: list[int]) -> None:
        self.algorithm.keep_heads(kept)
        self._tracker = EpisodeTracker(self.env.num_envs, len(kept), self.device)
        # an episode must not count for two heads
        self._obs = self.env.reset().to(self.device)
        self.algorithm.replay.cut()

    def _start_learners(self) -> None:
        if self.cfg.mode == "parallel":
            own = str(self.algorithm.device)
            devices = self.cfg.value_device or own, self.cfg.policy_device or own
            self._learners = ParallelLearners(self.algorithm, self.cfg.max_lead, *devices, self.cfg.learner_threads)

    def _sync(self) -> None:
        if self._learners is not None:
            self._learners.pull()

    def _stop_learners(self) -> None:
        if self._learners is not None:
            self._learners.stop()
            self._learners = None

    def _is_due(self, interval: int) -> bool:
        return interval > 0 and self.iteration % interval == 0

    def _manifest(self) -> Manifest:
        task = getattr(self.env, "task", None)
        arena = getattr(task, "arena", None)
        fields: dict[str, Any] = {
            "task": self.env.spec.task,
            "algorithm": "pql",
            "spec": self.env.spec.to_dict(),
            "network": describe_network(self.actor),
            "num_policies": self.num_policies,
            "num_envs": self.env.num_envs,
            "obs_groups": {"actor": ["policy"], "critic": [self.algorithm.cfg.critic_group]},
            "config": {"agent": asdict(self.algorithm.cfg), "runner": asdict(self.cfg)},
            "iteration": self.iteration,
            "env_steps": self.env_steps,
            "wall_time": self.wall_time,
            "metrics": {key: value for key, value in self._metrics.items() if not key.startswith("Heads/")},
            "head_metrics": {"mean_reward": self._tracker.head_means()[0].tolist()},
            "best_metric": {"name": self.cfg.best_metric, "mode": "max"},
            "arena": None if arena is None else arena.to_dict(),
        }
        return Manifest(**{**fields, **self._manifest_info})


class MeanLog:
    """Means of scalars that are not all there at every step; tensors stay on their device until ``read``."""

    def __init__(self) -> None:
        self._sums: dict[str, Any] = {}
        self._counts: dict[str, int] = {}

    def add(self, scalars: dict[str, Any]) -> None:
        """Take some scalars."""
        for key, value in scalars.items():
            self._sums[key] = self._sums.get(key, 0.0) + value
            self._counts[key] = self._counts.get(key, 0) + 1

    def read(self) -> dict[str, float]:
        """Return the means."""
        return {key: float(value) / self._counts[key] for key, value in self._sums.items()}
