from __future__ import annotations

import pytest
import torch

from myriad_lab.errors import ConfigurationError
from myriad_lab.networks.heads import ADAPTERS
from myriad_lab.networks.population import PopulationActor, PopulationActorCfg, PopulationValue, check_population

NUM_OBS, NUM_ACTIONS, M, ROWS = 5, 3, 4, 6


def make_actor(**changes) -> PopulationActor:
    torch.manual_seed(0)
    cfg = PopulationActorCfg(trunk=[16, 12], adapter_dim=8, adapter_rank=2, **changes)
    actor = PopulationActor(NUM_OBS, NUM_ACTIONS, M, cfg)
    with torch.no_grad():  # biases start at zero; make a wrong bias visible
        for parameter in actor.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return actor


@pytest.fixture
def obs() -> torch.Tensor:
    return torch.randn(M, ROWS, NUM_OBS, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("state_dependent_std", [False, True])
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_outputs_are_not_rounded_to_half_precision(adapter, state_dependent_std, obs):
    actor = make_actor(adapter=adapter, state_dependent_std=state_dependent_std)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = actor(obs)
    for output, exact in zip(outputs, actor(obs), strict=True):
        assert output.dtype == torch.float32
        torch.testing.assert_close(output, exact, rtol=0.0, atol=0.05)
    mean = outputs[0]
    assert not torch.equal(mean, mean.bfloat16().float())
    assert not torch.equal(mean, actor(obs)[0])  # the layers before are


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("state_dependent_std", [True, False])
def test_batched_heads_equal_a_loop_of_single_head_networks(adapter, state_dependent_std, obs):
    actor = make_actor(adapter=adapter, state_dependent_std=state_dependent_std)
    mean, log_std = actor(obs)
    assert mean.shape == log_std.shape == (M, ROWS, NUM_ACTIONS)
    for i in range(M):
        alone = actor.select([i])
        mean_i, log_std_i = alone(obs[i : i + 1])
        torch.testing.assert_close(mean_i[0], mean[i])
        torch.testing.assert_close(log_std_i[0], log_std[i])


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("squash", ["tanh", "clip"])
def test_act_single_indexed_and_select_agree(adapter, squash, obs):
    actor = make_actor(adapter=adapter, squash=squash, obs_normalization=True)
    actor.normalizer.update(3.0 * obs + 1.0)
    flat = obs.reshape(-1, NUM_OBS)
    action = actor.act(flat, deterministic=True).action
    head_ids = torch.arange(M).repeat_interleave(ROWS)
    torch.testing.assert_close(actor.indexed()(flat, head_ids), action)
    for i in range(M):
        block = slice(i * ROWS, (i + 1) * ROWS)
        torch.testing.assert_close(actor.single(i)(flat[block]), action[block])
    order = [2, 0, 2]
    chosen = actor.select(order)(obs[order])[0]
    torch.testing.assert_close(actor.squash(chosen), action.view(M, ROWS, -1)[order])


def test_permuting_heads_permutes_outputs(obs):
    actor = make_actor()
    order = torch.tensor([3, 1, 0, 2])
    permuted = actor.select(order.tolist())
    torch.testing.assert_close(permuted(obs[order])[0], actor(obs)[0][order])


def test_selected_copy_is_independent_of_the_original(obs):
    actor = make_actor()
    single, before = actor.single(1), actor.single(1)(obs[1])
    with torch.no_grad():
        actor.heads.out_weight.add_(1.0)
        actor.trunk[0].weight.add_(1.0)
    torch.testing.assert_close(single(obs[1]), before)


def test_heads_start_different_with_zero_mean_bias_and_the_given_std():
    actor = PopulationActor(NUM_OBS, NUM_ACTIONS, M, PopulationActorCfg(trunk=[16], adapter_dim=8, init_log_std=-0.5))
    mean, log_std = actor(torch.zeros(M, 2, NUM_OBS))
    assert mean.abs().max() == 0.0
    torch.testing.assert_close(log_std, torch.full_like(log_std, -0.5))
    flat = actor.heads.out_weight.detach().flatten(1)
    assert torch.pdist(flat).min() > 0.1


def test_log_std_stays_in_its_range(obs):
    actor = make_actor(log_std_range=[-3.0, 0.5])
    _, log_std = actor(1e4 * obs)
    assert log_std.min() >= -3.0
    assert log_std.max() <= 0.5


def test_act_is_reproducible_and_its_log_prob_is_of_the_presquash_action(obs):
    actor = make_actor()
    flat = obs.reshape(-1, NUM_OBS)
    first = actor.act(flat, torch.Generator().manual_seed(3))
    again = actor.act(flat, torch.Generator().manual_seed(3))
    assert torch.equal(first.pre_squash, again.pre_squash)
    torch.testing.assert_close(first.action, torch.tanh(first.pre_squash))
    mean, log_std = actor(obs)
    expected = torch.distributions.Normal(mean, log_std.exp()).log_prob(first.pre_squash.view_as(mean)).sum(-1)
    torch.testing.assert_close(first.log_prob.view(M, ROWS), expected)


def test_shared_and_head_parameters_are_a_partition():
    actor = make_actor(adapter="low_rank", state_dependent_std=False)
    heads = actor.head_parameters()
    assert all(p.shape[0] == M for p in heads)
    assert len(heads) + len(actor.shared_parameters()) == len(list(actor.parameters()))
    shared = {id(p) for p in actor.shared_parameters()}
    assert id(actor.heads.shared_weight) in shared


def test_film_heads_share_all_but_scale_shift_and_bias():
    actor = make_actor(adapter="film", state_dependent_std=False)
    assert set(actor.heads.stacked_names()) == {"adapter_scale", "adapter_bias", "out_bias"}
    obs = torch.randn(1, ROWS, NUM_OBS).expand(M, -1, -1)
    mean, _ = actor(obs)
    # One gait to begin with: the heads differ less from one another than the actions of one head over the states.
    assert 0.0 < mean.std(dim=0).mean() < 0.3 * mean[0].std(dim=0).mean()
    actor(obs)[0][2].sum().backward()
    scale_grad, out_grad = actor.heads.adapter_scale.grad, actor.heads.out_weight.grad
    assert scale_grad is not None
    assert out_grad is not None
    assert scale_grad[[0, 1, 3]].abs().sum() == 0.0
    assert out_grad.abs().sum() > 0.0


def test_value_network_keeps_policies_apart(obs):
    value = PopulationValue(NUM_OBS, M, PopulationActorCfg(trunk=[8], adapter_dim=8))
    out = value(obs)
    assert out.shape == (M, ROWS)
    out[2].sum().backward()
    grads = value.heads.out_weight.grad
    assert grads is not None
    assert grads[2].abs().sum() > 0
    assert grads[[0, 1, 3]].abs().sum() == 0


def test_4096_policies_in_one_network():
    cfg = PopulationActorCfg(trunk=[16], adapter="film", adapter_dim=8)
    actor = PopulationActor(NUM_OBS, NUM_ACTIONS, 4096, cfg)
    assert actor.act(torch.zeros(8192, NUM_OBS)).action.shape == (8192, NUM_ACTIONS)


@pytest.mark.parametrize(("num_envs", "num_policies"), [(10, 3), (2, 4), (8, 0), (8192, 5000)])
def test_population_that_does_not_fit_is_refused(num_envs, num_policies):
    with pytest.raises(ConfigurationError, match=f"num_policies={num_policies}"):
        check_population(num_envs, num_policies)


def test_wrong_shapes_and_ids_are_refused(obs):
    actor = make_actor()
    with pytest.raises(ConfigurationError, match="num_obs=5"):
        actor(obs[..., :4])
    with pytest.raises(ConfigurationError, match=r"0\.\.3"):
        actor.select([4])
    with pytest.raises(ConfigurationError, match="does not divide num_envs=7"):
        actor.act(torch.zeros(7, NUM_OBS))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"adapter": "ful"}, "full"),
        ({"activation": "rellu"}, "relu"),
        ({"squash": "sigmoid"}, "tanh"),
        ({"init_log_std": 3.0}, "init_log_std"),
        ({"log_std_range": [1.0, -1.0]}, "log_std_range"),
        ({"trunk": []}, "trunk"),
        ({"adapter_dim": 0}, "adapter_dim=0"),
        ({"adapter_rank": -1}, "adapter_rank=-1"),
    ],
)
def test_bad_configuration_is_refused(change, message):
    with pytest.raises(ConfigurationError, match=message):
        PopulationActor(NUM_OBS, NUM_ACTIONS, M, PopulationActorCfg(**change))
