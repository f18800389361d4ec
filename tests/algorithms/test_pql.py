"""The learner against values computed by hand, and the promises it makes about heads, noise and gradients."""

from __future__ import annotations

import copy
import math
import re
from functools import partial
from typing import Any

import pytest
import torch
from functorch.compile import make_boxed_func
from tensordict import TensorDict
from torch._dynamo.backends.common import aot_autograd

from myriad_lab.algorithms.algorithm import Step
from myriad_lab.algorithms.pql import POLICY_METRICS, PQL, VALUE_METRICS, PQLCfg
from myriad_lab.algorithms.pql_parts import noise_ladder
from myriad_lab.errors import ConfigurationError
from myriad_lab.networks.population import PopulationActor, PopulationActorCfg
from myriad_lab.networks.q_ensemble import QEnsembleCfg
from myriad_lab.storage.replay_batch import ReplayBatch

CHAIN = 4
GAMMA = 0.9
SIZES = {"policy": CHAIN, "critic": CHAIN}
ACTOR = PopulationActorCfg(trunk=[16], adapter_dim=8)


def make(num_policies: int = 2, num_envs: int = 4, seed: int = 0, seeded: bool = False, **cfg) -> PQL:
    critic = cfg.pop("critic", QEnsembleCfg(hidden=[32], kind="scalar", obs_normalization=False))
    defaults = {"gamma": GAMMA, "batch_size": 32, "warmup_steps": 4, "replay_capacity": 4000, "critic": critic}
    defaults["normalize_returns"] = False
    torch.manual_seed(seed)
    actor = PopulationActor(CHAIN, 1, num_policies, ACTOR)
    return PQL(actor, PQLCfg(**{**defaults, **cfg}), num_envs, SIZES, seed=seed, seeded=seeded)


def chain_step(states: torch.Tensor, time_out: bool, actions: torch.Tensor | None = None) -> tuple[Step, torch.Tensor]:
    """Walk right by one; the last state ends the episode with reward 1, truly or by the time limit."""
    last = states == CHAIN - 1
    after = torch.where(last, 0, states + 1)

    def one_hot(index: torch.Tensor) -> TensorDict:
        rows = torch.nn.functional.one_hot(index, CHAIN).float()
        return TensorDict({"policy": rows, "critic": rows.clone()}, batch_size=[len(index)])

    never = torch.zeros_like(last)
    step = Step(
        obs=one_hot(states),
        actions=torch.zeros(len(states), 1) if actions is None else actions,
        rewards=last.float(),
        terminated=never if time_out else last,
        time_outs=last if time_out else never,
        next_obs=one_hot(after),
        final_obs=one_hot(torch.where(last, CHAIN - 1, after)),
        valid=torch.ones_like(last),
    )
    return step, after


