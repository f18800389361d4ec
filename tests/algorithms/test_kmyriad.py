from __future__ import annotations

import copy
import math

import pytest
import torch
from tensordict import TensorDict

from myriad_lab.algorithms import policy_updates
from myriad_lab.algorithms.algorithm import Step
from myriad_lab.algorithms.kmyriad import MIN_ROWS, KMyriad, KMyriadCfg
from myriad_lab.algorithms.population_optimizer import RATE_RANGE
from myriad_lab.errors import CheckpointError, ConfigurationError
from myriad_lab.networks.population import PopulationActor, PopulationActorCfg
from tape import TapedUpdate

NUM_ENVS, M, T, NUM_OBS, NUM_ACTIONS = 8, 4, 6, 3, 2
SIZES = {"policy": NUM_OBS, "features": 2}


def make(num_envs: int = NUM_ENVS, m: int = M, steps: int = T, seed: int = 0, **changes) -> KMyriad:
    settings = {"k": 2, "particle_stride": 2, "num_epochs": 1, "mixed_precision": False} | changes
    network, device = settings.pop("network", {}), settings.pop("device", "cpu")
    network = {"trunk": [16], "adapter_dim": 8, "activation": "tanh", "init_log_std": -0.5} | network
    actor_cfg = PopulationActorCfg(**network)
    torch.manual_seed(seed)
    actor = PopulationActor(NUM_OBS, NUM_ACTIONS, m, actor_cfg).to(device)
    cfg = KMyriadCfg(actor=actor_cfg, **settings)
    return KMyriad(actor, cfg, num_envs, SIZES, device, seed=seed, num_steps=steps)


def roll_out(algorithm: KMyriad, seed: int = 0, diverge: tuple[tuple[int, int], ...] = ()) -> None:
    """Fill one rollout of a point that is pushed by its actions; ``diverge`` holds pairs (step, env)."""
    n = algorithm.num_envs
    g = torch.Generator().manual_seed(seed)
    like = {"device": algorithm.device}
    position = 0.1 * torch.randn(n, 2, generator=g).to(**like)

    def observe() -> TensorDict:
        time = torch.full((n, 1), 0.5, **like)
        return TensorDict({"policy": torch.cat((position, time), 1), "features": position.clone()}, batch_size=[n])

    for t in range(algorithm.num_steps):
        obs = observe()
        actions = algorithm.act(obs)
        position = position + 0.3 * actions
        valid = torch.ones(n, dtype=torch.bool, **like)
        for step, env in diverge:
            if step == t:
                valid[env] = False
        final = observe()
        final["features"][~valid] = float("nan")
        position = torch.where(valid.unsqueeze(1), position, torch.zeros(1, 2, **like))
        last = torch.full((n,), t == algorithm.num_steps - 1, **like)
        if t == algorithm.num_steps - 1:
            position = torch.zeros(n, 2, **like)  # reset, as an env does at the time-out
        algorithm.observe(
            Step(obs, actions, torch.zeros(n, **like), torch.zeros_like(valid), last | ~valid, observe(), final, valid)
        )


def weights(algorithm: KMyriad) -> torch.Tensor:
    """Return all weights of the policies."""
    return torch.cat([p.detach().flatten() for p in algorithm.actor.parameters()])


def importance_weighted_entropy(points: torch.Tensor, log_weights: torch.Tensor, k: int) -> torch.Tensor:
    """Spec of MEPOL's estimator: ``log_weights`` are cumulative log ratios, one per particle."""
    weights = torch.softmax(log_weights, 0)
    distances, index = torch.cdist(points, points).sort(dim=1)
    radius = distances[:, k]
    dim = points.shape[1]
    volume = radius**dim * math.pi ** (dim / 2) / math.gamma(dim / 2 + 1)
    mass = weights[index[:, :k]].sum(1)  # the point itself and its k - 1 nearest others
    return -(mass / k * torch.log(mass / volume)).sum() + math.log(k) - torch.digamma(torch.tensor(float(k)))


