"""Runner of parallel Q-learning: one process, or collector and two learners side by side, over the same learner."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from myriad_lab.algorithms.algorithm import Step
from myriad_lab.algorithms.pql import POLICY_METRICS, PQL, VALUE_METRICS, PQLCfg
from myriad_lab.distributed.mps import tell_of_turns
from myriad_lab.distributed.process_group import check_shards
from myriad_lab.envs.contract import VecEnv
from myriad_lab.errors import ConfigurationError, nearest
from myriad_lab.functional.collective import ALONE, Collective
from myriad_lab.monitor.logger import Logger
from myriad_lab.monitor.nan_guard import check_metrics, check_state
from myriad_lab.networks.population import PopulationActor
from myriad_lab.portfolio.bundle import check_resume, load_bundle, save_bundle
from myriad_lab.portfolio.plain_state import capture_rng_state, plain_state, restore_rng_state
from myriad_lab.portfolio.run_folder import RunFolder
from myriad_lab.runners.callbacks import Callback, NanGuardCallback
from myriad_lab.runners.episode_tracker import EpisodeTracker
from myriad_lab.runners.mean_log import MeanLog
from myriad_lab.runners.parallel_q_cfg import ParallelQRunnerCfg
from myriad_lab.runners.parallel_q_processes import ParallelLearners, guard_slots
from myriad_lab.runners.runner import Runner

__all__ = ["ParallelQRunner", "ParallelQRunnerCfg"]

logger = logging.getLogger(__name__)


class ParallelQRunner(Runner):
    """Trains a population by PQL on an env; in both modes ``algorithm`` holds the collector's networks.

    On several ranks each has a block of the heads with their envs and replay memory; rank 0 alone writes.

    Args:
        env: The env; must provide final observations. On several ranks, this rank's part of it.
        cfg: Settings of PQL.
        runner_cfg: Settings of the loop.
        run_folder: Where checkpoints go; ``None`` saves nothing unless ``save`` is called.
        device: Device of the collector, the replay memory and, by default, the learners.
        seed: Seed of the algorithm.
        num_policies: Heads of a fresh population, of all ranks; ignored where ``actor`` is given.
        actor: The policies to start from, of all ranks, e.g. ``portfolio.bundle.seed_actor``; one process trains them
            in place.
        callbacks: Observers, in order, after the NaN guard.
        loggers: Where the metrics go.
        manifest: Fields of the manifests that only the caller knows, e.g. ``config`` and ``parent``.
        ranks: Those that train the rest of the population.

    Raises:
        ConfigurationError: If the env lacks final observations, numbers do not fit, or a setting is not for ranks.
    """

    algorithm_name = "pql"

    def __init__(
        self,
        env: VecEnv,
        cfg: PQLCfg,
        runner_cfg: ParallelQRunnerCfg | None = None,
        run_folder: RunFolder | None = None,
        device: torch.device | str = "cpu",
        seed: int = 0,
        *,
        num_policies: int = 1,
        actor: PopulationActor | None = None,
        callbacks: Sequence[Callback] = (),
        loggers: Sequence[Logger] = (),
        manifest: Mapping[str, Any] | None = None,
        ranks: Collective = ALONE,
    ) -> None:
        runner_cfg = runner_cfg or ParallelQRunnerCfg()
        runner_cfg.validate()
        if ranks.world_size > 1:
            runner_cfg.check_ranks()
        guard = [NanGuardCallback(every)] if (every := runner_cfg.nan_guard_interval) else []
        observers = [*guard, *callbacks]
        super().__init__(env, cfg, runner_cfg, run_folder, device, seed, observers, loggers, manifest)
        if not getattr(env, "provides_final_obs", False):
            raise ConfigurationError(
                "PQL learns from the true last observation of each episode, and this env does not give it: build it "
                "with final_obs=True, or wrap it so that extras['final_obs'] is filled."
            )
        self.ranks, self.writes = ranks, ranks.is_main
        sizes = {group: env.spec.group_size(group) for group in env.spec.observations}
        seeded = actor is not None
        if actor is None:
            weights = torch.Generator().manual_seed(seed)
            actor = PopulationActor(sizes["policy"], env.num_actions, num_policies, cfg.actor, weights)
        if ranks.world_size > 1:  # all ranks have the weights of all heads now, and keep their own
            check_shards(ranks.world_size * env.num_envs, actor.num_policies, ranks.world_size)
            actor = actor.select(range(actor.num_policies)[ranks.block(actor.num_policies)])
        slots = guard_slots(cfg, runner_cfg)
        self.algorithm = PQL(
            actor, cfg, env.num_envs, sizes, device, seed, seeded=seeded, guard_slots=slots, ranks=ranks
        )
        self.episodes = EpisodeTracker(env.num_envs, actor.num_policies, self.device)
        self._has_success = False
        self._halvings = 0
        """Rounds of successive halving so far, those that dropped nobody included."""
        self._obs = env.get_observations().to(self.device)
        self._learners: ParallelLearners | None = None

    @property
    def actor(self) -> PopulationActor:
        """The policies, as the collector has them."""
        return self.algorithm.actor

    @property
    def best_metric(self) -> str:
        """The configured one."""
        return self.runner_cfg.best_metric

    @property
    def learners(self) -> ParallelLearners | None:
        """The learner processes while ``learn`` runs in parallel mode."""
        return self._learners

    def save(self, path: str | Path) -> Path:
        """Write a bundle with all that is needed to resume; a call of all ranks, of which rank 0 writes.

        Raises:
            NanGuardError: If a network or an optimiser is not finite; nothing is written then.
        """
        self._sync()
        algorithm = self.algorithm.state_dict()
        check_state(algorithm)
        own = {
            "env": plain_state(self.env.state_dict(), "env"),
            "tracker": self.episodes.state_dict(),
            "rng": capture_rng_state(),
        }
        others = self.ranks.collect(own)[1:]
        state = {
            "algorithm": algorithm,
            **own,
            **({"others": others} if others else {}),
            "runner": {"has_success": self._has_success, "best_score": self._best, "halvings": self._halvings},
        }
        replay = self.algorithm.replay.state_dict() if self.runner_cfg.save_replay else None
        manifest = self._manifest(
            obs_groups={"actor": ["policy"], "critic": [self.cfg.critic_group]},
            config={"agent": asdict(self.cfg), "runner": asdict(self.runner_cfg)},
            metrics={key: value for key, value in self.metrics.items() if not key.startswith("Heads/")},
            head_metrics={"mean_reward": self.ranks.gather_rows(self.episodes.head_means()[0]).tolist()},
        )
        actor = self.actor.collect(self.ranks)
        return save_bundle(path, actor, manifest, state, replay) if self.writes else Path(path)

    def load(self, path: str | Path) -> None:
        """Resume from a bundle of ``save``; bit-exact in interleaved mode on the CPU if it holds the replay memory.

        The number of ranks may be another one; then the envs begin new episodes.

        Raises:
            CheckpointError: If the bundle is of another task or shape, or holds no training state.
        """
        bundle = load_bundle(path, self.device)
        heads = bundle.manifest.num_policies
        if self.runner_cfg.halving_iterations and heads < self.num_policies:
            self._keep_heads(list(range(heads)))
        asked = {"task": self.env.spec.task, "algorithm": self.algorithm_name, **self.sizes}
        check_resume(bundle.manifest, self.env.spec, **asked)
        state = bundle.load_train_state()
        self.algorithm.load_state_dict(state["algorithm"])
        own = self.ranks.own_part(state)
        if own is None:
            self._begin_anew(1 + len(state.get("others", [])))
        else:
            self.env.load_state_dict(own["env"])
            self.episodes.load_state_dict(own["tracker"])
            restore_rng_state(own["rng"])
        self._has_success = bool(state["runner"]["has_success"])
        # older bundles have halved whenever it was due
        self._halvings = int(state["runner"].get("halvings", self._halvings_due(bundle.manifest.iteration)))
        if bundle.has_replay and own is not None:
            self.algorithm.replay.load_state_dict(bundle.load_replay())
        else:
            self.algorithm.restart_replay()
        if not self.env.resumes_episodes:
            self._forget_episodes()
        self._obs = self.env.get_observations().to(self.device)
        self._restore(bundle.manifest, float(state["runner"]["best_score"]))

    def _begin(self) -> None:
        self.cfg.check_prior(self.algorithm.seeded)
        self._start_learners()

    def _end(self) -> None:
        self._stop_learners()
        name = self.best_metric
        if self.writes and "Train/mean_reward" in self.metrics and name not in self.metrics:
            hint = nearest(name, self.metrics)
            logger.warning("No checkpoint is the best one: best_metric=%r is not among the metrics. %s", name, hint)

    def _iterate(self) -> None:
        started = time.perf_counter()
        means = MeanLog()
        for _ in range(self.runner_cfg.num_steps_per_iteration):
            means.add(self._step())
        averages = self._over_ranks(means.read())  # waits for the device: the clock is read after it
        elapsed = time.perf_counter() - started
        self.wall_time += elapsed
        self.metrics = self._collect_metrics(averages, elapsed)
        check_metrics(self.metrics, (*VALUE_METRICS, *POLICY_METRICS))
        if self._halvings < self._halvings_due(self.iteration + 1) and self.num_policies > 1:
            self._halve()
        self._close_iteration()

    def _checkpoint(self) -> None:
        if self.run_folder is None:
            self._sync()  # which saving does otherwise: whoever reads the networks after ``learn`` has the newest
        super()._checkpoint()

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
        self.env_steps += self.ranks.world_size * self.env.num_envs
        success = extras.get("success")
        self._has_success |= success is not None
        reached = torch.zeros_like(step.valid) if success is None else success.to(self.device)
        own = step.valid & ~self.algorithm.prior_mask.squeeze(-1)  # the portfolio's episodes say nothing of the heads
        self.episodes.step(step.rewards, dones.to(self.device).bool(), own, reached)
        self.callbacks.on_step(self, step)
        log = dict(extras.get("log", {}))
        if self._learners is None:
            with _at_least_threads(self.runner_cfg.learner_threads):
                return {**log, **self.algorithm.update()}
        self._learners.after_step()
        return log

    def _collect_metrics(self, means: dict[str, float], elapsed: float) -> dict[str, float]:
        counts = (self.algorithm.counts.value_updates, self.algorithm.counts.policy_updates)
        metrics = {**means, **self.episodes.summary(self._has_success, self.ranks)}
        if self._learners is not None:
            metrics |= self._learners.metrics()
            counts = self._learners.updates()
        rate = self.runner_cfg.num_steps_per_iteration * self.sizes["num_envs"] / elapsed
        metrics |= {"env_steps": float(self.env_steps), "wall_time": self.wall_time}
        metrics |= {"Perf/env_steps_per_second": rate, "Perf/iteration_time": elapsed}
        metrics |= {"Perf/value_updates": float(counts[0]), "Perf/policy_updates": float(counts[1])}
        return metrics

    def _over_ranks(self, averages: dict[str, float]) -> dict[str, float]:
        """Return the means over the ranks that have a number, on rank 0; which there are depends on what happened."""
        found: dict[str, list[float]] = {}
        for part in self.ranks.collect(averages):
            for name, value in part.items():
                found.setdefault(name, []).append(value)
        return {name: sum(values) / len(values) for name, values in found.items()}

    def _halvings_due(self, iteration: int) -> int:
        return sum(due <= iteration for due in self.runner_cfg.halving_iterations)

    def _halve(self) -> None:
        """Go on with the better half of the heads, as soon as all of them have a return; equal ones are all kept."""
        returns = self.episodes.head_means()[0]
        if bool(returns.isnan().any()):  # whose episodes last is not worse than who fell
            if self.iteration + 1 in self.runner_cfg.halving_iterations:
                logger.warning("Iteration %d: the heads are halved once each has finished an episode.", self.iteration)
            return
        self._halvings += 1
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
        self.episodes = EpisodeTracker(self.env.num_envs, len(kept), self.device)
        # an episode must not count for two heads
        self._obs = self.env.reset().to(self.device)
        self._forget_episodes()

    def _forget_episodes(self) -> None:
        """Take what comes next as new episodes: nothing under way is added to, and no window leads into them."""
        self.episodes.restart()
        self.algorithm.replay.cut()
        if self.algorithm.return_scale is not None:
            self.algorithm.return_scale.restart()

    def _start_learners(self) -> None:
        if self.runner_cfg.mode == "parallel":
            cfg, own = self.runner_cfg, str(self.algorithm.device)
            devices = cfg.value_device or own, cfg.policy_device or own
            tell_of_turns([own, *devices])
            self._learners = ParallelLearners(self.algorithm, cfg.max_lead, *devices, cfg.learner_threads)

    def _sync(self) -> None:
        if self._learners is not None:
            self._learners.pull()

    def _stop_learners(self) -> None:
        if self._learners is not None:
            self._learners.stop()
            self._learners = None


@contextmanager
def _at_least_threads(count: int) -> Iterator[None]:
    """Let torch have that many threads for a while: envs on the same cores want it to have one."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(count, before))
    try:
        yield
    finally:
        torch.set_num_threads(before)
