from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from myriad_lab.algorithms.kmyriad import KMyriadCfg
from myriad_lab.errors import CheckpointError, ConfigurationError
from myriad_lab.functional.collective import Collective
from myriad_lab.monitor.logger import make_loggers
from myriad_lab.monitor.nan_guard import NanGuardError
from myriad_lab.networks.population import PopulationActor, PopulationActorCfg
from myriad_lab.portfolio.bundle import load_bundle
from myriad_lab.portfolio.run_folder import RunFolder
from myriad_lab.runners.callbacks import Callback
from myriad_lab.runners.population_runner import PopulationRunner, PopulationRunnerCfg
from myriad_lab.tasks.registry import make_env
from predictable_env import PredictableEnv

TASK = "Myriad-PointMaze-Maze"
NETWORK = PopulationActorCfg(trunk=[16], adapter_dim=8, init_log_std=-0.5, obs_normalization=True)


def make_runner(folder=None, *, env=None, m=2, num_envs=4, seed=0, loop=None, callbacks=(), **changes):
    env = env or make_env(TASK, num_envs=num_envs, seed=seed, overrides={"episode_steps": 10})
    cfg = KMyriadCfg(actor=NETWORK, **({"k": 2, "num_epochs": 2} | changes))
    run_folder = None if folder is None else RunFolder(folder)
    loggers = make_loggers("jsonl", folder) if folder is not None else ()
    runner_cfg = PopulationRunnerCfg(**(loop or {}))
    return PopulationRunner(
        env, cfg, runner_cfg, run_folder, seed=seed, num_policies=m, callbacks=callbacks, loggers=loggers
    )


def weights(runner: PopulationRunner) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in runner.actor.parameters()])


@pytest.mark.parametrize("epochs", [1, 2])
def test_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path, epochs):
    whole = make_runner(num_epochs=epochs)
    whole.learn(5)
    first = make_runner(tmp_path, num_epochs=epochs)
    first.learn(2)
    resumed = make_runner(tmp_path, num_epochs=epochs)
    torch.rand(7)  # the global generators have moved on meanwhile
    resumed.load(RunFolder(tmp_path).latest())
    resumed.learn(3)
    assert torch.equal(weights(whole), weights(resumed))
    assert (resumed.iteration, resumed.env_steps) == (5, 5 * 4 * 10)
    timing = ("Perf/", "wall_time")
    same = {k: v for k, v in whole.metrics.items() if not k.startswith(timing)}
    assert same == {k: v for k, v in resumed.metrics.items() if not k.startswith(timing)}
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["iteration"] for row in rows] == [0, 1, 2, 3, 4]


def test_a_resume_remembers_what_is_not_measured_in_every_iteration(tmp_path):
    first = make_runner(tmp_path, statistics_interval=5)
    first.learn(2)
    resumed = make_runner(tmp_path, statistics_interval=5)
    resumed.load(RunFolder(tmp_path).latest())
    resumed.learn(1)
    assert "Population/diversity" not in resumed.metrics
    before, after = (load_bundle(path).manifest for path in RunFolder(tmp_path).list_checkpoints()[-2:])
    assert (before.iteration, after.iteration) == (2, 3)
    assert after.head_metrics == before.head_metrics
    assert len(after.head_metrics["entropy"]) == 2
    assert after.metrics["Population/diversity"] == before.metrics["Population/diversity"] is not None


def test_run_leaves_bundles_metrics_and_recordings(tmp_path):
    runner = make_runner(tmp_path, loop={"save_interval": 2, "keep_checkpoints": 1})
    runner.learn(5)
    run = RunFolder(tmp_path)
    bundle = load_bundle(run.latest())
    assert bundle.path.name == "iteration_000005"
    assert bundle.manifest.best_metric["name"] == "Population/coverage"
    assert len(bundle.manifest.head_metrics["entropy"]) == 2
    assert bundle.manifest.arena is not None
    assert run.best().is_dir()
    rows = [json.loads(line) for line in run.metrics_file.read_text().splitlines()]
    wanted = ("entropy_pool", "entropy_heads_mean", "diversity", "diversity_normalised", "coverage", "ess")
    for row in rows:
        assert all(np.isfinite(row[f"Population/{name}"]) for name in wanted)
        assert row["Perf/env_steps_per_second"] > 0
    cumulative = [row["Population/coverage_cumulative"] for row in rows]
    assert cumulative == sorted(cumulative)
    best = max(run.list_checkpoints(), key=lambda path: load_bundle(path).manifest.score())
    assert load_bundle(run.best()).manifest.score() == load_bundle(best).manifest.score()
    for name, iteration in (("visits_before.npz", 0), ("visits.npz", 4)):
        with np.load(run.recordings / name) as file:
            assert file["features"].shape == (2, 2, 10, 2)
            assert file["valid"].all()
            assert json.loads(str(file["info"]))["iteration"] == iteration