@pytest.mark.parametrize("stride", [1, 2])
def test_one_step_gradient_is_that_of_the_importance_weighted_estimator(stride):
    algorithm = make(reward="mepol", baseline="global", standardize=False, max_grad_norm=1e9, particle_stride=stride)
    roll_out(algorithm)
    storage, actor = algorithm.storage, algorithm.actor
    points = storage["features"][stride - 1 :: stride].transpose(0, 1).flatten(0, 1).double()
    policy = actor.distribution(storage.by_policy(storage["obs"]))
    log_ratio = (
        policy.log_prob(storage.by_policy(storage["pre_squash"])) - storage.by_policy(storage["log_prob"])
    ).double()
    log_ratio = log_ratio.unflatten(1, (T, -1)).transpose(0, 1).flatten(1)  # (time, env)
    log_weights = log_ratio.cumsum(0)[stride - 1 :: stride].transpose(0, 1).flatten()
    actor.zero_grad()
    (-importance_weighted_entropy(points, log_weights, algorithm.cfg.k)).backward()
    expected = {name: p.grad.clone() for name, p in actor.named_parameters() if p.grad is not None}
    assert sum(g.abs().sum() for g in expected.values()) > 1e-3
    algorithm.update()
    for name, parameter in actor.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-3, atol=1e-6, msg=name)


def test_chunks_of_the_single_step_change_nothing():
    grads = []
    for rows in (10_000, NUM_ENVS):
        algorithm = make(rows_per_backward=rows)
        roll_out(algorithm)
        algorithm.update()
        grads.append(torch.cat([p.grad.flatten() for p in algorithm.actor.parameters()]))
    torch.testing.assert_close(grads[0], grads[1])


@pytest.mark.parametrize("epochs", [1, 2])
@pytest.mark.parametrize("noise", [{}, {"state_dependent_std": True}])
def test_gradients_in_half_precision_are_those_of_float32_nearly(epochs, noise):
    grads = []
    for mixed_precision in (False, True):
        still = {"num_epochs": epochs, "num_minibatches": 1, "learning_rate": 1e-9}
        algorithm = make(64, mixed_precision=mixed_precision, network=noise, **still)
        roll_out(algorithm)
        algorithm.update()
        networks = [algorithm.actor, *([algorithm.value] if epochs > 1 else [])]
        grads.append(torch.cat([p.grad.flatten() for network in networks for p in network.parameters()]))
    assert grads[1].dtype == torch.float32
    assert not torch.equal(*grads)
    assert torch.cosine_similarity(*grads, dim=0) > 0.99


@pytest.mark.parametrize("noise", [{}, {"state_dependent_std": True}])
def test_ratios_begin_at_one_in_half_precision_too(noise):
    """Little noise makes likelihoods sensitive: without the same rounding in acting, ratios would be far from 1."""
    still = {"num_epochs": 2, "num_minibatches": 3, "learning_rate": 1e-9}
    algorithm = make(64, mixed_precision=True, network=noise | {"init_log_std": -4.0}, **still)
    roll_out(algorithm)
    metrics = algorithm.update()
    assert metrics["Policy/kl"].abs() < 1e-5
    assert metrics["Policy/clip_fraction"] == 0.0


def test_half_precision_is_taken_where_the_processor_has_it(monkeypatch):
    for native in (False, True):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda native=native: native)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
        for epochs in (1, 2):
            for wanted, taken in ((None, native), (True, True), (False, False)):
                algorithm = make(MIN_ROWS * M, num_epochs=epochs, mixed_precision=wanted)
                assert algorithm._improve.mixed_precision.enabled is taken
            few = make((MIN_ROWS - 1) * M, num_epochs=epochs, mixed_precision=None)
            assert not few._improve.mixed_precision.enabled


