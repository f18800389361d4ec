"""Acceptance tests of the estimators: known densities, invariances, the exact gradient, hand-computed values."""

from __future__ import annotations

import math

import pytest
import torch

from myriad_lab.errors import ConfigurationError
from myriad_lab.functional.collective import Collective
from myriad_lab.functional.entropy import (
    REWARD_KINDS,
    entropy,
    importance_weighted_entropy,
    knn_entropy,
    log_ball_volume,
    particle_rewards,
)
from myriad_lab.functional.estimators import (
    MIN_RADIUS,
    digamma,
    effective_sample_size,
    kl_from_radii,
    log_weight_sums,
)
from myriad_lab.functional.knn import knn
from myriad_lab.functional.masked import park_invalid

EULER = 0.5772156649015329
LINE = torch.tensor([[0.0], [1.0], [3.0], [7.0]], dtype=torch.float64)
LN2 = math.log(2.0)


def mixture(num, dim, seed=0):
    """Draw from half N(0, I), half N(3 e_1, 0.09 I); also return the ideal reward, -ln p."""
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(num, dim, generator=generator, dtype=torch.float64)
    points[: num // 2] = 0.3 * points[: num // 2]
    points[: num // 2, 0] += 3.0
    shifted = points.clone()
    shifted[:, 0] -= 3.0
    logs = torch.stack([-0.5 * points.square().sum(1), -0.5 * shifted.square().sum(1) / 0.09 - dim * math.log(0.3)])
    return points, -(logs.logsumexp(dim=0) - LN2 - 0.5 * dim * math.log(2 * math.pi))


def correlation(a, b):
    return float(torch.corrcoef(torch.stack([a, b]))[0, 1])


def test_log_ball_volume():
    radius = torch.tensor([2.0, 0.0], dtype=torch.float64)
    for dim, volume in ((1, 4.0), (2, 4 * math.pi), (3, 32 / 3 * math.pi)):
        found = log_ball_volume(radius, dim, 1e-3)
        assert found[0].exp().item() == pytest.approx(volume, rel=1e-12)
        assert found[1].item() == pytest.approx(found[0].item() + dim * math.log(1e-3 / 2), rel=1e-12)
    assert torch.isfinite(log_ball_volume(torch.tensor([0.0, 1e-4, 1e4]), 512)).all()


def test_digamma():
    assert digamma(1) == pytest.approx(-EULER, abs=1e-15)
    assert digamma(500) == pytest.approx(torch.digamma(torch.tensor(500.0, dtype=torch.float64)).item(), abs=1e-12)


def test_golden_on_a_line():
    """Points 0, 1, 3, 7: nearest at 1, 1, 2, 4; second nearest at 3, 2, 3, 6. V = 2r, M = 3."""
    one = particle_rewards(LINE, 1, "own")
    assert one.log_volumes.exp().tolist() == pytest.approx([2, 2, 4, 8])
    assert one.entropy.item() == pytest.approx(1.75 * LN2 + math.log(3) + EULER, abs=1e-12)
    two = particle_rewards(LINE, 2, "own")
    assert two.log_volumes.exp().tolist() == pytest.approx([6, 4, 6, 12])
    assert two.entropy.item() == pytest.approx(math.log(6 * 4 * 6 * 12) / 4 + math.log(3) - 1 + EULER, abs=1e-12)


def test_golden_rewards_on_a_line():
    """k = 2: neighbourhoods {0, 1}, {1, 0}, {2, 1}, {3, 2}, so R = {0, 1}, {0, 1, 2}, {2, 3}, {3}."""
    logs = [math.log(v) for v in (6, 4, 6, 12)]
    mean = sum(logs) / 4
    members = ((0, 1), (0, 1, 2), (2, 3), (3,))
    mepol = [sum(logs[i] + LN2 - 1 for i in rows) / 2 for rows in members]
    centred = [sum(logs[i] - mean for i in rows) / 2 for rows in members]
    assert particle_rewards(LINE, 2, "mepol").rewards.tolist() == pytest.approx(mepol, abs=1e-12)
    assert particle_rewards(LINE, 2, "centred").rewards.tolist() == pytest.approx(centred, abs=1e-12)
    assert particle_rewards(LINE, 2, "own").rewards.tolist() == pytest.approx(logs, abs=1e-12)


def test_golden_without_own_trajectory():
    """Trajectories {0, 1} and {3, 7}: nearest foreign at 3, 2, 2, 6; each sees M = 2."""
    found = particle_rewards(LINE, 1, "own", trajectory_ids=torch.tensor([5, 5, 8, 8]), exclude_own_trajectory=True)
    assert found.log_volumes.exp().tolist() == pytest.approx([6, 4, 4, 12])
    assert found.neighbours.flatten().tolist() == [2, 2, 1, 1]
    assert found.entropy.item() == pytest.approx(math.log(6 * 4 * 4 * 12) / 4 + LN2 + EULER, abs=1e-12)
    ids = torch.tensor([5, 5, 8, 8])
    assert entropy(LINE, 1, trajectory_ids=ids).item() == pytest.approx(found.entropy.item(), abs=1e-12)


# Columns: dimensions; Gaussian at k = 5 and 50; uniform cube at k = 5 and 50 (8192 particles; biased above d = 4).
BIAS = [
    (2, 2.85, 2.83, 0.02, 0.05),
    (4, 5.64, 5.61, 0.19, 0.35),
    (8, 11.26, 11.34, 0.98, 1.37),
    (16, 23.06, 23.50, 3.23, 3.95),
    (32, 47.94, 49.02, 8.71, 9.92),
    (64, 99.66, 101.75, 21.1, 23.2),
]


@pytest.mark.parametrize(("dim", "gauss_5", "gauss_50", "cube_5", "cube_50"), BIAS)
def test_expected_bias(dim, gauss_5, gauss_50, cube_5, cube_50):
    """Tolerance: four standard deviations of two independent estimates (spread of ln p, and trigamma(5) = 0.22), plus
    rounding of the table. The wrong k, M + 1 % or a lost ln(unit volume) would all be outside at d <= 8."""
    generator = torch.Generator().manual_seed(dim)
    clouds = (torch.randn(8192, dim, generator=generator), torch.rand(8192, dim, generator=generator))
    for points, expected, variance in zip(
        clouds, ((gauss_5, gauss_50), (cube_5, cube_50)), (dim / 2, dim / 12), strict=True
    ):
        distances, _ = knn(points, points, 50, exclude="self")
        for k, value in zip((5, 50), expected, strict=True):
            found = float(knn_entropy(log_ball_volume(distances[:, k - 1], dim), 8191, k))
            tolerance = 4 * math.sqrt(2 * (variance + 0.22) / 8192) + (0.05 if value > 20 and variance < 10 else 0.005)
            assert abs(found - value) < tolerance


def test_scaling_law_and_translation():
    points, _ = mixture(800, 3)
    for ids in (None, torch.arange(800) % 40):
        base = entropy(points, 5, trajectory_ids=ids)
        for scale in (0.05, 20.0):
            scaled = entropy(scale * points, 5, trajectory_ids=ids, min_radius=1e-12)
            assert abs(float(scaled - base) - 3 * math.log(scale)) < 1e-6
        assert abs(float(entropy(points + 57.0, 5, trajectory_ids=ids) - base)) < 1e-6


def test_translation_by_200_m_in_float32():
    points = 24.0 * torch.rand(4000, 2, generator=torch.Generator().manual_seed(0))
    moved = (points + 200.0) - 200.0  # The same points, rounded as they are at 200 m.
    assert abs(float(entropy(points + 200.0, 5) - entropy(moved, 5))) < 1e-5


def test_duplicates_are_finite():
    found = particle_rewards(torch.ones(50, 2), 5, "mepol", min_radius=1e-3)
    assert torch.isfinite(found.rewards).all()
    assert found.entropy.item() == pytest.approx(math.log(math.pi * 1e-6 * 49) - digamma(5), rel=1e-5)


def test_rows_may_be_permuted():
    points, _ = mixture(600, 2)
    order = torch.randperm(600, generator=torch.Generator().manual_seed(0))
    for kind in ("mepol", "centred", "own"):
        base, moved = particle_rewards(points, 5, kind), particle_rewards(points[order], 5, kind)
        torch.testing.assert_close(moved.rewards, base.rewards[order])
        torch.testing.assert_close(moved.entropy, base.entropy)


@pytest.mark.parametrize("exclude", [False, True])
@pytest.mark.parametrize("k", [1, 5, 20])
def test_mepol_is_the_gradient_of_the_weighted_estimate(k, exclude):
    """At equal policies dH / d log-ratio_j = (a_j - mean a) / N; and the estimate equals the plain one with ln N."""
    points, _ = mixture(400, 2)
    found = particle_rewards(points, k, "mepol", trajectory_ids=torch.arange(400) // 8, exclude_own_trajectory=exclude)
    log_ratios = torch.zeros(400, dtype=torch.float64, requires_grad=True)
    estimate = importance_weighted_entropy(found.log_volumes, found.neighbours, log_ratios)
    (gradient,) = torch.autograd.grad(estimate, log_ratios)
    torch.testing.assert_close(gradient, (found.rewards - found.rewards.mean()) / 400, rtol=0, atol=1e-16)
    assert estimate.item() == pytest.approx(float(knn_entropy(found.log_volumes, 400, k)), abs=1e-12)


def test_policy_gradient_with_reward_to_go_is_the_gradient_through_cumulative_ratios():
    """Two heads of linear Gaussian policies, 3 envs each, 10 steps: the closed form against autograd."""
    torch.manual_seed(0)
    heads, envs, steps = 2, 3, 10
    obs, noise = torch.randn(heads, envs, steps, 4).double(), torch.randn(heads, envs, steps, 2).double()
    weight = torch.randn(heads, 4, 2).double().requires_grad_()
    mean = torch.einsum("hetx,hxa->heta", obs, weight)
    actions = mean.detach() + noise
    log_prob = -0.5 * (actions - mean).square().sum(-1)
    particles = actions.cumsum(dim=2).flatten(0, 2)
    found = particle_rewards(particles, 4, "mepol")
    ratios = (log_prob - log_prob.detach()).cumsum(dim=2).flatten()
    estimate = importance_weighted_entropy(found.log_volumes, found.neighbours, ratios)
    (exact,) = torch.autograd.grad(estimate, weight, retain_graph=True)
    advantage = (found.rewards - found.rewards.mean()).view(heads, envs, steps)
    to_go = advantage.flip(2).cumsum(2).flip(2)
    (closed,) = torch.autograd.grad((log_prob * to_go).sum() / particles.shape[0], weight)
    torch.testing.assert_close(closed, exact, rtol=0, atol=1e-15)


def test_mepol_depends_on_the_unit_and_the_others_do_not():
    points, ideal = mixture(3000, 6)
    found = {
        (kind, scale): correlation(particle_rewards(scale * points, 5, kind, min_radius=1e-9).rewards, ideal)
        for kind in ("mepol", "centred", "own")
        for scale in (0.05, 1.0, 20.0)
    }
    assert found["mepol", 1.0] > 0.65
    assert found["mepol", 20.0] < 0.3
    assert found["mepol", 0.05] < found["centred", 0.05] - 0.1
    for scale in (0.05, 20.0):
        assert found["centred", scale] == pytest.approx(found["centred", 1.0], abs=1e-9)
        assert found["own", scale] == pytest.approx(found["own", 1.0], abs=1e-9)
    assert found["own", 1.0] > 0.97 > found["centred", 1.0] > 0.8


def test_own_trajectory_hides_the_density_of_walks():
    """100 walks of 100 steps in 7 dimensions, k = 5: 2.3 nats with, 7.1 nats without the own walk; ideally 7.0."""
    walks = (0.1 * torch.randn(100, 100, 7, generator=torch.Generator().manual_seed(0))).cumsum(1).flatten(0, 1)
    ids = torch.arange(100).repeat_interleave(100)
    assert float(entropy(walks, 5)) < 4.0
    assert abs(float(entropy(walks, 5, trajectory_ids=ids)) - 7.0) < 0.6


@pytest.mark.parametrize("kind", REWARD_KINDS)
@pytest.mark.parametrize("exclude", [False, True])
def test_parked_particles_reward_nobody(kind, exclude):
    """Fewer parked particles than k look for neighbours among the valid ones; those must not notice."""
    points = torch.randn(400, 2, generator=torch.Generator().manual_seed(3))
    ids = torch.arange(400) // 20
    valid = torch.ones(400, dtype=torch.bool)
    valid[[13, 14, 15, 16, 17, 18, 19, 399]] = False
    options = {"exclude_own_trajectory": exclude}
    found = particle_rewards(park_invalid(points, valid), 12, kind, trajectory_ids=ids, valid=valid, **options)
    alone = particle_rewards(points[valid], 12, kind, trajectory_ids=ids[valid], **options)
    torch.testing.assert_close(found.rewards[valid], alone.rewards)
    torch.testing.assert_close(found.entropy, alone.entropy)


def test_a_superset_of_references_changes_only_m():
    points, _ = mixture(2000, 2)
    own = torch.arange(2000)
    few = entropy(points[::5], 5, references=points, trajectory_ids=own[::5], reference_ids=own)
    assert float(few) == pytest.approx(
        float(particle_rewards(points, 5, "own").log_volumes[::5].mean()) + math.log(1999) - digamma(5)
    )
    independent, _ = mixture(2000, 2, seed=1)
    assert abs(float(entropy(points, 5, references=independent) - entropy(points, 5))) < 0.15


def test_golden_kl():
    """p = 0, 2, 6 and q = 1, 3: rho = 2, 2, 4; nu = 1, 1, 3; KL = (1/3) ln(3 / 16) + ln(2 / 2)."""
    found = kl_from_radii(torch.tensor([2.0, 2.0, 4.0]), torch.tensor([1.0, 1.0, 3.0]), 1, 3, 2, MIN_RADIUS)
    assert float(found) == pytest.approx(math.log(3 / 16) / 3, abs=1e-6)


def test_effective_sample_size():
    logs = torch.tensor([[3.0, 3.0, 3.0, 3.0], [0.0, -1e4, -1e4, -1e4], [0.0, math.log(3.0), -1e4, -1e4]])
    assert effective_sample_size(log_weight_sums(logs)).tolist() == pytest.approx([4.0, 1.0, 1.6], rel=1e-5)


def test_nothing_is_read_back_from_a_device():
    points, ids = torch.empty(65_536, 2, device="meta"), torch.empty(65_536, dtype=torch.long, device="meta")
    for kind in ("mepol", "centred", "own"):
        found = particle_rewards(points, 5, kind, trajectory_ids=ids, exclude_own_trajectory=True)
        importance_weighted_entropy(found.log_volumes, found.neighbours, found.rewards)
        assert found.rewards.shape == (65_536,)


def test_bad_input():
    with pytest.raises(ConfigurationError, match="Did you mean mepol"):
        particle_rewards(LINE, 1, "mepoll")
    with pytest.raises(ConfigurationError, match="trajectory_ids"):
        particle_rewards(LINE, 1, "own", exclude_own_trajectory=True)
    with pytest.raises(ConfigurationError, match="k = 4"):
        particle_rewards(LINE, 4, "own")


class Second(Collective):
    """The second of two ranks, without the first."""

    rank, world_size = 1, 2


@pytest.mark.parametrize("exclude", [False, True])
def test_a_rank_searches_the_pool_for_its_own_particles(exclude):
    """Copies of a particle, which may crowd it out among its own neighbours, are neighbours; it is not."""
    points = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
    points[30:38] = points[0]
    options = {"trajectory_ids": torch.arange(40) // 4, "exclude_own_trajectory": exclude}
    whole, part = particle_rewards(points, 3, **options), particle_rewards(points, 3, ranks=Second(), **options)
    torch.testing.assert_close(part.rewards, whole.rewards[20:])
    assert (part.neighbours != torch.arange(20, 40).unsqueeze(1)).all()
    distances = (points[part.neighbours] - points[20:].unsqueeze(1)).norm(dim=2)
    torch.testing.assert_close(distances[:, -1], (points[whole.neighbours] - points.unsqueeze(1)).norm(dim=2)[20:, -1])
