"""K-Myriad inside RSL-RL's own runner, on an env whose every row can be predicted."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from rsl_rl.runners import OnPolicyRunner

from myriad_lab.algorithms.kmyriad import KMyriad
from myriad_lab.errors import ConfigurationError
from myriad_lab.runners.rsl_rl_kmyriad import RslRlKMyriad
from predictable_env import PredictableEnv


class IsaacLike(PredictableEnv):
    """As Isaac Lab's wrapper for RSL-RL: ``reset`` returns extras too, and old final observations stay."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.kept: dict[str, Any] = {}
        self.reset_buf = torch.zeros(self.num_envs, dtype=torch.bool)
        self.ended_in_viewer: tuple[int, int] | None = None
        self.made_in_step: torch.Tensor | None = None

    @property
    def unwrapped(self) -> IsaacLike:
        return self

    def reset(self, env_ids=None):  # pyright: ignore[reportIncompatibleMethodOverride]
        if self.made_in_step is not None and env_ids is None:
            self.made_in_step[:] = 0.0
        obs = super().reset(env_ids)
        return obs if env_ids is not None else (obs, {})

    def step(self, actions):
        obs, rewards, dones, extras = super().step(actions)
        self.reset_buf = dones.bool()
        self.made_in_step = actions * 1.0  # of the mode that the runner steps in, as the env's own buffers are
        if self.ended_in_viewer is not None and self.ended_in_viewer[0] == self.global_step:
            dones[self.ended_in_viewer[1]] = 1  # Isaac Lab has no final observation for it, and an old one stays
        if self.reset_buf.any():
            self.kept = {"final_obs": extras["final_obs"]} if "final_obs" in extras else {}
        return obs, rewards, dones, {"time_outs": extras["time_outs"], "log": {}, **self.kept}


def runner_of(env: IsaacLike, tmp_path, steps: int = 6, **algorithm: Any) -> OnPolicyRunner:
    settings = {"k": 3, "num_epochs": 1, "actor": {"trunk": [8], "adapter_dim": 4}, **algorithm}
    cfg = {
        "num_steps_per_env": steps,
        "save_interval": 1,
        "seed": 3,
        "obs_groups": {"actor": ["policy"], "critic": ["critic"]},
        "algorithm": {
            "class_name": "myriad_lab.runners.rsl_rl_kmyriad:RslRlKMyriad",
            "num_policies": 2,
            "settings": settings,
        },
    }
    return OnPolicyRunner(env, cfg, log_dir=str(tmp_path), device="cpu")


def test_rsl_rls_runner_trains_saves_and_resumes_a_population(tmp_path):
    env = IsaacLike(num_envs=4, lengths=[6, 6, 6, 6])
    runner = runner_of(env, tmp_path / "a")
    before = [p.clone() for p in runner.alg.algorithm.actor.parameters()]
    runner.learn(2)
    after = list(runner.alg.algorithm.actor.parameters())
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    saved = sorted((tmp_path / "a").glob("model_*.pt"))
    other = runner_of(IsaacLike(num_envs=4, lengths=[6] * 4), tmp_path / "b")
    other.load(str(saved[-1]))
    assert all(torch.equal(a, b) for a, b in zip(after, other.alg.algorithm.actor.parameters(), strict=True))
    assert other.alg.algorithm.iteration == 2
    obs = env.get_observations()
    assert runner.get_inference_policy(device="cpu")(obs).shape == (4, 2)


def test_a_rollout_begins_with_all_envs_and_holds_true_last_states(tmp_path, monkeypatch):
    env = IsaacLike(num_envs=4, lengths=[4, 6, 6, 6])
    runner = runner_of(env, tmp_path)
    rollouts = []
    update = KMyriad.update

    def keep(self: KMyriad):
        rollouts.append(self.storage["features"].clone())
        return update(self)

    monkeypatch.setattr(KMyriad, "update", keep)
    runner.learn(2)
    assert len(rollouts) == 2
    for features in rollouts:  # (env id, step after the action); env 0 is in the middle of an episode at the end
        assert features[:, 0, 1].tolist() == [1, 2, 3, 4, 1, 2]
        assert features[:, 1, 1].tolist() == [1, 2, 3, 4, 5, 6]


def test_an_episode_ended_in_the_viewer_is_no_part_of_the_rollout(tmp_path, monkeypatch):
    env = IsaacLike(num_envs=4, lengths=[6, 6, 3, 6])
    env.ended_in_viewer = (5, 1)
    runner = runner_of(env, tmp_path)
    valid = []
    update = KMyriad.update

    def keep(self: KMyriad):
        valid.append(self.storage["valid"].clone())
        return update(self)

    monkeypatch.setattr(KMyriad, "update", keep)
    runner.learn(1)
    assert valid[0][:, 1].tolist() == [True] * 4 + [False] * 2
    assert bool(valid[0][:, [0, 2, 3]].all())


@pytest.mark.parametrize("state_dependent_std", [False, True])
def test_the_log_tells_the_noise_of_the_actions_drawn_last(tmp_path, state_dependent_std):
    actor = {"trunk": [8], "adapter_dim": 4, "init_log_std": -1.5, "state_dependent_std": state_dependent_std}
    env = IsaacLike(num_envs=4, lengths=[6] * 4)
    runner = runner_of(env, tmp_path, actor=actor)
    obs = env.get_observations()
    runner.alg.act(obs)
    told = runner.alg.get_policy().output_std
    wanted = runner.alg.algorithm.actor(obs["policy"].unflatten(0, (2, -1)))[1].exp()
    assert torch.equal(told, wanted)
    if not state_dependent_std:
        assert told.mean().item() == pytest.approx(math.exp(-1.5), rel=1e-5)


def test_what_does_not_fit_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match=r"num_steps_per_env=5.*expected 6"):
        runner_of(IsaacLike(num_envs=4, lengths=[6] * 4), tmp_path, steps=5)
    with pytest.raises(ConfigurationError, match="Unknown field 'kk' of KMyriadCfg"):
        runner_of(IsaacLike(num_envs=4, lengths=[6] * 4), tmp_path, kk=1)
    with pytest.raises(ConfigurationError, match="k='many' does not fit KMyriadCfg"):
        runner_of(IsaacLike(num_envs=4, lengths=[6] * 4), tmp_path, k="many")
    with pytest.raises(ConfigurationError, match=r"compute_final_obs=true"):
        runner_of(IsaacLike(num_envs=4, lengths=[6] * 4, final_obs=False), tmp_path).learn(1)

    class Featureless(IsaacLike):
        def get_observations(self):
            return super().get_observations().exclude("features")

    with pytest.raises(ConfigurationError, match="needs a group 'features'"):
        runner_of(Featureless(num_envs=4, lengths=[6] * 4), tmp_path)
    alg = runner_of(IsaacLike(num_envs=4, lengths=[6] * 4), tmp_path).alg
    assert isinstance(alg, RslRlKMyriad)
    with pytest.raises(ConfigurationError, match="loaded as a whole; leave --no-resume_optimizer_state out"):
        alg.load(alg.save(), {"actor": True, "optimizer": False})
    with pytest.raises(ConfigurationError, match="one process"):
        alg.broadcast_parameters()