@pytest.mark.parametrize("epochs", [1, 3])
@pytest.mark.parametrize("reward", ["own", "mepol", "centred"])
def test_update_moves_every_head_and_reports_finite_numbers(epochs, reward):
    algorithm = make(num_epochs=epochs, reward=reward, exclude_own_trajectory=True)
    before = {name: p.detach().clone() for name, p in algorithm.actor.named_parameters()}
    roll_out(algorithm)
    metrics = algorithm.update()
    assert all(torch.isfinite(value) and value.dim() == 0 for value in metrics.values())
    assert metrics["Loss/restored"] == 0
    for name, parameter in algorithm.actor.named_parameters():
        change = (parameter.detach() - before[name]).abs()
        assert change.flatten(1).amax(1).min() > 0 if name.startswith("heads.out_weight") else change.max() > 0
    assert not algorithm.storage.full


@pytest.mark.parametrize("epochs", [1, 2])
def test_what_follows_a_divergence_changes_nothing(epochs):
    """Whatever an env does after its physics broke, particles, gradients and running statistics stay the same."""
    weights = []
    for garbage in (0.0, 50.0):
        algorithm = make(num_epochs=epochs, network={"obs_normalization": True})
        roll_out(algorithm, diverge=((2, 5),))
        assert not algorithm.storage["valid"][2:, 5].any()
        assert algorithm.storage["valid"].sum() == NUM_ENVS * T - 4
        algorithm.storage["pre_squash"][2:, 5] += garbage
        algorithm.storage["features"][2:, 5] += garbage
        algorithm.storage["obs"][2:, 5] += garbage
        algorithm.update()
        weights.append(torch.cat([tensor.flatten() for tensor in algorithm.actor.state_dict().values()]))
    assert torch.equal(weights[0], weights[1])
    assert torch.isfinite(weights[0]).all()


def test_what_follows_the_end_of_an_episode_counts():
    algorithm = make()
    none = torch.zeros(NUM_ENVS, dtype=torch.bool)
    for t in range(T):
        ended = none.clone()
        ended[3] = t == 2
        here, after = torch.full((NUM_ENVS, 2), float(t)), torch.full((NUM_ENVS, 2), t + 1.0)
        policy = torch.zeros(NUM_ENVS, NUM_OBS)
        obs, final = (TensorDict({"policy": policy, "features": f}, [NUM_ENVS]) for f in (here, after))
        reset = TensorDict({"policy": policy, "features": torch.where(ended.unsqueeze(1), -1.0, after)}, [NUM_ENVS])
        actions = algorithm.act(obs)
        algorithm.observe(Step(obs, actions, torch.zeros(NUM_ENVS), ended, none, reset, final, ~none))
    assert algorithm.storage["valid"].all()
    assert algorithm.storage["features"][2, 3].tolist() == [3.0, 3.0]  # where it ended, not where it began again


def test_rewards_are_centred_over_the_pool_and_sit_on_particles_only():
    algorithm = make()
    roll_out(algorithm, diverge=((3, 1),))
    valid = algorithm.storage["valid"]
    rewards, count, _ = algorithm.state_rewards(algorithm.storage["features"], valid)
    particle = torch.zeros(T, dtype=torch.bool)
    particle[1::2] = True
    assert (rewards[~particle] == 0).all()
    assert (rewards[~valid] == 0).all()
    kept = rewards[particle][valid[particle]]
    assert count == len(kept)
    torch.testing.assert_close(kept.mean(), torch.tensor(0.0), atol=1e-6, rtol=0)
    torch.testing.assert_close(kept.std(correction=0), torch.tensor(1.0))
    # A global scale: the heads keep their different shares.
    per_head = rewards[1::2].unflatten(1, (M, -1)).transpose(0, 1).flatten(1).mean(1)
    assert per_head.abs().max() > 0.01