def feed(pql: PQL, steps: int, time_out: bool = False, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    states = torch.arange(pql.num_envs) % CHAIN
    for _ in range(steps):
        actions = torch.rand(pql.num_envs, 1, generator=generator) * 2 - 1
        step, states = chain_step(states, time_out, actions)
        pql.observe(step)


def targets(pql: PQL, batch: ReplayBatch) -> tuple[torch.Tensor, torch.Tensor]:
    return pql.losses.targets(batch, None, pql.reward_factor)


def chain_values(pql: PQL) -> torch.Tensor:
    rows = torch.eye(CHAIN).expand(pql.num_policies, -1, -1)
    with torch.no_grad():
        return pql.critic.values(rows, torch.zeros(pql.num_policies, CHAIN, 1))


# terminal: 1 at the end, discounted backwards. time-out: the end state follows itself for ever, 1 / (1 - gamma).
EXPECTED = {
    False: torch.tensor([GAMMA**3, GAMMA**2, GAMMA, 1.0]),
    True: torch.tensor([GAMMA**3, GAMMA**2, GAMMA, 1.0]) / (1.0 - GAMMA),
}


@pytest.mark.parametrize("time_out", [False, True], ids=["terminal", "time_out"])
@pytest.mark.parametrize(("kind", "n_step"), [("scalar", 1), ("scalar", 3), ("categorical", 3)])
def test_critics_converge_to_hand_computed_values(time_out: bool, kind: str, n_step: int) -> None:
    critic = QEnsembleCfg(hidden=[32], kind=kind, obs_normalization=False, v_min=0.0, v_max=12.0, num_atoms=61)
    pql = make(critic=critic, n_step=n_step, tau=0.1, critic_lr=3e-3, max_grad_norm=100.0)
    feed(pql, 60, time_out)
    for _ in range(700):
        pql.value_update(pql.sample())
    expected = EXPECTED[time_out].expand(2, 2, CHAIN)
    assert torch.allclose(chain_values(pql), expected, atol=0.03 * float(expected.max()))


def test_targets_take_the_smaller_critic_and_the_true_discount() -> None:
    pql = make(num_policies=1, num_envs=1, n_step=3)
    with torch.no_grad():
        for parameter in pql.target_critic.parameters():
            parameter.zero_()
        pql.target_critic.biases[-1].copy_(torch.tensor([5.0, 3.0]).view(2, 1, 1))
    feed(pql, 6)
    batch = pql.replay.sample(64, torch.Generator().manual_seed(0), n_step=3, gamma=GAMMA)
    target, value = targets(pql, batch)
    assert torch.equal(value, torch.full((1, 64), 3.0))
    assert torch.allclose(target, batch.rewards + batch.discounts * 3.0)
    assert set(batch.discounts.flatten().tolist()) > {0.0}


def test_target_bounds_are_those_of_the_unscaled_rewards() -> None:
    pql = make(num_policies=1, num_envs=1, n_step=1, reward_scale=10.0, target_bounds=[0.0, 0.5])
    feed(pql, 6)
    batch = pql.replay.sample(64, torch.Generator().manual_seed(0), n_step=1, gamma=GAMMA)
    ends = targets(pql, batch)[0][batch.rewards == 1.0]
    assert len(ends) > 0
    assert torch.equal(ends, torch.full_like(ends, 5.0))


def test_categorical_target_is_the_whole_distribution_of_the_worse_critic() -> None:
    critic = QEnsembleCfg(hidden=[8], kind="categorical", num_atoms=3, v_min=0.0, v_max=2.0, obs_normalization=False)
    pql = make(num_policies=1, num_envs=1, critic=critic, gamma=1.0, n_step=1)
    logits = torch.tensor([[0.0, 5.0, 0.0], [3.0, 0.0, 3.1]])
    with torch.no_grad():
        for parameter in pql.target_critic.parameters():
            parameter.zero_()
        pql.target_critic.biases[-1].copy_(logits.unsqueeze(1))
    feed(pql, 8)
    batch = pql.replay.sample(32, torch.Generator().manual_seed(0), n_step=1, gamma=1.0)
    target, _ = targets(pql, batch)
    assert torch.allclose(target.sum(-1), torch.ones(1, 32))
    inner = (batch.rewards == 0) & (batch.discounts == 1)
    # expectations are 1.0 and 1.016: the first is smaller, and an elementwise minimum would mix the two
    assert torch.allclose(target[inner], logits[0].softmax(-1).expand(int(inner.sum()), -1), atol=1e-6)


def test_targets_may_take_the_better_action_of_the_seed() -> None:
    plain = make(num_policies=1, num_envs=2, seeded=True)
    better = make(num_policies=1, num_envs=2, seeded=True, prior_bootstrap=True)
    for pql in (plain, better):
        feed(pql, 20)
        # the actor has wandered off: its actions are all -1, the seed's are all +1, and a critic likes the larger
        for policy, bias in ((pql.actor, -9.0), (pql.prior, 9.0)):
            with torch.no_grad():
                policy.heads.out_bias[..., 0] = bias  # type: ignore
        pql.target_critic.forward = lambda obs, a: (a.squeeze(-1) + 2.0).unsqueeze(1).expand(-1, 2, -1)  # type: ignore
    batch = plain.sample()
    assert torch.allclose(targets(plain, batch)[1], torch.full((1, 32), 1.0), atol=1e-3)
    assert torch.allclose(targets(better, batch)[1], torch.full((1, 32), 3.0), atol=1e-3)


def test_changing_one_head_leaves_the_critics_of_the_others_bit_identical() -> None:
    plain, changed = make(own_fraction=1.0), make(own_fraction=1.0)
    feed(plain, 30)
    feed(changed, 30)
    changed.replay._rewards[:, :2] += 7.0
    for pql in (plain, changed):
        for _ in range(20):
            pql.value_update(pql.sample())
    for a, b in zip(plain.critic.parameters(), changed.critic.parameters(), strict=True):
        assert torch.equal(a[2:], b[2:])
        assert not torch.equal(a[:2], b[:2])


def test_pooled_rows_of_other_heads_reach_every_critic() -> None:
    plain, changed = make(own_fraction=0.0), make(own_fraction=0.0)
    feed(plain, 30)
    feed(changed, 30)
    changed.replay._rewards[:, :2] += 7.0
    for pql in (plain, changed):
        pql.value_update(pql.sample())
    assert not torch.equal(plain.critic.weights[0][2:], changed.critic.weights[0][2:])


def test_each_update_moves_its_own_networks_only() -> None:
    pql = make()
    feed(pql, 20)
    before = {name: copy.deepcopy(module.state_dict()) for name, module in pql._modules().items()}

    def moved() -> set[str]:
        states = {name: module.state_dict() for name, module in pql._modules().items()}
        return {n for n, s in states.items() if any(not torch.equal(s[k], before[n][k]) for k in s)}

    assert pql.value_update(pql.sample()).shape == (len(VALUE_METRICS),)
    assert moved() == {"critic", "target_critic"}
    before = {name: copy.deepcopy(module.state_dict()) for name, module in pql._modules().items()}
    pql.critic_optimizer.zero_grad(set_to_none=True)
    assert pql.policy_update(pql.sample()).shape == (len(POLICY_METRICS),)
    assert moved() == {"actor"}
    assert all(p.grad is None for p in pql.critic.parameters())


def test_policy_climbs_the_critic() -> None:
    pql = make(actor_lr=3e-3)
    feed(pql, 20)
    grown = torch.eye(CHAIN).expand(2, -1, -1)
    before = pql.actor(grown)[0].tanh()
    pql.critic.values = lambda obs, actions: actions.squeeze(-1).unsqueeze(1).expand(-1, 2, -1)  # type: ignore
    for _ in range(50):
        pql.policy_update(pql.sample())
    assert bool((pql.actor(grown)[0].tanh() > before + 0.3).all())


@pytest.mark.parametrize(("scale", "weight"), [(0.01, 2.0), (50.0, 0.5)])
def test_the_pull_of_the_portfolio_is_relative_to_the_values(scale: float, weight: float) -> None:
    pql = make(seeded=True, actor_lr=1e-2, prior_weight=weight)
    feed(pql, 20)
    rows = torch.eye(CHAIN).expand(2, -1, -1)
    before = pql.actor(rows)[0].tanh().detach()
    pql.critic.values = lambda obs, actions: scale * (2.0 + actions).squeeze(-1).unsqueeze(1).expand(-1, 2, -1)  # type: ignore
    for _ in range(300):
        pql.policy_update(pql.sample())
    after = pql.actor(rows)[0].tanh().detach()
    # the gradient of weight * E[2 + a] * (a - a0)^2 - (2 + a), the expectation taken as a number, is zero
    expected = 1.0 / (2.0 * weight * (2.0 + after.mean((1, 2), keepdim=True)))
    assert torch.allclose(after - before, expected.expand_as(after), atol=0.03)


def test_noise_ladder_runs_within_each_head() -> None:
    pql = make(num_policies=3, num_envs=12, sigma_min=0.1, sigma_max=0.4, warmup_steps=1)
    assert pql.noise_scale.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3, 0.4] * 3)
    feed(pql, 1)
    obs = chain_step(torch.zeros(12, dtype=torch.long), False)[0].obs
    mean = pql.actor.act(obs["policy"], deterministic=True).action
    spread = torch.stack([pql.act(obs) - mean for _ in range(3000)]).std(0).flatten()
    assert torch.allclose(spread, pql.noise_scale.flatten(), rtol=0.1)
    assert bool((pql.act(obs).abs() <= 1.0).all())


