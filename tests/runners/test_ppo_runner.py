from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from identity_env import IdentityEnv
from myriad_lab.errors import CheckpointError, ConfigurationError
from myriad_lab.monitor.logger import make_loggers
from myriad_lab.monitor.nan_guard import NanGuardError
from myriad_lab.networks.population import PopulationActor, PopulationActorCfg
from myriad_lab.portfolio.bundle import load_bundle
from myriad_lab.portfolio.run_folder import RunFolder
from myriad_lab.runners.budget import EnvStepBudget, WallClockBudget
from myriad_lab.runners.callbacks import Callback
from myriad_lab.runners.ppo_cfg import PPOCfg
from myriad_lab.runners.ppo_runner import PPORunner, PPORunnerCfg
from myriad_lab.runners.rsl_rl_bridge import HeadModel, RslEnvView


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path, "ppo")


def small(**changes: object) -> PPOCfg:
    dims = {"actor_hidden_dims": [32], "critic_hidden_dims": [32], "num_learning_epochs": 4}
    return PPOCfg(**{"num_steps_per_env": 16, "gamma": 0.5, "learning_rate": 3e-3, "init_std": 0.5, **dims, **changes})  # pyright: ignore


def make_head(num_policies: int = 1, **changes: object) -> PopulationActor:
    torch.manual_seed(3)
    cfg = PopulationActorCfg(trunk=[16], adapter_dim=16, **changes)  # pyright: ignore
    return PopulationActor(2, 2, num_policies, cfg)


def make_runner(head: PopulationActor | None = None, run: RunFolder | None = None, **changes: object) -> PPORunner:
    return PPORunner(IdentityEnv(), small(**changes), PPORunnerCfg(save_interval=5), run, seed=1, head=head)


def test_learns_the_identity_and_logs_it(folder: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    runner = make_runner(run=folder)
    runner.loggers = make_loggers("none", folder.path)
    runner.learn(25)
    for logger in runner.loggers:
        logger.close()
    rows = folder.read_metrics()
    # the mean over an episode of 8 steps; a policy of zeros gets 8 * (1 - 2 * 0.8**2 / 3) = 4.6
    assert rows[0]["Train/mean_reward"] < 6.0
    env = IdentityEnv(seed=9)
    with torch.no_grad():
        error = (runner.get_inference_policy()(env.get_observations()) - env.target).abs().mean()
    assert error < 0.1
    assert rows[-1]["env_steps"] == 25 * 16 * 32
    assert [row["iteration"] for row in rows] == list(range(25))
    expected = {"wall_time", "Train/success", "Loss/value", "Loss/surrogate", "Policy/mean_std", "Metrics/distance"}
    assert expected <= rows[-1].keys()
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "")
    assert {path.name for path in folder.path.iterdir()} == {"checkpoints", "metrics.jsonl"}


@pytest.mark.parametrize("normalized", [True, False])
def test_conversion_is_exact(normalized: bool) -> None:
    runner = make_runner(obs_normalization=normalized, activation="silu")
    runner.learn(3)
    obs = IdentityEnv(num_envs=64, seed=5).get_observations()
    actor, model = runner.actor, runner._rsl.alg.get_policy()
    with torch.no_grad():
        expected = model(obs)
        mean, log_std = actor(obs["policy"].unsqueeze(0))
        model(obs, stochastic_output=True)
    torch.testing.assert_close(mean[0], expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(log_std[0].exp(), model.output_std, rtol=1e-4, atol=1e-5)
    assert expected.abs().max() > 0.1  # not all zero
    assert actor.act(obs["policy"], deterministic=True).action.abs().max() <= 1.0


def test_bundle_acts_like_the_trained_policy(folder: RunFolder) -> None:
    runner = make_runner(run=folder)
    runner.learn(6)
    obs = IdentityEnv(num_envs=16, seed=5).get_observations()
    bundle = load_bundle(folder.latest())
    assert bundle.manifest.algorithm == "ppo"
    assert bundle.manifest.iteration == 6
    with torch.no_grad():
        action = bundle.actor.act(obs["policy"], deterministic=True).action
    torch.testing.assert_close(action, runner.get_inference_policy()(obs))
    assert [path.name for path in folder.list_checkpoints()] == ["iteration_000005", "iteration_000006"]


@pytest.mark.parametrize("state_dependent_std", [True, False])
@pytest.mark.parametrize("normalized", [True, False])
def test_from_head_starts_as_the_head(state_dependent_std: bool, normalized: bool) -> None:
    changes = {"state_dependent_std": state_dependent_std, "obs_normalization": normalized}
    head = make_head(3, **changes).select([1])
    if normalized:
        head.normalizer.update(torch.randn(100, 2) * 3.0 + 1.0)  # pyright: ignore
    runner = make_runner(head)
    obs = IdentityEnv(num_envs=16, seed=5).get_observations()
    with torch.no_grad():
        expected = head.act(obs["policy"], deterministic=True).action
        before = runner.get_inference_policy()(obs)
    assert torch.equal(before, expected)
    runner.learn(2)
    assert not torch.allclose(runner.get_inference_policy()(obs), expected)
    with torch.no_grad():  # the portfolio itself is untouched
        assert torch.equal(head.act(obs["policy"], deterministic=True).action, expected)


def test_a_head_plays_in_training_what_its_bundle_plays() -> None:
    head = make_head(squash="clip")
    runner = make_runner(head)
    played = []
    runner.env.step = lambda actions, step=runner.env.step: played.append(actions) or step(actions)
    runner._view.step(torch.full((runner.env.num_envs, 2), 2.0))
    assert torch.equal(played[0], head.squash(torch.full_like(played[0], 2.0)))
    assert played[0].eq(1.0).all()


def test_from_head_learns_and_keeps_the_network(folder: RunFolder) -> None:
    head = make_head()
    runner = make_runner(head, folder)
    runner.learn(25)
    bundle = load_bundle(folder.latest())
    assert bundle.actor.cfg == head.cfg
    env = IdentityEnv(num_envs=64, seed=9)
    with torch.no_grad():
        error = (bundle.actor.act(env.target, deterministic=True).action - env.target).abs().mean()
    assert error < 0.15


def test_head_model_explores_at_least_by_the_floor() -> None:
    head = make_head(init_log_std=-4.9)
    obs = IdentityEnv().get_observations()
    model = HeadModel(obs, {"actor": ["policy"]}, "actor", 2, head, min_log_std=-1.0)
    model(obs, stochastic_output=True)
    torch.testing.assert_close(model.output_std, torch.full((32, 2), -1.0).exp())
    mean, std = model.output_distribution_params
    assert torch.equal(model.get_kl_divergence((mean, std), (mean, std)), torch.zeros(32))
    torch.testing.assert_close(model.get_kl_divergence((mean, std), (mean + std, std)), torch.ones(32))


def test_a_head_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="3 policies"):
        make_runner(make_head(3))


