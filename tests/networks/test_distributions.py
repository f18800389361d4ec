from __future__ import annotations

import torch
from torch.distributions import Independent, Normal

from myriad_lab.networks.distributions import TanhGaussian
from myriad_lab.networks.normalizer import RunningNormalizer


def make_policy() -> TanhGaussian:
    g = torch.Generator().manual_seed(0)
    return TanhGaussian(torch.randn(7, 3, generator=g), 0.3 * torch.randn(7, 3, generator=g))


def test_log_densities_agree_with_torch():
    policy = make_policy()
    u = policy.sample(torch.Generator().manual_seed(1))
    base = Independent(Normal(policy.mean, policy.log_std.exp()), 1)
    torch.testing.assert_close(policy.log_prob(u), base.log_prob(u))
    torch.testing.assert_close(policy.entropy(), base.entropy())


def test_normalizer_does_not_depend_on_how_the_data_were_cut():
    data = torch.randn(1000, 4, generator=torch.Generator().manual_seed(3)) * 5.0 + 100.0
    whole, parts = RunningNormalizer(4), RunningNormalizer(4)
    whole.update(data)
    for part in data.split([1, 9, 340, 650]):
        parts.update(part)
    torch.testing.assert_close(parts.mean, data.mean(0))
    torch.testing.assert_close(parts.var, data.var(0, correction=0), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(parts(data), whole(data), rtol=1e-3, atol=1e-3)
    assert parts.count == 1000


def test_normalizer_starts_as_identity_clips_and_is_saved():
    normalizer = RunningNormalizer(2, clip=3.0)
    torch.testing.assert_close(normalizer(torch.tensor([[1.0, -2.0]])), torch.tensor([[1.0, -2.0]]))
    normalizer.update(torch.tensor([[0.0, 1.0], [2.0, 5.0]]))
    assert normalizer(torch.tensor([[100.0, -100.0]])).tolist() == [[3.0, -3.0]]
    copy = RunningNormalizer(2, clip=3.0)
    copy.load_state_dict(normalizer.state_dict())
    assert torch.equal(copy.mean, normalizer.mean)
    assert torch.equal(copy.var, normalizer.var)
