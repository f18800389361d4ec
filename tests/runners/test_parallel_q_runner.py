from __future__ import annotations

import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from identity_env import IdentityEnv
from myriad_lab.algorithms.algorithm import Step
from myriad_lab.algorithms.pql import PQLCfg
from myriad_lab.distributed.workers import WorkerDied
from myriad_lab.errors import CheckpointError, ConfigurationError
from myriad_lab.monitor.nan_guard import NanGuardError
from myriad_lab.networks.population import PopulationActor, PopulationActorCfg
from myriad_lab.networks.q_ensemble import QEnsembleCfg
from myriad_lab.portfolio.atomic import read_json
from myriad_lab.portfolio.bundle import load_bundle
from myriad_lab.portfolio.run_folder import RunFolder
from myriad_lab.runners import parallel_q_runner
from myriad_lab.runners.callbacks import Callback
from myriad_lab.runners.mean_log import MeanLog
from myriad_lab.runners.parallel_q_processes import POLICY_LEARNER, VALUE_LEARNER, _pack, _unpack
from myriad_lab.runners.parallel_q_runner import ParallelQRunner, ParallelQRunnerCfg
from predictable_env import PredictableEnv

ACTOR = PopulationActorCfg(trunk=[32], adapter_dim=16, obs_normalization=True)


def make(run: RunFolder | None = None, env: Any = None, heads: int = 2, **changes: Any) -> ParallelQRunner:
    loop = {key: changes.pop(key) for key in list(changes) if key in ParallelQRunnerCfg.__dataclass_fields__}
    rest = {key: changes.pop(key) for key in ("callbacks", "loggers", "actor") if key in changes}
    learner = {"gamma": 0.0, "n_step": 1, "batch_size": 64, "warmup_steps": 8, "actor_lr": 3e-3, "critic_lr": 3e-3}
    critic = QEnsembleCfg(hidden=[64])
    cfg = PQLCfg(**{**learner, "actor": ACTOR, "critic": critic, "replay_capacity": 20_000, **changes})
    env = env or IdentityEnv(num_envs=16, episode_steps=4)
    return ParallelQRunner(
        env, cfg, ParallelQRunnerCfg(**{"num_steps_per_iteration": 25, **loop}), run, num_policies=heads, **rest
    )


def error_of(runner: ParallelQRunner) -> float:
    env = IdentityEnv(num_envs=64, seed=9)
    with torch.no_grad():
        return float((runner.get_inference_policy()(env.get_observations()) - env.target).abs().mean())


def weights(runner: ParallelQRunner) -> list[torch.Tensor]:
    return [*runner.actor.state_dict().values(), *runner.algorithm.critic.state_dict().values()]


class Hook(Callback):
    """Calls a function once, after a given env step."""

    def __init__(self, at: int, action: Any) -> None:
        self.at, self.action, self.count, self.begun = at, action, 0, 0.0

    def on_step(self, runner: Any, step: Step) -> None:
        self.count += 1
        if self.count == self.at:
            self.begun = time.monotonic()
            self.action(runner)


class Waits(Callback):
    """Notes the collector's share of waiting in each iteration."""

    def __init__(self, into: list[float]) -> None:
        self.into = into

    def on_iteration(self, runner: Any, metrics: dict[str, float]) -> None:
        self.into.append(metrics["Perf/collector_wait"])


@pytest.mark.parametrize("mode", ["interleaved", "parallel"])
def test_both_modes_learn_the_identity(mode: str, tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, "pql")
    runner = make(run, mode=mode, save_interval=0, sigma_max=0.4)
    assert error_of(runner) > 0.25
    runner.learn(24)
    assert error_of(runner) < 0.12
    bundle = load_bundle(run.latest())
    assert bundle.manifest.metrics["Train/mean_reward"] > 3.0
    assert bundle.manifest.metrics["Train/success"] > 0.5
    assert {"Loss/critic", "Loss/actor", "Perf/value_updates"} <= bundle.manifest.metrics.keys()
    assert all(torch.equal(a, b) for a, b in zip(bundle.actor.parameters(), runner.actor.parameters(), strict=True))