def test_the_far_away_particle_earns_most():
    algorithm = make(particle_stride=1)
    features = 0.01 * torch.randn(T, NUM_ENVS, 2, generator=torch.Generator().manual_seed(0))
    features[3, 6] = 5.0
    rewards, _, _ = algorithm.state_rewards(features, torch.ones(T, NUM_ENVS, dtype=torch.bool))
    assert rewards.flatten().argmax() == 3 * NUM_ENVS + 6


def test_feature_scale_shifts_the_entropy_and_leaves_own_rewards_alone():
    plain, scaled = make(), make(feature_scale=[4.0, 2.0], min_radius=1e-6)
    roll_out(plain)
    features, valid = plain.storage["features"], plain.storage["valid"]
    stretched = features * torch.tensor([4.0, 2.0])
    rewards, _, metrics = plain.state_rewards(features, valid)
    again, _, metrics_scaled = scaled.state_rewards(stretched, valid)
    torch.testing.assert_close(again, rewards, atol=1e-4, rtol=1e-4)
    gain = metrics_scaled["Population/entropy_pool"] - metrics["Population/entropy_pool"]
    torch.testing.assert_close(gain, torch.tensor(math.log(8.0)), atol=1e-4, rtol=0)


def test_entropy_is_told_in_every_iteration_and_the_heads_every_now_and_then():
    algorithm = make(statistics_interval=2)
    found = []
    for i in range(2):
        roll_out(algorithm, seed=i)
        points = algorithm.state_rewards.particles(algorithm.storage["features"]).flatten(0, 1).clone()
        found.append(algorithm.update())
        expected = knn_entropy_of(points, algorithm.cfg.k)
        torch.testing.assert_close(found[-1]["Population/entropy_pool"], expected, atol=1e-4, rtol=1e-4)
    assert "Population/diversity" in found[0]
    assert "Population/diversity" not in found[1]


def knn_entropy_of(points: torch.Tensor, k: int) -> torch.Tensor:
    radius = torch.cdist(points, points).sort(dim=1).values[:, k]
    log_volume = torch.log(math.pi * radius.square())
    return log_volume.mean() + math.log(len(points) - 1) - torch.digamma(torch.tensor(float(k)))


