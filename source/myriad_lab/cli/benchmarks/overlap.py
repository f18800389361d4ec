"""Collection and learning at once: how much of the shorter is hidden behind the longer."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from myriad_lab.algorithms.captured import WARM_UPS
from myriad_lab.algorithms.pql import PQLCfg
from myriad_lab.cli.benchmarks.floors import overlap_efficiency
from myriad_lab.cli.benchmarks.line import BenchmarkLine, Case, Timing, Work, in_turns, summary
from myriad_lab.envs.cores import usable_cores
from myriad_lab.runners.callbacks import Callback
from myriad_lab.runners.parallel_q_processes import POLICY_LEARNER, VALUE_LEARNER
from myriad_lab.runners.parallel_q_runner import ParallelQRunner, ParallelQRunnerCfg
from myriad_lab.tasks.registry import make_env

POLICY_DELAY = 2
"""Critic updates for each policy update."""


@dataclass(frozen=True)
class Setting:
    """What is collected and learnt."""

    task: str
    """Registered task id."""
    num_envs: int
    """Envs collected from."""
    batch_size: int
    """Rows of a minibatch."""
    updates: int
    """Critic updates per env step; a policy update for every two."""

    @property
    def size(self) -> str:
        """The setting in words, without the task."""
        return f"{self.num_envs} envs, {self.updates} critic updates of {self.batch_size} rows per step"


@dataclass(frozen=True)
class Cores:
    """Which cores do what; both the same where nothing is pinned."""

    collector: tuple[int, ...]
    """Numbers of the collector's cores."""
    learners: tuple[int, ...]
    """Numbers of those that both learners share."""

    @property
    def pinned(self) -> bool:
        """Whether collector and learners have cores of their own."""
        return self.collector != self.learners


def cases(device: str, quick: bool) -> list[Case]:
    """Return a case for each task: the collector alone, the learners alone, both in turns, both at once.

    On a CPU the collector has the first half of the cores and the two learner processes share the rest, alone as well
    as together; in turns, physics and updates have all cores.

    Args:
        device: Of collector and learners; MuJoCo's physics runs on the CPU.
        quick: A small setting, few steps.
    """
    settings = [Setting("Myriad-Ant", 1024, 1024, 2), Setting("Myriad-PointMaze-Maze", 16_384, 2048, 1)]
    if quick:
        settings = [Setting("Myriad-PointMaze-Maze", 64, 32, 2)]
    elif torch.device(device).type == "cuda":
        settings.append(Setting("Myriad-PointMaze-Maze", 65_536, 8192, 8))
    return [Case(f"{s.task}, {s.size}", partial(time_overlap, s, device, quick)) for s in settings]


def time_overlap(setting: Setting, device: str, quick: bool) -> list[BenchmarkLine]:
    """Return the line of one setting: time of an env step while both run, beside perfect overlap and taking turns."""
    cores = share_cores(device)
    everything = tuple(sorted({*cores.collector, *cores.learners}))
    rounds, iterations, steps = (1, 1, 10) if quick else (2, 4, 25)
    where = {"alone": cores.collector, "turns": everything, "parallel": cores.collector}
    runners, watches = {}, {name: _Watch(cores) for name in where}
    for name, own in where.items():
        mode = "parallel" if name == "parallel" else "interleaved"
        threads = len(own) if name == "turns" else max(1, len(cores.learners) // 2)
        with pinned(own):  # the threads of the physics stay where they were born
            runners[name] = _runner(setting, device, mode, len(own), threads, steps, watches[name])
    runners["alone"].algorithm.counts.idle_steps = math.inf  # no env step earns an update
    learning = []
    for _ in range(rounds):
        for name, runner in runners.items():
            watches[name].begin(runner, iterations)
            with pinned(where[name]):
                runner.learn(iterations + 10)  # the watch ends it sooner
        with pinned(cores.learners, len(cores.learners)):
            learning.append(_time_learners(runners["alone"], setting, device, quick))
    for runner in runners.values():
        runner.env.close()
    times = {name: summary(watch.times) for name, watch in watches.items()}
    return [_line(setting, times, summary(learning).median_s, runners["parallel"].metrics, cores)]


def share_cores(device: str) -> Cores:
    """Return the cores of collector and learners; on a GPU, or with one core, nothing is pinned."""
    cores = tuple(usable_cores())
    if torch.device(device).type == "cuda" or len(cores) < 2 or not hasattr(os, "sched_setaffinity"):
        return Cores(cores, cores)
    half = len(cores) // 2
    return Cores(cores[:half], cores[half:])


@contextmanager
def pinned(cores: Sequence[int], num_threads: int = 1) -> Iterator[None]:
    """Keep this thread, and threads and processes that it starts, on these cores; torch has one thread, as in training.

    Args:
        cores: Their numbers.
        num_threads: Threads of torch.
    """
    threads, before = torch.get_num_threads(), usable_cores()
    torch.set_num_threads(num_threads)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, before)
        torch.set_num_threads(threads)