def test_interleaved_repeats_bitwise() -> None:
    first, second = make(), make()
    first.learn(4)
    second.learn(4)
    assert all(torch.equal(a, b) for a, b in zip(weights(first), weights(second), strict=True))
    keys = [key for key in first.metrics if not key.startswith(("Perf", "wall"))]
    assert "Loss/critic" in keys
    assert [first.metrics[key] for key in keys] == [second.metrics[key] for key in keys]


def test_resume_with_replay_is_bit_exact(tmp_path: Path) -> None:
    whole, half, rest = (make(save_replay=True) for _ in range(3))
    whole.learn(6)
    half.learn(3)
    torch.rand(3)
    rest.load(half.save(tmp_path / "iteration_3"))
    assert (rest.iteration, rest.env_steps) == (3, 3 * 25 * 16)
    assert rest.metrics["Train/mean_reward"] == half.metrics["Train/mean_reward"]
    rest.learn(3)
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(rest), strict=True))
    assert whole.metrics["Train/mean_reward"] == rest.metrics["Train/mean_reward"]


def test_resume_without_replay_collects_first_and_may_change_the_mode(tmp_path: Path) -> None:
    half, rest = make(mode="interleaved"), make(mode="parallel")
    half.learn(2)
    rest.load(half.save(tmp_path / "bundle"))
    before = rest.algorithm.counts.value_updates
    assert before == half.algorithm.counts.value_updates == 50 - 8
    rest.learn(2)
    assert rest.algorithm.counts.idle_steps == 16
    assert 100 - 16 - rest.runner_cfg.max_lead - 1 <= rest.algorithm.counts.value_updates <= 100 - 16


@pytest.mark.parametrize(("rate", "delay"), [(2.0, 2), (0.3, 3)])
def test_ratios_are_held_by_counting(rate: float, delay: int) -> None:
    seen = []

    class Watch(Callback):
        def on_step(self, runner: Any, step: Step) -> None:
            seen.append((runner.algorithm.counts.steps, *runner.learners.updates()))

    lead = 4
    runner = make(mode="parallel", max_lead=lead, value_updates_per_step=rate, policy_delay=delay, callbacks=[Watch()])
    runner.learn(4)
    assert len(seen) == 100
    slack = max(lead, 1 / rate + 1) + 1
    for steps, value, policy in seen:
        earned = max(0, steps - 8) * rate
        assert earned - slack * rate - 1 <= value <= earned
        assert value / delay - lead - 1 <= policy <= value / delay
    assert 0.0 <= runner.metrics["Perf/policy_lag"] <= 2 * lead + 2
    assert 0.0 <= runner.metrics["Perf/collector_wait"] <= 1.0


def test_the_log_tells_how_long_the_collector_waited() -> None:
    """A collector that is held back for most of each step has waited for most of the time."""
    waits = []

    def slow_down(runner: Any) -> None:
        tokens = runner.learners._wiring.collect
        take = tokens.take
        tokens.take = lambda check: (time.sleep(0.05), take(check))

    runner = make(mode="parallel", callbacks=[Hook(1, slow_down), Waits(waits)])
    runner.learn(2)
    assert waits[1] > 0.5


def test_policy_lag_is_that_of_the_policy_that_acts() -> None:
    acting = []

    def hold_back(runner: Any) -> None:
        mailbox = runner.learners._wiring.actor_weights
        acting.append(runner.learners._acting_version)
        mailbox.fetch = lambda into: None

    runner = make(mode="parallel", max_lead=4, policy_delay=1, callbacks=[Hook(30, hold_back)])
    runner.learn(4)
    done = runner.algorithm.counts.policy_updates
    assert 100 - 8 - 2 * 4 - 2 - acting[0] <= runner.metrics["Perf/policy_lag"] <= done - acting[0]