def test_window_rewards_what_differs_from_the_past():
    """Two clouds of equal density; one was visited before. With a window, the other one is worth more."""
    valid = torch.ones(T, NUM_ENVS, dtype=torch.bool)
    g = torch.Generator().manual_seed(0)
    old = 0.1 * torch.randn(T, NUM_ENVS, 2, generator=g)
    new = 0.1 * torch.randn(T, NUM_ENVS, 2, generator=g)
    new[:, NUM_ENVS // 2 :] += 5.0
    gaps = {}
    for window in (1, 2):
        rewarder = make(window=window, particle_stride=1).state_rewards
        rewarder(old, valid)
        rewards, count, _ = rewarder(new, valid)
        assert count == T * NUM_ENVS
        assert rewards.mean().abs() < 1e-6
        gaps[window] = rewards[:, NUM_ENVS // 2 :].mean() - rewards[:, : NUM_ENVS // 2].mean()
    assert gaps[2] > gaps[1] + 0.3


@pytest.mark.parametrize("reward", ["own", "mepol"])
def test_a_pool_that_is_too_large_is_drawn_evenly_from_policies(reward):
    algorithm = make(max_particles=16, particle_stride=1, reward=reward)
    roll_out(algorithm, diverge=((2, 5),))
    valid = algorithm.storage["valid"].clone()
    rewards, count, metrics = algorithm.state_rewards(algorithm.storage["features"], valid)
    assert count == 16
    rewarded = rewards != 0
    assert not (rewarded & ~valid).any()
    assert rewarded.unflatten(1, (M, -1)).sum((0, 2)).tolist() == [4] * M
    assert torch.isfinite(metrics["Population/entropy_pool"])
    algorithm.update()


@pytest.mark.parametrize("changes", [{"window": 2}, {"max_particles": 16}, {}], ids=["window", "thinned", "whole"])
@pytest.mark.parametrize("exclude", [False, True])
def test_a_head_without_a_valid_particle_does_not_stop_the_run(changes, exclude):
    """With one env per head, a single divergence takes all particles of a head."""
    algorithm = make(num_envs=M, steps=12, particle_stride=1, exclude_own_trajectory=exclude, **changes)
    roll_out(algorithm, diverge=((0, 1),))
    features, valid = algorithm.storage["features"].clone(), algorithm.storage["valid"].clone()
    assert not valid[:, 1].any()
    rewards, count, metrics = algorithm.state_rewards(features, valid)
    assert (rewards[:, 1] == 0).all()
    assert count == (rewards != 0).sum()
    assert (rewards[:, [0, 2, 3]] != 0).any(dim=0).all()
    assert all(torch.isfinite(value) for value in metrics.values())
    if not changes.get("max_particles"):
        points = algorithm.state_rewards.particles(features)[[0, 2, 3]].flatten(0, 1)
        expected = knn_entropy_of(points, algorithm.cfg.k)
        torch.testing.assert_close(metrics["Population/entropy_pool"], expected, atol=1e-4, rtol=1e-4)
    algorithm.update()


def test_heads_with_too_few_particles_are_told_of(caplog):
    sentence = "diversity and divergences are not measured: k=5 is not below the 3 particles of a head"
    make(num_envs=M, k=5)
    assert caplog.text.count(sentence) == 1
    caplog.clear()
    make(k=5)
    assert "not measured" not in caplog.text


@pytest.mark.parametrize("epochs", [1, 3])
def test_repeats_bitwise_and_resumes_bitwise(epochs):
    rates = {"lr_milestones": [2]} if epochs == 1 else {"desired_kl": 1e-6}
    changes = {"num_epochs": epochs, "window": epochs, "network": {"obs_normalization": True}} | rates
    whole, again = make(**changes), make(**changes)
    for i in range(4):
        for algorithm in (whole, again):
            roll_out(algorithm, seed=i)
            algorithm.update()
    assert torch.equal(weights(whole), weights(again))
    half = make(**changes)
    for i in range(2):
        roll_out(half, seed=i)
        half.update()
    resumed = make(seed=99, **changes)
    resumed.load_state_dict(half.state_dict())
    for i in range(2, 4):
        roll_out(resumed, seed=i)
        resumed.update()
    assert torch.equal(weights(whole), weights(resumed))


def test_learning_rates_of_trunk_and_heads_follow_the_milestones():
    algorithm = make(learning_rate=1e-2, head_learning_rate=1e-3, lr_milestones=[1, 3], lr_decay=0.5)
    rates = []
    for i in range(4):
        roll_out(algorithm, seed=i)
        rates.append(float(algorithm.update()["Policy/learning_rate"]))
    assert rates == pytest.approx([1e-2, 5e-3, 5e-3, 2.5e-3])
    assert algorithm.optimizer.adam.param_groups[1]["lr"] == pytest.approx(2.5e-4)


@pytest.mark.parametrize(("desired", "bound"), [(1e-9, RATE_RANGE[0]), (1e9, RATE_RANGE[1])])
def test_learning_rates_follow_the_divergence_from_the_rollout(desired, bound):
    settings = {"num_epochs": 2, "learning_rate": 1e-2, "head_learning_rate": 1e-3}
    fixed, adapted = make(**settings), make(**settings, desired_kl=desired)
    for algorithm in (fixed, adapted):
        roll_out(algorithm)
    assert fixed.update()["Policy/learning_rate"] == pytest.approx(1e-2)
    assert adapted.update()["Policy/learning_rate"] == pytest.approx(1e-2 * bound)
    trunk, heads, _ = adapted.optimizer.adam.param_groups
    assert heads["lr"] == pytest.approx(0.1 * trunk["lr"])
    roll_out(adapted, seed=1)
    adapted.optimizer.set_iteration(1)
    assert trunk["lr"] == pytest.approx(1e-2 * bound)  # goes on where the last update ended


def test_the_first_minibatch_tells_nothing_of_the_divergence():
    """What it shows is rounding; the step sizes would grow with every rollout."""
    still = {"num_epochs": 2, "num_minibatches": 1, "learning_rate": 1e-9}
    algorithm = make(64, mixed_precision=True, desired_kl=0.02, **still)
    roll_out(algorithm)
    metrics = algorithm.update()
    assert metrics["Policy/kl"] > 0.0
    assert metrics["Policy/learning_rate"] == pytest.approx(1.5e-9)


def record_on_a_tape(algorithm: KMyriad) -> None:
    """Have the steps of minibatches recorded, as on a GPU."""
    algorithm._improve._graphs = True
    algorithm.optimizer._hold_rates()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"m": 1},
        {"desired_kl": 1e-3},
        {"lr_milestones": [1, 4], "lr_decay": 0.1},
        {"mixed_precision": True, "network": {"obs_normalization": True}},
    ],
    ids=str,
)
def test_a_recorded_step_is_the_step(changes, monkeypatch):
    """Replayed without Python: minibatches of two sizes, rates, normalisers and divergences are those of the time."""
    monkeypatch.setattr(policy_updates, "CapturedUpdate", TapedUpdate)
    settings = {"num_epochs": 2, "num_minibatches": 5, "learning_rate": 1e-2, **changes}  # of 12 rows: 3, 3, 2, 2, 2
    plain, recorded = make(**settings), make(**settings)
    plain.optimizer._hold_rates()
    record_on_a_tape(recorded)
    for i in range(6):
        metrics = []
        for algorithm in (plain, recorded):
            roll_out(algorithm, seed=i, diverge=((3, i % NUM_ENVS),))
            metrics.append(algorithm.update())
        torch.testing.assert_close(metrics[1], metrics[0])
        assert torch.equal(weights(plain), weights(recorded))
    steps = [step for _, step in recorded._improve._recorded.values()]
    assert len(steps) == 2
    assert all(step.tape is not None for step in steps)