def assert_alike(first: PPORunner, second: PPORunner) -> None:
    ours, theirs = (runner._rsl.alg.get_policy().state_dict() for runner in (first, second))
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name
    assert first.metrics["Train/mean_reward"] == second.metrics["Train/mean_reward"]


@pytest.mark.parametrize("from_head", [False, True])
def test_resume_is_bit_exact_and_saving_changes_nothing(tmp_path: Path, from_head: bool) -> None:
    def start(run: RunFolder | None = None) -> PPORunner:
        return make_runner(make_head() if from_head else None, run)

    unsaved = start()
    unsaved.learn(7)
    saved = start(RunFolder.create(tmp_path, "whole"))
    saved.learn(7)  # saves after 5 iterations
    assert_alike(unsaved, saved)
    assert saved.run_folder is not None
    resumed = make_runner()  # without the head: the bundle knows that there was one
    resumed.load(saved.run_folder.checkpoint_path(5))
    assert (resumed.iteration, resumed.env_steps) == (5, 5 * 16 * 32)
    resumed.learn(2)
    assert_alike(saved, resumed)


def test_episodes_that_a_resume_cannot_go_on_with_are_forgotten(tmp_path: Path) -> None:
    class StartsAnew(IdentityEnv):
        resumes_episodes = False

        def load_state_dict(self, state: dict) -> None:
            super().load_state_dict(state)
            self.reset()

    def start() -> PPORunner:
        return PPORunner(StartsAnew(), small(num_steps_per_env=12, random_episode_start=False), PPORunnerCfg(), seed=1)

    half, rest = start(), start()
    half.learn(1)  # four steps into the second episode of eight
    rest.load(half.save(tmp_path / "bundle"))
    rest.learn(1)
    assert rest.metrics["Train/mean_episode_length"] == 8.0


def test_another_learning_rate_counts_from_the_resume_on(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, "run")
    make_runner(run=run, schedule="fixed", learning_rate=1e-3).learn(5)
    for asked in (1e-3, 2e-4):
        resumed = make_runner(schedule="fixed", learning_rate=asked)
        resumed.load(run.checkpoint_path(5))
        resumed.learn(1)
        assert resumed.metrics["Policy/learning_rate"] == asked
        assert {group["lr"] for group in resumed._rsl.alg.optimizer.param_groups} == {asked}


class LateStop(PPORunner):
    """Is asked to stop by the time it looks for the third time."""

    looks = 0

    @property
    def _stop(self) -> bool:
        self.looks += 1
        return self.looks > 2

    @_stop.setter
    def _stop(self, value: bool) -> None: ...


def test_whenever_the_end_is_asked_for_the_last_iteration_is_saved(folder: RunFolder) -> None:
    runner = LateStop(IdentityEnv(), small(), PPORunnerCfg(save_interval=5), folder)
    runner.learn(100)
    assert 1 <= runner.iteration <= 2
    assert folder.latest() == folder.checkpoint_path(runner.iteration)