def test_what_the_heads_drive_themselves_climbs_the_whole_ladder() -> None:
    def ladder(envs: int, share: float) -> list[float]:
        pql = make(num_envs=2 * envs, seeded=True, prior_fraction=share, sigma_min=0.1, sigma_max=0.7)
        return pql.noise_scale[~pql.prior_mask].tolist()

    assert ladder(8, 0.5) == pytest.approx([0.1, 0.3, 0.5, 0.7] * 2)
    assert ladder(4, 0.5) == pytest.approx([0.1, 0.7] * 2)
    assert ladder(2, 0.5) == ladder(1, 0.0) == pytest.approx([0.7] * 2)
    with pytest.raises(ConfigurationError, match=r"prior_fraction=0.3 of the 3 envs .* at least 4 of num_envs"):
        ladder(3, 0.3)
    for share in range(1, 100):  # in hundredths, which binary numbers only come close to
        _, prior = noise_ladder(100, 0.1, 0.7, share / 100)
        assert int(prior.sum()) == share


def test_only_an_unseeded_actor_starts_with_random_actions() -> None:
    obs = chain_step(torch.zeros(4, dtype=torch.long), False)[0].obs
    fresh, seeded = (make(seeded=s, sigma_min=0.0, sigma_max=0.0) for s in (False, True))
    assert torch.stack([fresh.act(obs) for _ in range(500)]).std() == pytest.approx(3**-0.5, abs=0.05)
    assert torch.equal(seeded.act(obs), seeded.actor.act(obs["policy"], deterministic=True).action)