def test_recorded_features_are_the_true_states_in_order(tmp_path):
    """In this env the features are (env id, step): the last step is the final state, not that of the reset."""
    env = PredictableEnv(num_envs=4, lengths=[5] * 4, diverge_at=((3, 2),))
    runner = make_runner(tmp_path, env=env, k=1, particle_stride=1)
    runner.learn(1)
    with np.load(tmp_path / "recordings" / "visits.npz") as file:
        features, valid = file["features"], file["valid"]
    assert valid.sum() == 4 * 5 - 3
    assert not valid[1, 0, 2:].any()
    for policy, env_of_policy in ((0, 0), (0, 1), (1, 1)):
        rows = features[policy, env_of_policy]
        assert rows[:, 0].tolist() == [2 * policy + env_of_policy] * 5
        assert rows[:, 1].tolist() == [1, 2, 3, 4, 5]


class Spy(Callback):
    def __init__(self) -> None:
        self.calls: list[str] = []

    def on_start(self, runner):
        self.calls.append("start")

    def on_step(self, runner, step):
        if self.calls[-1] != "step":
            self.calls.append("step")

    def on_iteration(self, runner, metrics):
        self.calls.append("iteration")
        metrics["Spy/seen"] = float(runner.iteration)
        if runner.iteration == 1:
            runner.request_stop()

    def on_checkpoint(self, runner, path):
        self.calls.append(f"checkpoint {path.name}")

    def on_stop(self, runner):
        self.calls.append("stop")


def test_stop_on_request_finishes_the_iteration_and_saves(tmp_path):
    spy = Spy()
    runner = make_runner(tmp_path, callbacks=[spy])
    runner.learn(100)
    loop = ["step", "iteration", "step", "iteration"]
    assert spy.calls == ["start", *loop, "checkpoint iteration_000002", "stop"]
    last = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["Spy/seen"] == 1.0


class StopWhen(Callback):
    """Asks for the end at the end of an iteration, as a budget does, or before the loop looks again."""

    def __init__(self, iteration: int, hook: str) -> None:
        self.iteration, self.hook = iteration, hook

    def on_iteration(self, runner, metrics):
        if runner.iteration + 1 == self.iteration and self.hook == "on_iteration":
            runner.request_stop()

    def on_checkpoint(self, runner, path):
        if runner.iteration == self.iteration and self.hook == "on_checkpoint":
            runner.request_stop()


@pytest.mark.parametrize(("iteration", "hook"), [(3, "on_iteration"), (4, "on_iteration"), (4, "on_checkpoint")])
def test_every_checkpoint_has_the_recording_of_its_rollout(tmp_path, iteration, hook):
    runner = make_runner(tmp_path, loop={"save_interval": 2}, callbacks=[StopWhen(iteration, hook)])
    last = []
    update = runner.algorithm.update
    runner.algorithm.update = lambda: last.append(runner.algorithm.storage["features"].clone()) or update()
    runner.learn(100)
    assert runner.iteration == iteration
    assert RunFolder(tmp_path).latest().name == f"iteration_{iteration:06d}"
    with np.load(tmp_path / "recordings" / "visits.npz") as file:
        assert json.loads(str(file["info"]))["iteration"] == iteration - 1
        expected = last[-1].unflatten(1, (2, -1)).permute(1, 2, 0, 3)
        assert np.array_equal(file["features"], expected.numpy())


def test_a_stop_between_an_iteration_and_the_next_is_saved(tmp_path):
    runner = make_runner(tmp_path)
    iterate = runner._iterate

    def and_stop(*args):
        iterate(*args)
        runner.request_stop()

    runner._iterate = and_stop
    runner.learn(100)
    assert RunFolder(tmp_path).latest().name == "iteration_000001"


class BesideAnother(Collective):
    """A rank beside one on which every flag is set."""

    def any(self, flags):
        return torch.ones_like(flags)


def test_envs_start_anew_where_those_of_another_rank_have_to(monkeypatch):
    runner, resets = make_runner(), []
    monkeypatch.setattr(runner.env, "reset", lambda reset=runner.env.reset: (resets.append(1), reset())[1])
    runner.learn(1)
    assert resets == []
    runner.ranks = BesideAnother()
    runner._rollout()
    assert resets == [1]


