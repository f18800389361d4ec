"""The adapter over an env of Isaac Lab whose every row can be predicted; the real ones are in tests/contract."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from envs.isaaclab.fake import FakeIsaacEnv
from myriad_lab.envs.isaaclab.adapter import IsaacLabEnv
from myriad_lab.envs.isaaclab.cfg import IsaacLabCfg
from myriad_lab.errors import BrokenPolicyError, ConfigurationError


def wrap(inner: FakeIsaacEnv, **cfg) -> IsaacLabEnv:
    return IsaacLabEnv(inner, task_id="Fake", cfg=IsaacLabCfg(**cfg))


def still(env: IsaacLabEnv) -> torch.Tensor:
    return torch.zeros(env.num_envs, env.num_actions)


def row(env_id: int, step: int, episode: int) -> list[float]:
    return [float(env_id), float(step), float(episode)]


def test_ends_are_exclusive_and_final_observations_are_those_before_the_reset():
    inner = FakeIsaacEnv([2, 3, 5])
    inner.terminating[1] = True
    env = wrap(inner)
    first = int(inner.episodes[0])
    assert "final_obs" in env.step(still(env))[3]
    obs, rewards, dones, extras = env.step(still(env))
    assert dones.tolist() == [1, 0, 0]
    assert (extras["terminated"].tolist(), extras["time_outs"].tolist()) == ([False] * 3, [True, False, False])
    assert obs["policy"].tolist() == [row(0, 0, first + 1), row(1, 2, first), row(2, 2, first)]
    assert extras["final_obs"]["policy"][0].tolist() == row(0, 2, first)
    assert rewards.tolist() == pytest.approx([0.2, 1.2, 2.2])
    assert extras["log"]["Metrics/count"] == 1.0
    # An old final observation and an old log are still in Isaac Lab's extras, and so is a time-out beside the end.
    _, _, dones, extras = env.step(still(env))
    assert dones.tolist() == [0, 1, 0]
    assert (extras["terminated"].tolist(), extras["time_outs"].tolist()) == ([False, True, False], [False] * 3)
    assert extras["final_obs"]["policy"][1].tolist() == row(1, 3, first)
    _, _, dones, extras = env.step(still(env))  # env 0 again
    _, _, dones, extras = env.step(still(env))  # env 2
    assert dones.tolist() == [0, 0, 1]
    _, _, dones, extras = env.step(still(env))  # env 0 and env 1
    assert dones.tolist() == [1, 1, 0]
    assert extras["log"]["Metrics/count"] == 2.0


def test_steps_without_an_end_log_nothing_and_end_nothing():
    env = wrap(FakeIsaacEnv([2, 9]))
    env.step(still(env))
    env.step(still(env))
    obs, _, dones, extras = env.step(still(env))
    assert not dones.any()
    assert extras["log"] == {}
    assert torch.equal(extras["final_obs"]["policy"], obs["policy"])


def test_what_is_handed_out_are_copies():
    inner = FakeIsaacEnv([3, 3])
    inner.terminating[0] = True
    env = wrap(inner)
    env.step(still(env))
    env.step(still(env))
    obs, rewards, _, extras = env.step(still(env))
    kept = [obs["policy"].clone(), rewards.clone(), extras["terminated"].clone(), extras["final_obs"]["policy"].clone()]
    inner.reset_terminated.fill_(False)
    inner.reward_buf.fill_(-1.0)
    inner.obs_buf["policy"].fill_(-1.0)
    inner.extras["final_obs"]["policy"].fill_(-1.0)
    now = [obs["policy"], rewards, extras["terminated"], extras["final_obs"]["policy"]]
    assert all(torch.equal(a, b) for a, b in zip(kept, now, strict=True))
    assert env.get_observations()["policy"][0, 0] == 0.0


def test_an_episode_ended_in_the_viewer_reaches_no_buffer():
    inner = FakeIsaacEnv([2, 9, 9])
    env = wrap(inner)
    env.step(still(env))
    env.step(still(env))
    before = env.get_observations()
    inner.asked_in_viewer = [1]
    obs, rewards, dones, extras = env.step(still(env))
    assert dones.tolist() == [0, 1, 0]
    assert extras["diverged"].tolist() == [False, True, False]
    assert extras["time_outs"].tolist() == [False, True, False]
    assert not extras["terminated"].any()
    assert rewards[1] == 0.0
    assert obs["policy"][1, 1] == 0.0
    # Isaac Lab has no final observation of it, but an old one of env 0 is there.
    assert torch.equal(extras["final_obs"]["policy"][1], before["policy"][1])


@pytest.mark.parametrize("what", ["obs", "reward"])
@pytest.mark.parametrize("at_the_end", [False, True])
def test_rows_that_are_not_finite_start_anew(what, at_the_end):
    inner = FakeIsaacEnv([9, 3, 9])
    env = wrap(inner)
    for _ in range(2 if at_the_end else 1):
        env.step(still(env))
    before = env.get_observations()
    episode = float(inner.episodes[1])
    inner.broken = {1: what}
    obs, rewards, dones, extras = env.step(still(env))
    assert dones.tolist() == [0, 1, 0]
    assert extras["diverged"].tolist() == [False, True, False]
    assert extras["time_outs"].tolist() == [False, True, False]
    assert rewards[1] == 0.0
    assert obs["policy"][1].tolist() == row(1, 0, episode + 1)
    assert torch.equal(extras["final_obs"]["policy"][1], before["policy"][1])
    assert extras["log"]["Episode_Termination/diverged"] == 1.0
    inner.broken = {}
    assert not env.step(still(env))[3]["diverged"].any()


def test_the_log_is_of_real_ends_alone():
    inner = FakeIsaacEnv([2, 2, 9])
    env = wrap(inner)
    env.step(still(env))
    inner.broken = {2: "obs"}
    log = env.step(still(env))[3]["log"]
    assert (log["Metrics/count"], log["Episode_Termination/diverged"]) == (2.0, 1.0)
    log = env.step(still(env))[3]["log"]
    assert list(log) == ["Episode_Termination/diverged"]


def test_a_broken_row_of_a_task_with_a_history_starts_all_anew():
    inner = FakeIsaacEnv([9, 9, 9], history=2)
    env = wrap(inner)
    env.step(still(env))
    inner.broken = {1: "obs"}
    obs, _, dones, extras = env.step(still(env))
    assert extras["diverged"].all()
    assert dones.tolist() == [1, 1, 1]
    assert obs["policy"][:, 1].tolist() == [0.0] * 3


def test_a_caller_in_inference_mode_leaves_no_trace():
    inner = FakeIsaacEnv([2, 9])
    env = wrap(inner)
    with torch.inference_mode():
        for _ in range(3):
            obs, *_ = env.step(still(env))
        env.reset()
    assert not obs["policy"].is_inference()
    assert not inner.obs_buf["policy"].is_inference()
    env.reset(torch.tensor([1]))
    env.step(still(env))


def test_a_scene_without_a_robot_has_no_features():
    inner = FakeIsaacEnv([9])
    inner.scene.articulations["arm"] = inner.scene.articulations.pop("robot")
    env = wrap(inner)
    assert "features" not in env.spec.observations
    assert env.step(still(env))[0]["policy"].shape == (1, 3)
    assert wrap(inner, features=["root_xy:arm"]).spec.group_size("features") == 2


def test_the_place_of_a_robot_that_cannot_move_from_it_is_no_feature():
    inner = FakeIsaacEnv([9])
    inner.scene.articulations["robot"].is_fixed_base = True
    assert "features" not in wrap(inner).spec.observations


def test_a_task_that_loses_its_final_observations_is_told():
    class Forgetful(FakeIsaacEnv):
        def _reset_idx(self, rows):
            self.extras.clear()
            super()._reset_idx(rows)

    env = wrap(Forgetful([1]))
    with pytest.raises(ConfigurationError, match="ended without a final observation although compute_final_obs"):
        env.step(still(env))


def test_rows_that_stay_broken_are_an_error():
    inner = FakeIsaacEnv([9, 9])
    env = wrap(inner)
    inner.broken = {0: "forever"}
    with pytest.raises(FloatingPointError, match=r"envs \[0\] are not finite, after a reset too"):
        env.step(still(env))
    with pytest.raises(ConfigurationError, match="not finite from the start"):
        wrap(inner)


def test_features_are_without_origins_and_in_the_final_observation():
    inner = FakeIsaacEnv([1, 9])
    env = wrap(inner, features=["root_xy", "term:policy:step", "columns:policy:0:1"])
    obs, _, _, extras = env.step(still(env))
    assert obs["features"].tolist() == [[0.5, 0.5, 0.0, 0.0], [0.5, 0.5, 1.0, 1.0]]
    assert extras["final_obs"]["features"].tolist() == [[0.5, 0.5, 1.0, 0.0], [0.5, 0.5, 1.0, 1.0]]
    assert [term.name for term in env.spec.observations["features"]] == [
        "root_xy",
        "term:policy:step",
        "columns:policy:0:1",
    ]
    assert [term.name for term in env.spec.observations["policy"]] == ["env_id", "step", "episode"]


def test_features_of_the_task_itself_stay_unless_others_are_named():
    class WithFeatures(FakeIsaacEnv):
        def _compute(self, update_history: bool = False):
            return {**super()._compute(), "features": 7.0 * torch.ones(self.num_envs, 3)}

    assert wrap(WithFeatures([9])).get_observations()["features"].tolist() == [[7.0] * 3]
    assert wrap(WithFeatures([9])).spec.group_size("features") == 3
    named = wrap(WithFeatures([9]), features=["root_pos"])
    assert named.get_observations()["features"].tolist() == [[0.5] * 3]
    assert [term.name for term in named.spec.observations["features"]] == ["root_pos"]


@pytest.mark.parametrize(
    ("feature", "says"),
    [
        ("root_xy:object", "no asset 'object'"),
        ("body_pos:foot", "no body 'foot'"),
        ("term:critic:step", "no group 'critic'"),
        ("term:policy:stepp", "no term 'stepp'.*step"),
        ("columns:policy:0:4", "has 3 columns"),
    ],
)
def test_features_that_are_not_there(feature, says):
    with pytest.raises(ConfigurationError, match=says):
        wrap(FakeIsaacEnv([2]), features=[feature])


class JointPositionAction:
    """As much of Isaac Lab's class as is read: three joints of five, a scale for all, an offset for each."""

    def __init__(self):
        self.action_dim, self._joint_names, self._joint_ids = 2, ["hip", "knee"], [3, 1]
        self._scale, self._offset = 0.5, torch.tensor([[0.1, -1.0]])
        limits = torch.tensor([[[-9.0, 9.0], [-2.0, 0.5], [-9.0, 9.0], [-0.3, 0.7], [-9.0, 9.0]]])
        self._asset = SimpleNamespace(data=SimpleNamespace(soft_joint_pos_limits=SimpleNamespace(torch=limits)))