class _Watch(Callback):
    """Notes the time of an env step in each iteration that counts, and puts learner processes on their cores."""

    def __init__(self, cores: Cores) -> None:
        self.times: list[float] = []
        self._cores, self._placed, self._warm, self._left = cores, False, False, 0
        self._updates = 0, 0

    def begin(self, runner: ParallelQRunner, iterations: int) -> None:
        """Note so many iterations of the next ``learn`` and end it; those while anything warms up do not count."""
        self._placed, self._warm, self._left = False, False, iterations
        self._updates = runner.algorithm.counts.value_updates, runner.algorithm.counts.policy_updates

    def on_step(self, runner: ParallelQRunner, step: Any) -> None:
        """Move the learners, once they exist; each was born on the cores of the collector."""
        if self._placed or runner.learners is None or not self._cores.pinned:
            return
        for name in (VALUE_LEARNER, POLICY_LEARNER):
            os.sched_setaffinity(runner.learners.workers.pid(name), self._cores.learners)
        self._placed = True

    def on_iteration(self, runner: ParallelQRunner, metrics: dict[str, float]) -> None:
        """Note the mean time of a step, from the second iteration on and once processes have compiled and captured."""
        if self._warm:
            self.times.append(metrics["Perf/iteration_time"] / runner.runner_cfg.num_steps_per_iteration)
            self._left -= 1
            if self._left == 0:
                runner.request_stop()
        learners = runner.learners
        done = () if learners is None else zip(learners.updates(), self._updates, strict=True)
        self._warm = all(now - before > WARM_UPS + 1 for now, before in done)


def _runner(
    setting: Setting, device: str, mode: str, physics_threads: int, learner_threads: int, steps: int, watch: _Watch
) -> ParallelQRunner:
    env = make_env(setting.task, num_envs=setting.num_envs, device=device, num_threads=physics_threads)
    cfg = PQLCfg(
        batch_size=setting.batch_size,
        value_updates_per_step=float(setting.updates),
        policy_delay=POLICY_DELAY,
        replay_capacity=128 * setting.num_envs,
        warmup_steps=1,
    )
    loop = ParallelQRunnerCfg(
        mode=mode,
        num_steps_per_iteration=steps,
        save_interval=0,
        nan_guard_interval=0,
        learner_threads=learner_threads,
    )
    return ParallelQRunner(env, cfg, loop, device=device, callbacks=[watch])


def _time_learners(runner: ParallelQRunner, setting: Setting, device: str, quick: bool) -> float:
    """Return the time of all updates that an env step earns, one after the other, with nothing beside them [s]."""
    learner = runner.algorithm
    works: dict[str, Work] = {"critic": learner.learn_critics, "policy": learner.learn_policies}
    timings = in_turns(works, device, quick)
    return setting.updates * (timings["critic"].median_s + timings["policy"].median_s / learner.cfg.policy_delay)


def _line(
    setting: Setting,
    times: dict[str, Timing],
    learn_s: float,
    metrics: dict[str, float],
    cores: Cores,
) -> BenchmarkLine:
    alone, turns, both = (times[name].median_s for name in ("alone", "turns", "parallel"))
    lag, policy_updates = metrics["Perf/policy_lag"], setting.updates / POLICY_DELAY
    sampled = (setting.updates + policy_updates) * setting.batch_size / setting.num_envs
    where = f"cores {list(cores.collector)} and {list(cores.learners)}" if cores.pinned else "nothing pinned"
    note = (
        f"collector alone {1000 * alone:.1f} ms, learners alone {1000 * learn_s:.1f} ms, overlap efficiency "
        f"{overlap_efficiency(alone, learn_s, both):.2f} (in turns {overlap_efficiency(alone, learn_s, turns):.2f}), "
        f"collector waits {metrics['Perf/collector_wait']:.0%}, policy lag {lag:g} updates, "
        f"{lag / policy_updates:.2g} env steps, {setting.updates} critic and {policy_updates:g} policy updates per step"
        f", {sampled:g} rows drawn per transition; {where}"
    )
    return BenchmarkLine(
        f"overlap, {setting.task}",
        setting.size,
        *times["parallel"],
        max(alone, learn_s),
        "the longer alone",
        turns,
        "in turns",
        x=setting.num_envs,
        x_name="envs",
        note=note,
    )