@pytest.mark.gpu
@pytest.mark.parametrize("changes", [{}, {"desired_kl": 1e-3}, {"mixed_precision": True}], ids=str)
def test_a_cuda_graph_of_a_step_is_the_step(changes):
    settings = {"num_epochs": 2, "num_minibatches": 5, "learning_rate": 1e-2, "device": "cuda", **changes}
    plain, recorded = make(cuda_graph=False, **settings), make(**settings)
    for i in range(6):
        for algorithm in (plain, recorded):
            roll_out(algorithm, seed=i)
            algorithm.update()
    assert all(step._graph is not None for _, step in recorded._improve._recorded.values())
    torch.testing.assert_close(weights(plain), weights(recorded), rtol=1e-3, atol=1e-4)


def test_a_resumed_run_records_anew(monkeypatch):
    monkeypatch.setattr(policy_updates, "CapturedUpdate", TapedUpdate)
    whole, resumed = make(num_epochs=3), make(num_epochs=3, seed=5)
    for algorithm in (whole, resumed):
        record_on_a_tape(algorithm)
    for i in range(3):
        roll_out(whole, seed=i)
        roll_out(resumed, seed=9)
        for algorithm in (whole, resumed):
            algorithm.update()
    resumed.load_state_dict(copy.deepcopy(whole.state_dict()))
    for i in range(3, 6):
        for algorithm in (whole, resumed):
            roll_out(algorithm, seed=i)
            algorithm.update()
    assert torch.equal(weights(whole), weights(resumed))