def test_envs_that_are_not_at_a_start_are_reset_before_the_rollout():
    env = make_env(TASK, num_envs=4, overrides={"episode_steps": 10})
    runner = make_runner(env=env)
    env.step(torch.ones(4, 2))
    runner.learn(1)
    assert runner.metrics["Policy/valid_share"] == 1.0


def test_not_a_number_is_named_with_env_policy_and_term():
    runner = make_runner()
    inner = runner.env.step

    def broken_step(actions):
        obs, rewards, dones, extras = inner(actions)
        obs["policy"][3, 1] = float("nan")
        return obs, rewards, dones, extras

    runner.env.step = broken_step
    with pytest.raises(NanGuardError, match=r"'position'.*env ids 3, policy ids 1"):
        runner.learn(1)


def test_inference_policy_is_the_mean_of_each_envs_own_head():
    runner = make_runner()
    runner.learn(1)
    obs = runner.env.get_observations()
    actions = runner.get_inference_policy()(obs)
    torch.testing.assert_close(actions[2:], runner.actor.single(1)(obs["policy"][2:]))


def test_exported_file_agrees_with_the_policy(tmp_path):
    runner = make_runner()
    path = runner.export_policy_to_jit(tmp_path, head=1)
    from myriad_lab.export.torchscript import load_torchscript

    obs = torch.randn(3, runner.actor.num_obs)
    torch.testing.assert_close(load_torchscript(path)(obs), runner.actor.single(1)(obs))


def test_bad_input_is_refused_before_any_work(tmp_path):
    with pytest.raises(ConfigurationError, match="num_policies=3"):
        make_runner(m=3)
    env = make_env(TASK, num_envs=4, final_obs=False)
    with pytest.raises(ConfigurationError, match="final_obs=True"):
        make_runner(env=env)
    with pytest.raises(ConfigurationError, match="save_interval=0"):
        make_runner(loop={"save_interval": 0})
    other = PopulationActor(3, 2, 2, NETWORK)
    with pytest.raises(ConfigurationError, match="num_obs=3"):
        PopulationRunner(
            make_env(TASK, num_envs=4),
            KMyriadCfg(actor=NETWORK),
            PopulationRunnerCfg(),
            None,
            num_policies=2,
            actor=other,
        )


@pytest.mark.parametrize(("change", "message"), [({"m": 4}, "num_policies"), ({"num_envs": 8}, "num_envs: 4")])
def test_resuming_with_other_sizes_is_refused(tmp_path, change, message):
    make_runner(tmp_path).learn(1)
    with pytest.raises(CheckpointError, match=message):
        make_runner(tmp_path, **change).load(RunFolder(tmp_path).latest())


def test_an_undone_update_is_told_of_once(caplog, monkeypatch):
    undone = torch.tensor(1.0)
    runner = make_runner()
    update = runner.algorithm.update
    monkeypatch.setattr(runner.algorithm, "update", lambda: update() | {"Loss/restored": undone})
    runner.learn(2)
    assert [record.message[:38] for record in caplog.records] == ["The update of iteration 1 was not fini"]
    assert "learning_rate" in caplog.text


def test_population_learns_to_spread_out_over_an_empty_arena():
    """A quarter of a minute on one core: clearly more entropy and coverage than the untrained population."""
    env = make_env("Myriad-PointMaze-Empty", num_envs=64, seed=1, overrides={"episode_steps": 60})
    network = PopulationActorCfg(trunk=[32], adapter_dim=32, state_dependent_std=False, init_log_std=-0.5)
    cfg = KMyriadCfg(actor=network, k=4, particle_stride=5, learning_rate=3e-3)
    runner = PopulationRunner(env, cfg, PopulationRunnerCfg(), None, seed=1, num_policies=4)
    runner.learn(1)
    before = dict(runner.metrics)
    runner.learn(25)
    assert runner.metrics["Population/entropy_pool"] > before["Population/entropy_pool"] + 0.7
    assert runner.metrics["Population/coverage"] > 1.5 * before["Population/coverage"]


def test_the_time_of_an_iteration_includes_the_wait_for_the_device(monkeypatch):
    clock = [0.0]

    def wait(tensors):  # reading the metrics is where a GPU finishes what was queued
        clock[0] += 5.0
        return {name: float(value) for name, value in tensors.items()}

    monkeypatch.setattr("myriad_lab.runners.population_runner.time.perf_counter", lambda: clock[0])
    monkeypatch.setattr("myriad_lab.runners.population_runner.to_floats", wait)
    runner = make_runner()
    runner.learn(1)
    assert runner.wall_time == clock[0] == 10.0  # the env's log, then the metrics of the update
    assert runner.metrics["Perf/update_s"] == 5.0
