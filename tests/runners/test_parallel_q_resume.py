"""What a run of parallel Q-learning owes and may do after it goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from myriad_lab.distributed.tokens import Tokens
from myriad_lab.networks.population import PopulationActor
from myriad_lab.portfolio.bundle import load_bundle
from myriad_lab.portfolio.run_folder import RunFolder
from myriad_lab.runners.callbacks import Callback
from myriad_lab.runners.parallel_q_processes import ParallelLearners
from myriad_lab.runners.parallel_q_runner import ParallelQRunner
from predictable_env import PredictableEnv
from runners.test_parallel_q_runner import ACTOR, Score, make

CHANGES = [{"value_updates_per_step": 8.0}, {"value_updates_per_step": 0.25}, {"policy_delay": 8}, {"policy_delay": 1}]


@pytest.mark.parametrize("save_replay", [False, True])
@pytest.mark.parametrize("changed", CHANGES)
def test_other_ratios_hold_from_a_resume_on(changed: dict, save_replay: bool, tmp_path: Path) -> None:
    half, rest = make(save_replay=save_replay), make(**changed)
    half.learn(4)
    rest.load(half.save(tmp_path / "bundle"))
    value, policy = rest.algorithm.counts.value_updates, rest.algorithm.counts.policy_updates
    assert (value, policy) == (92, 46)
    rest.learn(1)
    done = int((25 - (0 if save_replay else 8)) * rest.cfg.value_updates_per_step)
    assert rest.algorithm.counts.value_updates - value == done
    assert rest.algorithm.counts.policy_updates - policy == done // rest.cfg.policy_delay


@pytest.mark.parametrize("changed", [{"value_updates_per_step": 8.0}, {"policy_delay": 8}])
def test_other_ratios_hold_between_processes(changed: dict, tmp_path: Path) -> None:
    half, rest = make(), make(mode="parallel", **changed)
    half.learn(4)
    rest.load(half.save(tmp_path / "bundle"))
    rest.learn(2)
    rate, delay, lead = rest.cfg.value_updates_per_step, rest.cfg.policy_delay, rest.runner_cfg.max_lead
    earned, done = int(42 * rate), rest.algorithm.counts.value_updates - 92
    assert earned - (lead + 1) * rate <= done <= earned
    assert done // delay - lead - 1 <= rest.algorithm.counts.policy_updates - 46 <= done // delay


@pytest.mark.parametrize("warmup", [0, 200])
def test_another_critic_warmup_counts_until_the_policies_move(warmup: int, tmp_path: Path) -> None:
    def seeded(**changes: int) -> ParallelQRunner:
        return make(actor=PopulationActor(2, 2, 2, ACTOR), save_replay=True, **changes)

    half, rest = seeded(critic_warmup=100), seeded(critic_warmup=warmup)
    half.learn(2)
    rest.load(half.save(tmp_path / "bundle"))
    assert (rest.algorithm.counts.value_updates, rest.algorithm.counts.policy_updates) == (42, 0)
    assert rest.algorithm.counts.due_policy_updates(max(42, warmup)) == 0
    assert rest.algorithm.counts.due_policy_updates(max(42, warmup) + 20) == 10


def test_updates_owed_at_a_resume_without_replay_are_forgotten(tmp_path: Path) -> None:
    half = make()
    half.learn(4)
    half.algorithm.counts.value_updates -= 40  # as of a parallel run saved while the learners are behind
    half.algorithm.counts.policy_updates -= 30
    rest = make()
    rest.load(half.save(tmp_path / "bundle"))
    algorithm = rest.algorithm
    assert algorithm.counts.due_policy_updates(algorithm.counts.value_updates) == algorithm.counts.policy_updates
    algorithm.counts.steps += rest.cfg.warmup_steps
    assert algorithm.counts.earned_value_updates() == algorithm.counts.value_updates
    algorithm.counts.steps += 1
    assert algorithm.counts.earned_value_updates() == algorithm.counts.value_updates + 1


def test_learners_that_start_behind_get_no_more_lead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("myriad_lab.distributed.workers.WorkerGroup.start", lambda *args: None)
    algorithm = make().algorithm
    algorithm.counts.steps, algorithm.counts.value_updates, algorithm.counts.policy_updates = 40, 20, 5
    wiring = ParallelLearners(algorithm, 8, "cpu", "cpu")._wiring

    def count(tokens: Tokens) -> int:
        return tokens._semaphore.get_value() - tokens._owed

    assert (count(wiring.policy), count(wiring.policy_room)) == (5, 3)
    assert (count(wiring.value), count(wiring.collect)) == (12, -4)
    wiring.collect.grant(5)
    assert count(wiring.collect) == 1


def test_a_bundle_that_was_saved_and_not_yet_marked_as_the_best_is_so_after_a_resume(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, "killed")
    settings = {"save_interval": 1, "best_metric": "Eval/score", "callbacks": [Score(1.0, 3.0, 2.0)]}
    make(run, **settings).learn(2)
    run.mark_best("iteration_000001")  # as it was when the run was killed
    rest = make(run, **settings)
    rest.load(run.latest())
    assert run.best().name == "iteration_000001", "loading writes nothing"
    rest.learn(1)
    assert run.best().name == "iteration_000002"


def test_a_memory_wraps_and_goes_on_in_the_other_mode(tmp_path: Path) -> None:
    half, rest = make(save_replay=True, replay_capacity=640), make(mode="parallel", replay_capacity=640)
    assert half.algorithm.replay.num_slots == 640 // 16 + 1, "nobody writes while the learners read"
    assert rest.algorithm.replay.num_slots >= 640 // 16 + 1 + rest.runner_cfg.max_lead
    half.learn(2)
    rest.load(half.save(tmp_path / "bundle"))
    drawn = [r.algorithm.replay.sample(64, torch.Generator().manual_seed(0)) for r in (half, rest)]
    assert torch.equal(drawn[0].obs["policy"], drawn[1].obs["policy"])
    assert torch.equal(drawn[0].next_obs["policy"], drawn[1].next_obs["policy"])


class StartsAnew(PredictableEnv):
    """An env of which no snapshot is to be had."""

    resumes_episodes = False

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.reset()


def test_episodes_that_a_resume_cannot_go_on_with_are_forgotten(tmp_path: Path) -> None:
    def start() -> ParallelQRunner:
        env = StartsAnew(num_envs=16, lengths=[5] * 16)
        return make(env=env, num_steps_per_iteration=8, save_replay=True, normalize_returns=True, batch_size=256)

    half, rest = start(), start()
    half.learn(1)  # three steps into the second episode
    rest.load(half.save(tmp_path / "bundle"))
    assert rest.metrics["Train/mean_episode_length"] == 5.0
    rest.learn(1)
    assert rest.metrics["Train/mean_episode_length"] == 5.0
    batch = rest.algorithm.sample()
    usable = batch.weights > 0
    (_, step, episode), (_, after, later) = (rows["policy"][usable].unbind(-1) for rows in (batch.obs, batch.next_obs))
    assert torch.equal(after, step + 1)
    assert torch.equal(later, episode)


@pytest.mark.parametrize("interval", [1, 7])
def test_a_stop_before_the_first_iteration_saves_too(interval: int, tmp_path: Path) -> None:
    class Hasty(Callback):
        def on_start(self, runner: Any) -> None:
            runner.request_stop()

    folder = RunFolder.create(tmp_path, "run")
    make(folder, callbacks=[Hasty()], save_interval=interval).learn(3)
    assert load_bundle(folder.latest()).manifest.iteration == 0