@pytest.mark.parametrize("from_head", [False, True])
def test_looking_at_the_policy_draws_no_random_numbers(from_head: bool) -> None:
    runner = make_runner(make_head() if from_head else None)
    before = torch.get_rng_state()
    runner.actor.select([0]).single(0)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_broken_critic_is_not_saved(tmp_path: Path) -> None:
    runner = make_runner()
    runner._rsl.alg.critic.mlp[0].bias.data[3] = float("nan")
    with pytest.raises(NanGuardError, match=r"critic_state_dict\.mlp\.0\.bias"):
        runner.save(tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_resume_refuses_another_task_and_size(tmp_path: Path) -> None:
    make_runner().save(tmp_path / "bundle")
    with pytest.raises(CheckpointError, match="in the env"):
        PPORunner(IdentityEnv(num_actions=3), small()).load(tmp_path / "bundle")
    with pytest.raises(CheckpointError, match="num_envs: 32 in the bundle, 16 asked for"):
        PPORunner(IdentityEnv(num_envs=16), small()).load(tmp_path / "bundle")


def test_time_outs_are_bootstrapped_and_diverged_rows_pay_nothing() -> None:
    env = IdentityEnv(num_envs=4)
    steps = []
    view = RslEnvView(env, ["policy"], "tanh", lambda step, extras: steps.append(step))
    env.next_diverged = torch.tensor([True, False, False, False])
    obs, rewards, dones, extras = view.step(torch.full((4, 2), 20.0))
    assert torch.equal(env.last_actions, torch.ones(4, 2))
    assert list(obs.keys()) == ["policy"]
    assert rewards[0] == 0.0
    assert rewards[1] != 0.0
    assert dones.tolist() == [1, 0, 0, 0]
    assert extras["time_outs"].tolist() == [True, False, False, False]
    assert steps[0].valid.tolist() == [False, True, True, True]
    clipping = RslEnvView(env, ["policy"], "clip")
    clipping.step(torch.full((4, 2), 0.5))
    assert torch.equal(env.last_actions, torch.full((4, 2), 0.5))


def test_budgets_stop_after_the_iteration() -> None:
    runner = make_runner()
    runner.callbacks.callbacks.append(EnvStepBudget(3 * 16 * 32 - 1))
    runner.learn(50)
    assert runner.iteration == 3
    runner.callbacks.callbacks[:] = [WallClockBudget(1e-9)]
    runner.learn(50)
    assert runner.iteration == 4
    runner.callbacks.callbacks[:] = [WallClockBudget(1e6)]
    runner.wall_time = 1e6 - 1e-9  # as after a resume: the time before it counts
    runner.learn(50)
    assert runner.iteration == 5
    for budget in (WallClockBudget, EnvStepBudget):
        with pytest.raises(ConfigurationError, match="must be positive"):
            budget(0)


def test_callbacks_see_every_step_and_stop_comes_after_an_error() -> None:
    seen: list[str] = []

    class Watch(Callback):
        def on_step(self, runner: object, step: object) -> None:
            seen.append("step")

        def on_iteration(self, runner: object, metrics: dict[str, float]) -> None:
            raise RuntimeError("broken callback")

        def on_stop(self, runner: object) -> None:
            seen.append("stop")

    runner = make_runner()
    runner.callbacks.callbacks.append(Watch())
    with pytest.raises(RuntimeError, match="broken callback"):
        runner.learn(1)
    assert seen == ["step"] * 16 + ["stop"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_mini_batches": 10_000}, "10000 is more than the 512"),
        ({"schedule": "adaptiv"}, "adaptive"),
        ({"activation": "sillu"}, "silu"),
        ({"gamma": 1.5}, r"must lie in \[0, 1\]"),
        ({"learning_rate": 0.0}, "must be positive"),
        ({"clip_param": -0.2}, "clip_param=-0.2 must be positive"),
        ({"entropy_coef": -1.0}, "must not be negative"),
        ({"actor_hidden_dims": []}, "at least one layer"),
    ],
)
def test_bad_settings_are_named(change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make_runner(**change)


@pytest.mark.parametrize("from_head", [False, True])
def test_exported_policy_acts_like_the_runner(tmp_path: Path, from_head: bool) -> None:
    from myriad_lab.export.torchscript import load_torchscript

    runner = make_runner(make_head() if from_head else None)
    runner.learn(1)
    exported = load_torchscript(runner.export_policy_to_jit(tmp_path))
    obs = IdentityEnv(num_envs=16, seed=5).get_observations()
    torch.testing.assert_close(exported(obs["policy"]), runner.get_inference_policy()(obs))


def test_configuration_is_plain(folder: RunFolder) -> None:
    runner = make_runner(run=folder)
    runner.learn(1)
    manifest = json.loads((folder.latest() / "manifest.json").read_text())
    assert manifest["config"]["agent"]["actor_hidden_dims"] == [32]
    assert manifest["network"]["cfg"]["squash"] == "clip"