def test_an_update_that_breaks_the_weights_is_undone():
    algorithm = make(num_epochs=2)
    roll_out(algorithm)
    algorithm.update()
    before = {k: v.clone() for k, v in algorithm.actor.state_dict().items()}
    moments = [s["exp_avg"].clone() for s in algorithm.optimizer.adam.state.values()]
    roll_out(algorithm, seed=1)
    algorithm.storage["pre_squash"][0, 0] = float("inf")
    assert algorithm.update()["Loss/restored"] == 1
    assert all(torch.equal(v, before[k]) for k, v in algorithm.actor.state_dict().items())
    after = [s["exp_avg"] for s in algorithm.optimizer.adam.state.values()]
    assert all(torch.equal(a, b) for a, b in zip(after, moments, strict=True))
    roll_out(algorithm, seed=2)
    assert algorithm.update()["Loss/restored"] == 0


def test_missing_final_observation_and_wrong_order_are_refused():
    algorithm = make()
    obs = TensorDict({"policy": torch.zeros(NUM_ENVS, NUM_OBS), "features": torch.zeros(NUM_ENVS, 2)}, [NUM_ENVS])
    flags = torch.zeros(NUM_ENVS, dtype=torch.bool)
    step = Step(obs, torch.zeros(NUM_ENVS, 2), torch.zeros(NUM_ENVS), flags, flags, obs, None, ~flags)
    with pytest.raises(ConfigurationError, match="call act"):
        algorithm.observe(step)
    algorithm.act(obs)
    with pytest.raises(ConfigurationError, match="final_obs=True"):
        algorithm.observe(step)
    with pytest.raises(ConfigurationError, match="0 are stored"):
        algorithm.update()


def test_no_bound_on_the_gradient_is_a_setting():
    make(max_grad_norm=math.inf)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"k": 24}, "k=24"),
        ({"k": 0}, "k=0"),
        ({"reward": "ow"}, "own"),
        ({"baseline": "none"}, "baseline"),
        ({"num_epochs": 0}, "num_epochs"),
        ({"feature_scale": [1.0, 2.0, 3.0]}, "3 entries for 2 features"),
        ({"feature_scale": [0.0]}, "feature_scale"),
        ({"feature_scale": [math.inf]}, "feature_scale"),
        ({"value_coef": -0.5}, "value_coef=-0.5"),
        ({"entropy_coef": math.nan}, "entropy_coef=nan"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"learning_rate": math.inf}, "learning_rate=inf must be positive and finite"),
        ({"max_grad_norm": math.nan}, "max_grad_norm=nan"),
        ({"lr_milestones": [-1]}, r"lr_milestones=\[-1\] must be ascending iterations of at least 1"),
        ({"lr_milestones": [80, 10]}, r"lr_milestones=\[80, 10\] must be ascending .*e\.g\. \[10, 80\]"),
        ({"head_learning_rate": math.inf}, "head_learning_rate=inf"),
        ({"head_learning_rate": -1.0}, "head_learning_rate"),
        ({"num_epochs": 2, "desired_kl": 0.0}, "desired_kl=0.0"),
        ({"num_epochs": 1, "desired_kl": 0.01}, "num_epochs above 1"),
        ({"num_epochs": 2, "desired_kl": 0.01, "lr_milestones": [3]}, "lr_milestones"),
        ({"particle_stride": 9}, "k=2"),
        ({"gamma": 1.5}, "gamma"),
        ({"max_particles": 2}, "max_particles=2"),
        ({"window": 0}, "window"),
        ({"num_envs": 7}, "num_policies=4"),
    ],
)
def test_bad_settings_are_refused(changes, message):
    with pytest.raises(ConfigurationError, match=message):
        make(**changes)


def test_a_checkpoint_of_other_networks_is_refused():
    one_step, wide = make(), make(network={"adapter_rank": 2, "adapter": "low_rank"})
    with pytest.raises(CheckpointError, match="num_epochs=1"):
        one_step.load_state_dict(make(num_epochs=2).state_dict())
    with pytest.raises(CheckpointError, match="does not fit the networks"):
        one_step.load_state_dict(wide.state_dict())
