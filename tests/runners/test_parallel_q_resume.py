"""What a run of parallel Q-learning owes and may do after it goes on."""

from __future__ import annotations

from pathlib import Path

import pytest

from myriad_lab.distributed.tokens import Tokens
from myriad_lab.networks.population import PopulationActor
from myriad_lab.runners.parallel_q_processes import ParallelLearners
from myriad_lab.runners.parallel_q_runner import ParallelQRunner
from runners.test_parallel_q_runner import ACTOR, make

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
