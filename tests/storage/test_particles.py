"""The particle ring: every sampled row is predicted, since a particle *is* (policy, iteration, slot)."""

from __future__ import annotations

import logging

import pytest
import torch

from host_waits import NoHostWaits
from myriad_lab.errors import CheckpointError, ConfigurationError
from myriad_lab.storage.particles import ParticleBuffer


def particles(num_policies, count, iteration):
    """Return features (policy, iteration, slot) and ids 1000 iteration + 10 policy + slot // 2."""
    policy, slot = torch.meshgrid(torch.arange(num_policies), torch.arange(count), indexing="ij")
    features = torch.stack([policy, torch.full_like(policy, iteration), slot], dim=-1).float()
    return features, 1000 * iteration + 10 * policy + slot // 2


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def check(features, ids):
    """Every row belongs to its policy and its id tells the same as its features."""
    policy, iteration, slot = features.unbind(-1)
    assert (policy == torch.arange(len(features))[:, None]).all()
    assert (ids == (1000 * iteration + 10 * policy + slot // 2)).all()


@pytest.mark.parametrize("capacity", [6, 7, 12, 17])
def test_the_ring_holds_the_latest_particles(capacity):
    buffer = ParticleBuffer(3, capacity, 3)
    for iteration in range(5):
        buffer.add(*particles(3, 6, iteration))
    assert buffer.num_filled == capacity
    features, ids = buffer.sample(capacity, generator())
    check(features, ids)
    order = (6 * features[..., 1] + features[..., 2]).sort(dim=1).values
    assert (order == torch.arange(30 - capacity, 30)).all()


def test_strata_spread_over_the_slots_and_draw_each_one():
    buffer = ParticleBuffer(2, 40, 3)
    buffer.add(*particles(2, 40, 0))
    seen = set()
    for seed in range(60):
        features, ids = buffer.sample(10, generator(seed))
        check(features, ids)
        assert (features[..., 2] // 4 == torch.arange(10)).all()
        seen |= set(features[0, :, 2].tolist())
    assert len(seen) == 40
    policies, _ = buffer.sample(40, generator())
    assert (policies[..., 2] == torch.arange(40)).all()


@pytest.mark.parametrize("count", [1, 7, 13])
def test_no_particle_twice_where_strata_are_uneven(count):
    buffer = ParticleBuffer(4, 13, 3)
    buffer.add(*particles(4, 13, 0))
    for seed in range(20):
        features, _ = buffer.sample(count, generator(seed))
        assert all(len(set(row)) == count for row in features[..., 2].tolist())


@pytest.mark.parametrize(("window", "iterations"), [(1, {4}), (2, {3, 4}), (9, {2, 3, 4}), (None, {2, 3, 4})])
def test_window_over_past_iterations(window, iterations):
    buffer = ParticleBuffer(2, 15, 3)
    for iteration in range(5):
        buffer.add(*particles(2, 5, iteration))
    features, ids = buffer.sample(5 * len(iterations), generator(), window=window)
    check(features, ids)
    assert set(features[..., 1].flatten().tolist()) == iterations


def test_window_of_parts_that_differ_in_size():
    buffer = ParticleBuffer(1, 8, 3)
    for iteration, count in enumerate((8, 3, 2)):
        buffer.add(*particles(1, count, iteration))
    assert sorted(buffer.sample(5, generator(), window=2)[0][0, :, 1].tolist()) == [1, 1, 1, 2, 2]
    assert sorted(buffer.sample(8, generator(), window=3)[0][0, :, 1].tolist()) == [0, 0, 0, 1, 1, 1, 2, 2]


def test_invalid_particles_are_never_sampled():
    buffer = ParticleBuffer(3, 20, 3)
    features, ids = particles(3, 20, 0)
    valid = torch.rand(3, 20, generator=generator(5)) < 0.6
    valid[1, 2:], valid[1, :2], valid[2] = False, True, False
    buffer.add(torch.where(valid.unsqueeze(-1), features, torch.inf), ids, valid)
    drawn, drawn_ids = buffer.sample(4, generator())
    check(drawn[:2], drawn_ids[:2])
    assert valid[0][drawn[0, :, 2].long()].all()
    assert len(set(drawn[0, :, 2].tolist())) == 4
    assert set(drawn[1, :, 2].tolist()) == {0.0, 1.0}  # Two usable ones, four asked for: repeated.
    assert drawn[2].isnan().all()
    assert (drawn_ids[2] == -1).all()


def test_unwritten_slots_are_poison():
    buffer = ParticleBuffer(2, 9, 3)
    assert buffer.state_dict()["features"].isnan().all()
    buffer.add(*particles(2, 4, 0))
    assert torch.isfinite(buffer.sample(4, generator())[0]).all()
    with pytest.raises(ConfigurationError, match="5 particles asked for of each policy, 4 are"):
        buffer.sample(5, generator())


def test_65536_envs_of_1024_policies(caplog):
    """Every policy has 64 envs x 4 particles an iteration, the window holds three iterations; no host waits."""
    with caplog.at_level(logging.INFO):
        buffer = ParticleBuffer(1024, 768, 2)
    assert buffer.num_bytes == 1024 * 768 * (2 * 4 + 8)
    assert "12.0 MiB" in caplog.text
    ids = torch.arange(65_536).repeat_interleave(4).view(1024, 256)
    with NoHostWaits():
        for iteration in range(4):
            rows = torch.stack([ids.float(), torch.full((1024, 256), float(iteration))], dim=-1)
            buffer.add(rows, ids + 65_536 * iteration, valid=ids % 7 > 0)
        features, drawn = buffer.sample(64, generator(), window=2)
    assert features.shape == (1024, 64, 2)
    assert (features[..., 0] + 65_536 * features[..., 1] == drawn).all()
    assert set(features[..., 1].unique().tolist()) == {2.0, 3.0}
    assert (features[..., 0] // 64 == torch.arange(1024)[:, None]).all()
    assert (features[..., 0] % 7 > 0).all()
    assert all(len(set(row)) >= 40 for row in drawn[::100].tolist())  # Of 110 usable trajectories.


def test_state_goes_round():
    buffer, other = ParticleBuffer(2, 7, 3), ParticleBuffer(2, 7, 3)
    for iteration in range(3):
        buffer.add(*particles(2, 3, iteration))
    other.load_state_dict(buffer.state_dict())
    for part in (buffer, other):
        part.add(*particles(2, 3, 3))
    for window in (1, 2, None):
        for mine, theirs in zip(
            buffer.sample(3, generator(), window=window), other.sample(3, generator(), window=window), strict=True
        ):
            assert torch.equal(mine, theirs)
    with pytest.raises(CheckpointError, match=r"\(2, 7, 3\)"):
        ParticleBuffer(2, 8, 3).load_state_dict(buffer.state_dict())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda b: ParticleBuffer(0, 4, 2), "num_policies=0"),
        (lambda b: b.add(torch.zeros(3, 4, 3), torch.zeros(3, 4).long()), r"\(2, n, 3\)"),
        (lambda b: b.add(torch.zeros(2, 4, 3), torch.zeros(2, 5).long()), r"\(2, 5\)"),
        (lambda b: b.add(*particles(2, 9, 0)), "9 particles .* 8 slots"),
        (lambda b: b.sample(1, generator(), window=0), "window=0"),
        (lambda b: b.sample(1, generator()), "0 are in the buffer"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ConfigurationError, match=message):
        call(ParticleBuffer(2, 8, 3))
