"""The loop that pre-trains a population: roll out, update, log, save."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from myriad_lab.algorithms.algorithm import Step
from myriad_lab.algorithms.kmyriad import KMyriad, KMyriadCfg
from myriad_lab.distributed.process_group import check_shards
from myriad_lab.envs.contract import VecEnv
from myriad_lab.errors import ConfigurationError
from myriad_lab.functional.collective import ALONE, Collective
from myriad_lab.monitor.logger import Logger
from myriad_lab.networks.population import PopulationActor, check_population
from myriad_lab.portfolio.bundle import check_resume, load_bundle, save_bundle
from myriad_lab.portfolio.plain_state import capture_rng_state, plain_state, restore_rng_state
from myriad_lab.portfolio.run_folder import RunFolder
from myriad_lab.runners.callbacks import Callback, NanGuardCallback
from myriad_lab.runners.mean_log import to_floats
from myriad_lab.runners.runner import Runner
from myriad_lab.runners.visits import CoverageMap, save_visits

logger = logging.getLogger(__name__)

BEST_METRIC = "Population/coverage"


@dataclass
class PopulationRunnerCfg:
    """Settings of the loop."""

    save_interval: int = 50
    """Iterations between two checkpoints; one more is written at the end."""
    keep_checkpoints: int = 5
    """Newest checkpoints kept, beside the best one."""
    nan_guard_interval: int = 1
    """Env steps between two checks for values that are not finite; 0 switches them off."""

    def validate(self) -> None:
        """Raise ``ConfigurationError`` where a value is out of range."""
        for name, least in (("save_interval", 1), ("keep_checkpoints", 1), ("nan_guard_interval", 0)):
            if getattr(self, name) < least:
                raise ConfigurationError(f"{name}={getattr(self, name)} must be at least {least}")


class PopulationRunner(Runner):
    """Trains a population in one env: all envs are reset together, then run for one whole episode per iteration.

    On several ranks, each has a block of the policies and steps their envs; bundles, recordings and metrics are those
    of the whole population, and rank 0 alone writes.
    """

    algorithm_name = "kmyriad"

    def __init__(
        self,
        env: VecEnv,
        cfg: KMyriadCfg,
        runner_cfg: PopulationRunnerCfg,
        run_folder: RunFolder | str | Path | None,
        device: torch.device | str = "cpu",
        seed: int = 0,
        *,
        num_policies: int,
        actor: PopulationActor | None = None,
        callbacks: Sequence[Callback] = (),
        loggers: Sequence[Logger] = (),
        manifest: Mapping[str, Any] | None = None,
        ranks: Collective = ALONE,
    ) -> None:
        """Build networks and algorithm.

        Args:
            env: Env of ``VecEnv``'s contract, built with final observations; on several ranks, this rank's part of it.
            cfg: Settings of K-Myriad.
            runner_cfg: Settings of the loop.
            run_folder: Where bundles and recordings go; ``None`` writes nothing.
            device: Where networks and storage live.
            seed: Seed of the global generators, the initial weights and the action noise.
            num_policies: Number of policies, of all ranks; divides the number of envs, a multiple of that of ranks.
            actor: Population to start from, of all ranks, e.g. from a portfolio; a fresh one by default.
            callbacks: Called in this order, after the NaN guard.
            loggers: Take the metrics of each iteration.
            manifest: Entries of the bundles' manifest that only the caller knows, e.g. ``config`` and ``parent``.
            ranks: Those that train the rest of the population.

        Raises:
            ConfigurationError: If the numbers do not fit, or the env lacks what K-Myriad needs.
        """
        runner_cfg.validate()
        _check_env(env, num_policies, ranks)
        _seed_everything(seed)
        guard = [NanGuardCallback(runner_cfg.nan_guard_interval)] if runner_cfg.nan_guard_interval else []
        observers = [*guard, *callbacks]
        super().__init__(env, cfg, runner_cfg, run_folder, device, seed, observers, loggers, manifest)
        self.ranks, self.writes = ranks, ranks.is_main
        sizes = {group: env.spec.group_size(group) for group in env.spec.observations}
        if actor is None:
            actor = PopulationActor(sizes["policy"], env.num_actions, num_policies, cfg.actor)
        _check_actor(actor, sizes["policy"], env.num_actions, num_policies)
        if ranks.world_size > 1:  # all ranks have drawn the weights of all heads, and keep their own
            actor = actor.select(range(num_policies)[ranks.block(num_policies)])
        actor = actor.to(self.device).train()
        self.algorithm = KMyriad(
            actor, cfg, env.num_envs, sizes, self.device, seed, num_steps=env.max_episode_length, ranks=ranks
        )
        arena = getattr(getattr(env, "task", None), "arena", None)
        self.coverage = None if arena is None else CoverageMap(arena, self.device, ranks)
        self._told_of_restored = False
        self._population: dict[str, float] = {}
        self._visits: tuple[torch.Tensor, torch.Tensor] | None = None

    @property
    def actor(self) -> PopulationActor:
        """The population, of this rank, trained in place."""
        return self.algorithm.actor

    @property
    def best_metric(self) -> str:
        """Coverage of the reachable cells by one rollout."""
        return BEST_METRIC

    def save(self, path: str | Path) -> Path:
        """Write a bundle with everything needed to resume bit-exactly on a CPU; a call of all ranks, rank 0 writes.

        Raises:
            CheckpointError: Where it cannot be written or a weight is not finite.
        """
        heads = {k: v.tolist() for k, v in self.algorithm.state_rewards.head_statistics.items()}
        manifest = self._manifest(metrics=self._population | self.metrics, head_metrics=heads)
        actor, state = self.actor.collect(self.ranks), self._train_state()
        return save_bundle(path, actor, manifest, state) if self.writes else Path(path)

    def load(self, path: str | Path) -> None:
        """Go on from a bundle of the same task, specs and sizes, bit-exactly on a CPU.

        The number of ranks may be another one; then the envs begin new episodes.

        Raises:
            CheckpointError: If the bundle is damaged or does not fit; says what differs.
        """
        bundle = load_bundle(path, self.device)
        asked = {"task": self.env.spec.task, "algorithm": self.algorithm_name, **self.sizes}
        check_resume(bundle.manifest, self.env.spec, **asked)
        state = bundle.load_train_state()
        self.algorithm.load_state_dict(state["algorithm"])
        self._load_envs(state)
        if self.coverage is not None:
            self.coverage.visited.copy_(state["visited"])
        self._restore(bundle.manifest, float(state["best"]))
        self._population = {name: value for name, value in self.metrics.items() if name.startswith("Population/")}
        heads = bundle.manifest.head_metrics
        self.algorithm.state_rewards.head_statistics = {k: torch.tensor(values) for k, values in heads.items()}
        restore_rng_state(state["rng"])

    def _iterate(self) -> None:
        """Run one episode of every env, learn from it and log."""
        started = time.perf_counter()
        log = self._rollout()
        rolled_out = time.perf_counter()
        features, valid = self.algorithm.storage["features"], self.algorithm.storage["valid"]
        if self.run_folder is not None:
            # The update forgets the rollout, which is recorded with the checkpoint if there is one.
            self._visits = features.clone(), valid.clone()
        if self.iteration == 0:
            self._record("visits_before.npz", 0)
        tensors = {} if self.coverage is None else self.coverage.update(features, valid)
        learnt = to_floats(tensors | self.algorithm.update())  # waits for the device: the clock is read after it
        updated = time.perf_counter()
        steps = self.sizes["num_envs"] * self.env.max_episode_length
        self.env_steps += steps
        self.wall_time += updated - started
        self.metrics = {
            "env_steps": float(self.env_steps),
            "wall_time": self.wall_time,
            **learnt,
            **log,
            "Perf/env_steps_per_second": steps / (updated - started),
            "Perf/rollout_s": rolled_out - started,
            "Perf/update_s": updated - rolled_out,
        }
        # Statistics that are not measured in every iteration stand in the manifest as they were measured last.
        self._population |= {name: value for name, value in self.metrics.items() if name.startswith("Population/")}
        self._tell_of_restored()
        self._close_iteration()

    def _tell_of_restored(self) -> None:
        """Say it once where an update had to be undone: a run whose every update is undone learns nothing."""
        if self.metrics.get("Loss/restored") and not self._told_of_restored:
            self._told_of_restored = True
            logger.warning(
                "The update of iteration %d was not finite and has been undone: the policies are as before it. Lower "
                "learning_rate if Loss/restored, which counts on, is 1 again; this is said once.",
                self.iteration + 1,
            )

    @torch.no_grad()
    def _rollout(self) -> dict[str, float]:
        """Run one whole episode of every env; returns the env's own log, averaged over the steps that had one.

        On several ranks it is the mean of their means.
        """
        sums: dict[str, list[torch.Tensor]] = {}
        obs = self.env.get_observations()
        # Where one env needs it, the envs of all ranks start anew, and draw their starts together.
        if bool(self.ranks.any((self.env.episode_length_buf != 0).any())):
            obs = self.env.reset()
        for _ in range(self.env.max_episode_length):
            actions = self.algorithm.act(obs)
            next_obs, rewards, _, extras = self.env.step(actions)
            ended = extras["terminated"] | extras["time_outs"]
            valid = ~extras.get("diverged", torch.zeros_like(ended))
            step = Step(
                obs, actions, rewards, extras["terminated"], extras["time_outs"], next_obs, extras["final_obs"], valid
            )
            self.algorithm.observe(step)
            self.callbacks.on_step(self, step)
            for name, value in extras.get("log", {}).items():
                sums.setdefault(name, []).append(torch.as_tensor(value, dtype=torch.float32).mean())
            obs = next_obs
        if not sums:
            return {}
        means = torch.stack([torch.stack(sums[name]).mean() for name in sorted(sums)])
        return to_floats(dict(zip(sorted(sums), self.ranks.sum(means) / self.ranks.world_size, strict=True)))

    def _train_state(self) -> dict[str, Any]:
        return {
            "algorithm": self.algorithm.state_dict(),
            "envs": self.ranks.collect(plain_state(self.env.state_dict(), "env")),
            "visited": None if self.coverage is None else self.coverage.visited,
            "best": self._best,
            "rng": capture_rng_state(),
        }

    def _load_envs(self, state: Mapping[str, Any]) -> None:
        """Bring the envs to where they were, or, if they were dealt out to another number of ranks, to a new start."""
        states = state["envs"] if "envs" in state else [state["env"]]  # "env": bundles of before there were ranks
        if len(states) == self.ranks.world_size:
            self.env.load_state_dict(states[self.ranks.rank])
            return
        self._begin_anew(len(states))

    def _checkpoint(self) -> None:
        super()._checkpoint()
        self._record("visits.npz", self.iteration - 1)

    def _record(self, name: str, iteration: int) -> None:
        if self.run_folder is None or self._visits is None:
            return
        num_policies = self.sizes["num_policies"]
        features, valid = (self.ranks.collect_rows(rows.transpose(0, 1)).transpose(0, 1) for rows in self._visits)
        if self.writes:
            info = {"task": self.env.spec.task, "iteration": iteration, "num_policies": num_policies}
            save_visits(self.run_folder.recordings / name, features, valid, num_policies, info)


def _check_env(env: VecEnv, num_policies: int, ranks: Collective) -> None:
    num_envs = env.num_envs * ranks.world_size
    check_population(num_envs, num_policies)
    check_shards(num_envs, num_policies, ranks.world_size)
    if not env.provides_final_obs:
        raise ConfigurationError("pre-training needs final observations: build the env with final_obs=True")


def _check_actor(actor: PopulationActor, num_obs: int, num_actions: int, num_policies: int) -> None:
    expected = {"num_obs": num_obs, "num_actions": num_actions, "num_policies": num_policies}
    for name, value in expected.items():
        if getattr(actor, name) != value:
            raise ConfigurationError(
                f"the population has {name}={getattr(actor, name)}, the run needs {value}; start from a fitting one"
            )


def _seed_everything(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