def test_actions_may_reach_the_limits_of_the_joints():
    inner = FakeIsaacEnv([2])
    inner.action_manager.get_term = lambda _: JointPositionAction()
    env = wrap(inner, joint_limit_actions=True)
    assert env.spec.action.names == ("hip", "knee")
    assert env.spec.action.scale == pytest.approx((0.6, 1.5))
    env.step(torch.ones(env.num_envs, 2))
    assert inner.actions is not None
    assert inner.actions[0].tolist() == pytest.approx([1.2, 3.0])
    with pytest.raises(ConfigurationError, match="needs joint position actions, and arm is none"):
        wrap(FakeIsaacEnv([2]), joint_limit_actions=True)


def test_actions_are_clamped_scaled_and_checked():
    inner = FakeIsaacEnv([9, 9])
    env = wrap(inner, action_bound=3.0)
    env.step(torch.tensor([[0.5, -2.0], [9.0, 0.0]]))
    assert inner.actions is not None
    assert inner.actions.tolist() == [[1.5, -3.0], [3.0, 0.0]]
    assert env.spec.action.scale == (3.0, 3.0)
    with pytest.raises(BrokenPolicyError, match=r"envs \[1\]"):
        env.step(torch.tensor([[0.0, 0.0], [torch.nan, 0.0]]))