def test_saving_keeps_the_newest_observation_statistics(tmp_path: Path) -> None:
    def save(runner: Any) -> None:
        networks = (runner.actor, runner.algorithm.critic, runner.algorithm.target_critic)
        for network in networks:
            network.normalizer.count += 1000.0  # which no learner has seen yet
        before = [network.normalizer.state_dict() for network in networks]
        before = [{name: value.clone() for name, value in state.items()} for state in before]
        runner.save(tmp_path / "bundle")
        for network, state in zip(networks, before, strict=True):
            assert all(torch.equal(value, state[name]) for name, value in network.normalizer.state_dict().items())
        assert load_bundle(tmp_path / "bundle").actor.normalizer.count == before[0]["count"]

    make(mode="parallel", callbacks=[Hook(60, save)]).learn(3)


def test_learners_draw_different_rows_also_from_a_replay_memory_on_another_device() -> None:
    runner = make()
    runner.learn(2)
    algorithm = runner.algorithm

    def rows(role: int) -> torch.Tensor:
        return _unpack(_pack(algorithm), algorithm.replay, "cpu", 1, role).sample().obs["policy"]

    for device in (algorithm.replay.device, torch.device("cpu", 0)):  # to torch, cpu:0 is another device than cpu
        algorithm.replay.device = device
        assert torch.equal(rows(1), rows(1))
        assert not torch.equal(rows(1), rows(2))
        before = rows(1)
        algorithm.counts.value_updates += 1  # as after a halving, when the processes start anew
        assert not torch.equal(rows(1), before)


def test_a_killed_learner_ends_the_run_and_the_last_checkpoint_stays(tmp_path: Path) -> None:
    for name in (VALUE_LEARNER, POLICY_LEARNER):
        run = RunFolder.create(tmp_path, "killed")

        def kill(runner: Any, name: str = name) -> None:
            os.kill(runner.learners.workers.pid(name), signal.SIGKILL)

        hook = Hook(60, kill)
        runner = make(run, mode="parallel", save_interval=1, callbacks=[hook])
        with pytest.raises(WorkerDied, match=f"The {name} died without a word, exit code -9"):
            runner.learn(1000)
        assert time.monotonic() - hook.begun < 10.0
        assert runner.learners is None
        assert load_bundle(run.latest()).manifest.iteration == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_all_processes_leaves_the_learners_to_the_runner(tmp_path: Path, number: int) -> None:
    run = RunFolder.create(tmp_path, "signalled")

    def send(runner: Any) -> None:
        for name in (VALUE_LEARNER, POLICY_LEARNER):
            os.kill(runner.learners.workers.pid(name), number)

    # at the first step the learners are still starting, at the 60th they are at work
    stop = Hook(70, lambda runner: runner.request_stop())
    make(run, mode="parallel", callbacks=[Hook(1, send), Hook(60, send), stop]).learn(1000)
    assert load_bundle(run.latest()).manifest.iteration == 3


def test_a_learner_that_raises_hands_over_its_traceback() -> None:
    runner = make(mode="parallel")
    runner.algorithm.cfg.batch_size = 10**12  # no memory holds this
    with pytest.raises(WorkerDied, match=r"(?s)The value learner died:\nTraceback .*replay.sample.*RuntimeError"):
        runner.learn(1000)


def test_a_broken_critic_ends_the_run_before_it_is_saved(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, "broken")

    def spoil(runner: Any) -> None:
        runner.algorithm.target_critic.biases[-1].fill_(float("nan"))

    actor = PopulationActor(2, 2, 2, ACTOR)  # from a portfolio: it goes on acting well while the critics warm up
    runner = make(run, actor=actor, save_interval=1, keep_checkpoints=1, callbacks=[Hook(60, spoil)])
    with pytest.raises(NanGuardError, match=r"not finite: Loss/critic=nan.* lower it"):
        runner.learn(100)
    assert load_bundle(run.latest()).manifest.iteration == 2
    assert bool(torch.isfinite(torch.cat([p.flatten() for p in runner.actor.parameters()])).all())


