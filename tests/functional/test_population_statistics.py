"""Entropy of the pool = mean entropy of the policies + diversity, checked where all three are known."""

from __future__ import annotations

import math

import pytest
import torch

from myriad_lab.errors import ConfigurationError
from myriad_lab.functional.entropy import deal, entropy, kl_to_others, population_statistics
from myriad_lab.functional.knn import knn


def squares(num_policies, num_points, offset, seed=0):
    points = torch.rand(num_policies, num_points, 2, generator=torch.Generator().manual_seed(seed))
    points[..., 0] += offset * torch.arange(num_policies)[:, None]
    return points


def test_disjoint_squares_are_as_diverse_as_can_be():
    found = population_statistics(squares(2, 8192, 5.0), 5)
    assert float(found["diversity"]) == pytest.approx(math.log(2), abs=0.02)
    assert float(found["diversity_normalised"]) == pytest.approx(1.0, abs=0.03)
    torch.testing.assert_close(found["entropy_heads"], torch.zeros(2), atol=0.05, rtol=0)
    assert (found["kl_heads"] > 5.0).all()


def test_equal_policies_have_no_diversity():
    found = population_statistics(squares(4, 4096, 0.0), 5)
    assert abs(float(found["diversity"])) < 0.04
    assert found["kl_heads"].abs().max() < 0.08


def test_diversity_is_not_fooled_by_the_number_of_particles():
    """16 equal policies of 64 particles in 4 dimensions: the bias of 64 against 1024 particles would look like -0.4."""
    found = [
        population_statistics(torch.rand(16, 64, 4, generator=torch.Generator().manual_seed(seed)), 5)
        for seed in range(20)
    ]
    diversity = torch.stack([each["diversity"] for each in found]).mean()
    naive = torch.stack([each["entropy_pool"] - each["entropy_heads"].mean() for each in found]).mean()
    assert abs(float(diversity)) < 0.1
    assert float(naive) < -0.3


def test_half_overlap():
    """Two unit squares that share half: the pool has density 1/2 on an area of 1 and density 1 on the shared half."""
    found = population_statistics(squares(2, 8192, 0.5), 5)
    assert float(found["diversity"]) == pytest.approx(0.5 * math.log(2), abs=0.03)


def test_parts_equal_their_single_forms():
    points = squares(3, 500, 0.7)
    found = population_statistics(points, 5)
    assert float(found["entropy_pool"]) == pytest.approx(float(entropy(points.flatten(0, 1), 5)), abs=1e-6)
    for head in range(3):
        others = points[[i for i in range(3) if i != head]].flatten(0, 1)
        assert float(found["entropy_heads"][head]) == pytest.approx(float(entropy(points[head], 5)), abs=1e-5)
        rho = knn(points[head], points[head], 5, exclude="self")[0][:, -1]
        nu = knn(points[head], others, 5)[0][:, -1]
        expected = 2 * float((nu / rho).log().mean()) + math.log(1000 / 499)
        assert float(found["kl_heads"][head]) == pytest.approx(expected, abs=1e-5)


def test_divergence_of_gaussians():
    """KL(N(0, I) || N(e_1, I)) = 1/2, both ways."""
    points = torch.randn(2, 8192, 2, generator=torch.Generator().manual_seed(0))
    points[1, :, 0] += 1.0
    assert population_statistics(points, 5)["kl_heads"].tolist() == pytest.approx([0.5, 0.5], abs=0.07)


def test_one_policy():
    found = population_statistics(squares(1, 300, 0.0), 5)
    assert float(found["diversity"]) == float(found["diversity_normalised"]) == float(found["kl_heads"][0]) == 0.0
    assert float(found["entropy_heads"][0]) == float(found["entropy_pool"])


def test_policies_may_be_permuted():
    points = squares(5, 200, 0.4)
    order = [3, 0, 4, 1, 2]
    base, moved = population_statistics(points, 5), population_statistics(points[order], 5)
    torch.testing.assert_close(moved["entropy_pool"], base["entropy_pool"])
    torch.testing.assert_close(moved["entropy_heads"], base["entropy_heads"][order])
    torch.testing.assert_close(moved["kl_heads"], base["kl_heads"][order])


@pytest.mark.parametrize(("m", "n", "trajectories"), [(3, 12, 4), (7, 4, None), (4, 12, 2), (1, 6, 3), (3, 10, 3)])
def test_dealing_uses_every_particle_once_and_keeps_trajectories_whole(m, n, trajectories):
    points = torch.stack(torch.meshgrid(torch.arange(m), torch.arange(n), indexing="ij"), dim=-1).float()
    groups = deal(points, trajectories)
    assert groups.shape == points.shape
    assert torch.equal(torch.unique(groups.flatten(0, 1), dim=0), points.flatten(0, 1))
    runs = min(m, n if trajectories is None else trajectories)
    for group in groups[..., 0]:
        policies, lengths = torch.unique_consecutive(group, return_counts=True)
        assert len(policies.unique()) == len(policies) == runs
        assert lengths.max() - lengths.min() <= 1


def walks(num_policies, num_trajectories, length, seed):
    """Random walks of one law; particles of a trajectory lie together."""
    generator = torch.Generator().manual_seed(seed)
    steps = torch.randn(num_policies, num_trajectories, length, 2, generator=generator)
    return steps.cumsum(dim=2).flatten(1, 2)


def test_diversity_is_not_fooled_by_few_trajectories():
    """8 equal policies of 8 walks each; told from a pool of single particles they would seem to differ by 0.5 nat."""
    found = [population_statistics(walks(8, 8, 150, seed), 30, num_trajectories=8) for seed in range(8)]
    diversity = torch.stack([each["diversity"] for each in found])
    assert abs(float(diversity.mean())) < 3.0 * float(diversity.std()) / math.sqrt(8) + 0.01
    assert float(diversity.std()) < 0.15
    generator = torch.Generator().manual_seed(0)
    torn = walks(8, 8, 150, 0)[:, torch.randperm(1200, generator=generator)]
    assert float(population_statistics(torn, 30, num_trajectories=8)["diversity"]) > 0.3


def test_diversity_of_walks_from_different_places():
    """Four policies that share nothing differ by ln 4; few trajectories can show less of it, never more."""
    offset = 1e3 * torch.arange(4.0).view(4, 1, 1)
    found = [
        float(population_statistics(walks(4, count, 20, 0) + offset, 5, num_trajectories=count)["diversity"])
        for count in (2, 16, 256)
    ]
    assert 0.0 < found[0] < found[1] < found[2] < math.log(4) + 0.02
    assert found[0] < math.log(2) + 0.02
    assert found[2] == pytest.approx(math.log(4), abs=0.15)


def test_many_policies():
    found = population_statistics(squares(1024, 16, 0.01), 5)
    assert all(torch.isfinite(value).all() for value in found.values())
    assert found["kl_heads"].shape == (1024,)


def test_nothing_is_read_back_from_a_device():
    points = torch.empty(64, 1024, 2, device="meta")
    assert kl_to_others(points, points[..., 0], 5).shape == (64,)


def test_bad_input():
    with pytest.raises(ConfigurationError, match="k = 5 with 5 particles for each of 3"):
        population_statistics(squares(3, 5, 0.0), 5)
    with pytest.raises(ConfigurationError, match=r"\(m, n, d\)"):
        population_statistics(torch.rand(10, 2), 5)