def test_part_of_the_envs_follow_the_seed_and_they_are_spread_over_the_ladder() -> None:
    pql = make(num_policies=2, num_envs=16, seeded=True, prior_fraction=0.25, sigma_min=0.0, sigma_max=0.0)
    assert pql.prior_mask.flatten().tolist() == ([False] * 3 + [True]) * 4
    obs = chain_step(torch.zeros(16, dtype=torch.long), False)[0].obs
    mean = pql.actor.act(obs["policy"], deterministic=True).action
    assert torch.equal((pql.act(obs) == mean).flatten(), ~pql.prior_mask.flatten())


def test_updates_are_counted_and_a_seeded_actor_waits() -> None:
    pql = make(value_updates_per_step=1.5, policy_delay=2, warmup_steps=4, critic_warmup=10, seeded=True)
    states = torch.arange(4) % CHAIN
    counts = []
    for _ in range(20):
        step, states = chain_step(states, False)
        pql.observe(step)
        pql.update()
        counts.append((pql.counts.value_updates, pql.counts.policy_updates))
    assert [v for v, _ in counts] == [int(1.5 * max(0, i + 1 - 4)) for i in range(20)]
    assert all(p == max(0, v - 10) // 2 for v, p in counts)


def test_state_dict_continues_bit_exactly() -> None:
    settings = {"seeded": True, "critic_warmup": 0, "noise_repeat": 4}
    first, second = make(**settings), make(seed=5, **settings)
    feed(first, 20)
    first.update()
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    second.replay.load_state_dict(first.replay.state_dict())
    obs = chain_step(torch.zeros(first.num_envs, dtype=torch.long), False)[0].obs
    acted = []
    for pql in (first, second):
        acted.append(pql.act(obs))
        feed(pql, 5, seed=3)
        pql.update()
    assert torch.equal(*acted)
    for name, module in first._modules().items():
        for key, value in module.state_dict().items():
            assert torch.equal(value, second._modules()[name].state_dict()[key]), f"{name}.{key}"


def test_step_sizes_are_those_of_the_configuration_that_goes_on() -> None:
    second = make(actor_lr=1e-5, critic_lr=2e-5, weight_decay=0.0)
    second.load_state_dict(make(actor_lr=1e-3, critic_lr=1e-3, weight_decay=0.1).state_dict())
    groups = [optimizer.param_groups[0] for optimizer in (second.actor_optimizer, second.critic_optimizer)]
    assert [(group["lr"], group["weight_decay"]) for group in groups] == [(1e-5, 0.0), (2e-5, 0.0)]


def test_kept_heads_keep_their_networks_and_get_all_envs() -> None:
    pql = make(num_policies=4, num_envs=8)
    feed(pql, 20)
    rows = torch.eye(CHAIN).expand(4, -1, -1)
    before, values = pql.actor(rows)[0], pql.critic.values(rows, torch.zeros(4, CHAIN, 1))
    pql.keep_heads([1, 3])
    assert torch.equal(pql.actor(rows[:2])[0], before[[1, 3]])
    assert torch.equal(pql.critic.values(rows[:2], torch.zeros(2, CHAIN, 1)), values[[1, 3]])
    assert (pql.envs_per_policy, pql.noise_scale.shape) == (4, (8, 1))
    assert set(pql.update()) == {*VALUE_METRICS, *POLICY_METRICS}


def test_critics_and_their_targets_know_the_mean_of_what_was_observed() -> None:
    pql = make(critic=QEnsembleCfg(hidden=[32], kind="scalar", obs_normalization=True))
    feed(pql, 5)
    states = (torch.arange(pql.num_envs) + torch.arange(5)[:, None]) % CHAIN
    mean = torch.nn.functional.one_hot(states.flatten(), CHAIN).float().mean(dim=0)
    for network in (pql.critic, pql.target_critic):
        torch.testing.assert_close(network.normalizer.get_buffer("mean"), mean)
        assert network.normalizer.get_buffer("count") == 5 * pql.num_envs


def test_returns_are_scaled_before_the_critics_see_them() -> None:
    pql = make(num_policies=1, num_envs=4, n_step=1, normalize_returns=True, return_bound=0.5, reward_scale=3.0)
    feed(pql, 40)
    # the only reward ends its episode and so is the largest return, which is to be brought to the bound
    assert float(pql.reward_factor) == pytest.approx(3.0 * 0.5)
    batch = pql.sample()
    ends = batch.rewards == 1.0
    assert torch.allclose(targets(pql, batch)[0][ends], torch.tensor(1.5))


def test_projected_weights_leave_the_values_and_have_length_one() -> None:
    shape = {"hidden": [32, 16], "kind": "scalar", "obs_normalization": False}
    free, kept = (QEnsembleCfg(weight_norm=norm, **shape) for norm in (False, True))
    pql = make(critic=kept, critic_lr=1e-2)
    feed(pql, 20)
    pql.value_update(pql.sample())
    hidden = list(pql.critic.weights)[:-1]
    assert all(torch.allclose(w.norm(dim=1), torch.ones(())) for w in hidden)
    long = make(critic=free).critic
    long.load_state_dict(pql.critic.state_dict())
    with torch.no_grad():
        for weight in list(long.weights)[:-1]:
            weight.mul_(7.0)
    rows, actions = torch.eye(CHAIN).expand(2, -1, -1), torch.zeros(2, CHAIN, 1)
    assert torch.allclose(long.values(rows, actions), pql.critic.values(rows, actions), atol=1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the compiler itself
@pytest.mark.parametrize("kind", ["scalar", "categorical"])
def test_compiled_losses_are_the_losses(kind: str) -> None:
    critic = QEnsembleCfg(hidden=[32], kind=kind, obs_normalization=False)
    plain, compiled = (make(compile=flag, critic=critic, mixed_precision=False) for flag in (False, True))
    for pql in (plain, compiled):
        feed(pql, 20)
        pql.update()
    assert compiled._critic_losses is not compiled.losses.critics
    for name in ("actor", "critic"):
        for a, b in zip(getattr(plain, name).parameters(), getattr(compiled, name).parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the compiler itself
def test_a_compiled_policy_update_forms_no_gradients_of_the_critics(monkeypatch: pytest.MonkeyPatch) -> None:
    formed: list[int] = []

    def note(graph: torch.fx.GraphModule, _: Any) -> Any:
        formed.append(sum(gradient is not None for gradient in graph.graph.output_node().args[0]))
        return make_boxed_func(graph.forward)

    backend = aot_autograd(fw_compiler=lambda graph, _: make_boxed_func(graph.forward), bw_compiler=note)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    pql = make(compile=True, mixed_precision=False)
    feed(pql, 8)
    pql.learn_policies()
    assert formed == [sum(p.grad is not None for p in pql.actor.parameters())]
    pql.learn_critics()
    assert formed[1:] == [sum(p.grad is not None for p in pql.critic.parameters())] == [len(pql.critic_optimizer.state)]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the compiler itself
def test_a_population_may_be_compiled_for_more_sizes_than_torch_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    monkeypatch.setattr(torch._dynamo.config, "recompile_limit", 2)
    for num_policies in (1, 2, 3, 4):
        pql = make(num_policies, 4 * num_policies, compile=True, mixed_precision=False)
        feed(pql, 8)
        assert torch.isfinite(pql.learn_critics()).all()


def test_half_precision_is_taken_where_the_processor_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for native in (False, True):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda native=native: native)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
        assert make().mixed_precision.enabled is native
        assert make(mixed_precision=not native).mixed_precision.enabled is not native


def test_bad_settings_are_named() -> None:
    bad = {"noise_repeat": 0, "gamma": 1.5, "n_step": 0, "sigma_max": 0.01, "prior_fraction": 1.0, "prior_weight": -1.0}
    bad |= {"actor_lr": 0.0, "critic_lr": -1e-3, "max_grad_norm": 0.0, "critic_warmup": -1, "weight_decay": -0.1}
    bad |= {"target_bounds": [1.0], "target_noise": -0.1, "reward_scale": 0.0}
    bad |= {"return_bound": 0.0}
    bad |= {"value_updates_per_step": math.inf, "tau": 0.0, "batch_size": 0}
    for name, value in [*bad.items(), ("actor_lr", math.inf)]:
        with pytest.raises(ConfigurationError, match=re.escape(f"{name}={value}")):
            make(**{name: value})
    with pytest.raises(ConfigurationError, match=r"gamma=1\.5 of PQL; expected a number in \[0, 1\]"):
        make(gamma=1.5)
    with pytest.raises(ConfigurationError, match=r"prior_fraction=1\.0 of PQL; expected a number in \[0, 1\)"):
        make(prior_fraction=1.0)
    with pytest.raises(ConfigurationError, match=r"target_bounds=\[1.0, 0.0\] of PQL must be \[lowest, highest\]"):
        make(target_bounds=[1.0, 0.0])
    with pytest.raises(ConfigurationError, match="is for scalar critics"):
        make(target_bounds=[0.0, 1.0], critic=QEnsembleCfg(kind="categorical"))
    with pytest.raises(ConfigurationError, match="trunk="):
        make(actor=PopulationActorCfg(trunk=[]))
    with pytest.raises(ConfigurationError, match="Did you mean scalar"):
        make(critic=QEnsembleCfg(kind="scaler"))
    with pytest.raises(ConfigurationError, match="weight_norm=true of the critic needs layer_norm=true"):
        make(critic=QEnsembleCfg(weight_norm=True, layer_norm=False))
    with pytest.raises(ConfigurationError, match="replay_dtype='bfloat32' of PQL is unknown"):
        make(replay_dtype="bfloat32")
    with pytest.raises(ConfigurationError, match="privileged"):
        make(critic_group="privileged")
    clipped = PopulationActor(CHAIN, 1, 2, PopulationActorCfg(trunk=[16], adapter_dim=8, squash="clip"))
    with pytest.raises(ConfigurationError, match="policies that end in tanh"):
        PQL(clipped, PQLCfg(), 4, SIZES)