def test_a_critic_that_breaks_in_its_own_process_ends_the_run() -> None:
    runner = make(mode="parallel", critic_lr=1e38, actor=PopulationActor(2, 2, 2, ACTOR))
    with pytest.raises(NanGuardError, match="not finite: Loss/critic="):
        runner.learn(1000)


def test_nothing_broken_is_saved(tmp_path: Path) -> None:
    runner = make()
    runner.learn(1)
    state = next(iter(runner.algorithm.critic_optimizer.state.values()))
    state["exp_avg_sq"].view(-1)[3] = float("inf")
    with pytest.raises(NanGuardError, match=r"critic_optimizer\.state\.0\.exp_avg_sq"):
        runner.save(tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_the_guard_names_the_head_that_broke() -> None:
    def spoil(runner: Any) -> None:
        runner.actor.heads.out_bias.data[1] = float("nan")

    runner = make(heads=4, halving_iterations=[1], policy_delay=1000, callbacks=[Hook(30, spoil)])
    with pytest.raises(NanGuardError, match=r"actions; 8 of 16 envs, env ids 8, 9, 10, .*, policy ids 1\."):
        runner.learn(4)
    assert runner.num_policies == 2


COLLECTOR = """
import sys
sys.path[:0] = {paths}
from test_parallel_q_runner import Hook, make
if __name__ == "__main__":
    def tell(runner):
        print(*(runner.learners.workers.pid(n) for n in ("value learner", "policy learner")), flush=True)
    make(mode="parallel", callbacks=[Hook(30, tell)]).learn(10**6)
"""


def test_learners_end_when_the_collector_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "collector.py"
    here = Path(__file__).parent
    script.write_text(COLLECTOR.format(paths=[str(here), str(here.parent)]))
    collector = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert collector.stdout is not None
    pids = [int(word) for word in collector.stdout.readline().split()]
    collector.kill()
    collector.wait()
    collector.stdout.close()
    assert len(pids) == 2
    deadline = time.monotonic() + 20.0
    while any(is_running(pid) for pid in pids):
        assert time.monotonic() < deadline, f"{pids} are still there"
        time.sleep(0.1)


def is_running(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    try:
        return re.sub(r".*\) ", "", stat.read_text())[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_halving_keeps_the_better_heads(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Spoiled(IdentityEnv):
        """Rewards every second head less, whatever it does."""

        def step(self, actions: torch.Tensor) -> Any:
            obs, rewards, dones, extras = super().step(actions)
            return obs, rewards - 5.0 * (torch.arange(16) // 4 % 2), dones, extras

    run = RunFolder.create(tmp_path, "halving")
    runner = make(run, env=Spoiled(num_envs=16, episode_steps=4), heads=4, halving_iterations=[2], save_replay=True)
    with caplog.at_level("INFO"):
        runner.learn(2)
    assert runner.num_policies == 2
    assert "heads [0, 2] go on with all envs" in caplog.text
    assert runner.algorithm.return_scale is not None
    assert not runner.algorithm.return_scale._returns.any(), "an episode must not count for two heads"
    runner.learn(1)
    resumed = make(env=Spoiled(num_envs=16, episode_steps=4), heads=4, halving_iterations=[2])
    resumed.load(run.latest())
    assert resumed.num_policies == 2
    assert all(torch.equal(a, b) for a, b in zip(weights(runner), weights(resumed), strict=True))


def test_no_head_is_dropped_while_all_are_alike(caplog: pytest.LogCaptureFixture) -> None:
    class Alike(IdentityEnv):
        def step(self, actions: torch.Tensor) -> Any:
            obs, rewards, dones, extras = super().step(actions)
            return obs, torch.zeros_like(rewards), dones, extras

    runner = make(env=Alike(num_envs=16, episode_steps=4), heads=4, halving_iterations=[1])
    runner.learn(2)
    assert runner.num_policies == 4
    assert caplog.text.count("none is dropped") == 1


def test_updates_have_threads_of_their_own_between_env_steps() -> None:
    class Counting(IdentityEnv):
        def step(self, actions: torch.Tensor) -> Any:
            seen.add(("env", torch.get_num_threads()))
            return super().step(actions)

    seen, before = set(), torch.get_num_threads()
    runner = make(env=Counting(num_envs=16, episode_steps=4), learner_threads=before + 1)
    update = runner.algorithm.value_update

    def watched(batch: Any) -> torch.Tensor:
        seen.add(("update", torch.get_num_threads()))
        return update(batch)

    runner.algorithm.value_update = watched
    runner.learn(1)
    assert seen == {("env", before), ("update", before + 1)}
    assert torch.get_num_threads() == before


def test_halving_waits_until_every_head_has_finished_an_episode(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def start() -> ParallelQRunner:
        env = PredictableEnv(num_envs=16, lengths=[5] * 8 + [60] * 8)  # only what falls has a return soon
        return make(env=env, heads=2, halving_iterations=[1], normalize_returns=True)

    runner, resumed = start(), start()
    runner.learn(2)
    assert runner.num_policies == 2
    assert [message for message in caplog.messages if "halved once each" in message] == [
        "Iteration 0: the heads are halved once each has finished an episode."
    ]
    resumed.load(runner.save(tmp_path / "bundle"))
    for each in (runner, resumed):
        each.learn(1)
        assert each.num_policies == 1
        each.learn(1)


class Score(Callback):
    """Adds a metric."""

    def __init__(self, *scores: float) -> None:
        self.scores = scores

    def on_iteration(self, runner: Any, metrics: dict[str, float]) -> None:
        metrics["Eval/score"] = self.scores[runner.iteration]


@pytest.mark.parametrize("scores", [(1.0, 3.0, 2.0, 9.0), (math.nan, 3.0, math.nan)])
def test_best_and_stop(scores: tuple[float, ...], tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, "best")
    callbacks = [Score(*scores), Hook(60, lambda runner: runner.request_stop())]
    runner = make(run, save_interval=1, best_metric="Eval/score", callbacks=callbacks)
    runner.learn(100)
    assert runner.iteration == 3
    assert read_json(run.checkpoints / "best.json")["name"] == "iteration_000002"
    assert run.latest().name == "iteration_000003"


def test_who_shares_a_gpu_is_asked_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(parallel_q_runner, "ParallelLearners", lambda *_: None)
    monkeypatch.setattr(parallel_q_runner, "tell_of_turns", asked.append)
    runner = make(mode="parallel")
    runner.runner_cfg.policy_device = "cuda:1"
    runner._start_learners()
    assert asked == [["cpu", "cpu", "cuda:1"]]


@pytest.mark.parametrize("name", ["Train/mean_reward", "Train/mean_rewards"])
def test_a_metric_that_no_checkpoint_has_is_named(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    runner = make(RunFolder.create(tmp_path, "best"), best_metric=name)
    runner.learn(4)
    assert "Train/mean_reward" in runner.metrics
    told = [message for message in caplog.messages if "best_metric='Train/mean_rewards'" in message]
    assert len(told) == (name == "Train/mean_rewards")
    assert all("Did you mean Train/mean_reward" in message for message in told)


def test_who_was_told_of_the_start_is_told_of_the_end() -> None:
    class Told(Callback):
        ended = False

        def on_stop(self, runner: Any) -> None:
            self.ended = True

    class Fails(Callback):
        def on_start(self, runner: Any) -> None:
            raise OSError("no display")

    told = Told()
    with pytest.raises(OSError, match="no display"):
        make(callbacks=[told, Fails()]).learn(1)
    assert told.ended


def test_invalid_rows_get_no_weight_and_episodes_are_counted() -> None:
    env = PredictableEnv(num_envs=8, diverge_at=((20, 3),))
    runner = make(env=env)
    runner.learn(2)
    batch = runner.algorithm.replay.sample(2000, torch.Generator().manual_seed(0))
    dropped = batch.weights == 0
    assert set(batch.env_ids[dropped].tolist()) == {3}
    assert len(set(batch.obs["policy"][dropped][:, 2].tolist())) == 1


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_policies_are_exported_with_their_normaliser(tmp_path: Path) -> None:
    runner = make()
    runner.learn(1)
    obs = torch.randn(5, 2) * 3
    one = torch.jit.load(str(runner.export_policy_to_jit(tmp_path, head=1)))
    every = torch.jit.load(str(runner.export_policy_to_jit(tmp_path, "all.pt")))
    expected = runner.actor.act(obs.repeat(2, 1), deterministic=True).action[5:]
    assert torch.allclose(one(obs), expected, atol=1e-6)
    assert torch.allclose(every(obs, torch.ones(5, dtype=torch.long)), expected, atol=1e-6)
    assert runner.export_policy_to_onnx(tmp_path, head=0).stat().st_size > 1000


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="final_obs=True"):
        make(env=PredictableEnv(final_obs=False))
    with pytest.raises(ConfigurationError, match="Did you mean parallel"):
        make(mode="paralel")
    for name in ("value_device", "policy_device"):
        with pytest.raises(ConfigurationError, match=f"{name}='cpu' belongs to mode=parallel"):
            ParallelQRunnerCfg(**{name: "cpu"}).validate()
    for name, value in (("save_interval", -1), ("nan_guard_interval", -1), ("max_lead", 0)):
        with pytest.raises(ConfigurationError, match=f"{name}={value}"):
            ParallelQRunnerCfg(**{name: value}).validate()
    with pytest.raises(ConfigurationError, match=r"prior_fraction=0.5 .* give one, or set it to 0"):
        make(prior_fraction=0.5).learn(1)
    with pytest.raises(ConfigurationError, match="num_envs=16"):
        make(heads=3)
    bundle = make().save(tmp_path / "bundle")
    with pytest.raises(CheckpointError, match="num_policies: 2 in the bundle, 4 asked for"):
        make(heads=4).load(bundle)


def test_episodes_of_the_portfolio_do_not_count_for_the_heads() -> None:
    class Generous(IdentityEnv):
        """Pays much where the portfolio drives, whatever it does."""

        def step(self, actions: torch.Tensor) -> Any:
            obs, _, dones, extras = super().step(actions)
            return obs, 100.0 * runner.algorithm.prior_mask.squeeze(-1), dones, extras

    actor = PopulationActor(2, 2, 2, PopulationActorCfg(trunk=[32], adapter_dim=16))
    runner = make(env=Generous(num_envs=16, episode_steps=4), actor=actor, prior_fraction=0.5)
    runner.learn(1)
    assert int(runner.algorithm.prior_mask.sum()) == 8
    assert [runner.metrics[f"Heads/mean_reward_{head}"] for head in range(2)] == [0.0, 0.0]
    assert runner.metrics["Train/mean_episode_length"] == 4.0


def test_a_seeded_actor_is_trained_in_place_and_waits() -> None:
    actor = PopulationActor(2, 2, 2, PopulationActorCfg(trunk=[32], adapter_dim=16))
    start = [parameter.clone() for parameter in actor.parameters()]
    runner = make(actor=actor, critic_warmup=40)
    runner.learn(1)
    assert all(torch.equal(a, b) for a, b in zip(start, actor.parameters(), strict=True))
    runner.learn(2)
    unchanged = [torch.equal(a, b) for a, b in zip(start, actor.parameters(), strict=True)]
    assert not all(unchanged)


def test_the_time_of_an_iteration_includes_the_wait_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]

    def wait(_: MeanLog) -> dict[str, float]:  # reading the means is where a GPU finishes what was queued
        clock[0] += 5.0
        return {}

    monkeypatch.setattr("myriad_lab.runners.parallel_q_runner.time.perf_counter", lambda: clock[0])
    monkeypatch.setattr(MeanLog, "read", wait)
    runner = make()
    runner.learn(2)
    assert runner.wall_time == 10.0
    assert runner.metrics["Perf/iteration_time"] == 5.0