def test_partial_resets_and_histories():
    env = wrap(FakeIsaacEnv([9, 9]))
    env.step(still(env))
    obs = env.reset(torch.tensor([1]))
    assert obs["policy"][:, 1].tolist() == [1.0, 0.0]
    with pytest.raises(ConfigurationError, match=r"env_ids \[2\]"):
        env.reset(torch.tensor([2]))
    with_history = wrap(FakeIsaacEnv([9, 9], history=3))
    assert with_history.reset()["policy"][:, 1].tolist() == [0.0, 0.0]
    with pytest.raises(ConfigurationError, match="history"):
        with_history.reset(torch.tensor([1]))


def test_a_snapshot_restores_counters_and_starts_anew():
    inner = FakeIsaacEnv([9, 9])
    env = wrap(inner)
    env.step(still(env))
    state = env.state_dict()
    other = FakeIsaacEnv([9, 9])
    copy = wrap(other)
    copy.load_state_dict(state)
    assert other.common_step_counter == 1
    assert copy.episode_length_buf.tolist() == [0, 0]
    assert not copy.resumes_episodes
    with pytest.raises(ConfigurationError, match="holds 2 envs, this env 1"):
        wrap(FakeIsaacEnv([9])).load_state_dict(state)


def test_closing_twice_closes_once():
    inner = FakeIsaacEnv([2])
    env = wrap(inner)
    env.close()
    env.close()
    assert inner.closed == 1


def test_groups_that_are_no_rows():
    class Images(FakeIsaacEnv):
        def _compute(self, update_history: bool = False):
            return {"policy": torch.zeros(self.num_envs, 4, 4, 3)}

    with pytest.raises(ConfigurationError, match="Images are not supported"):
        wrap(Images([2]))
