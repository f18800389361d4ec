from __future__ import annotations

import pytest
import torch

from myriad_lab.algorithms.repeated_noise import RepeatedNoise


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def lengths(rows: torch.Tensor) -> list[int]:
    """Return how long each draw of one env lasted; the last one may have been cut off and is left out."""
    changes = (rows[1:] != rows[:-1]).any(1).nonzero().flatten() + 1
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), changes])
    return starts.diff().tolist()


def test_without_repetition_it_is_plain_noise() -> None:
    noise, plain = RepeatedNoise(5, 3, longest=1), generator()
    ours = generator()
    for _ in range(3):
        assert torch.equal(noise.draw(ours), torch.randn(5, 3, generator=plain))


def test_draws_last_as_long_as_the_power_law_says() -> None:
    source, longest, num_envs, steps = generator(), 4, 50, 1000
    noise = RepeatedNoise(num_envs, 2, longest)
    drawn = torch.stack([noise.draw(source).clone() for _ in range(steps)])
    counts = torch.zeros(longest + 1)
    for env in range(num_envs):
        for length in lengths(drawn[:, env]):
            counts[length] += 1
    shares = torch.tensor([1.0, 1 / 4, 1 / 9, 1 / 16])
    assert torch.allclose(counts[1:] / counts.sum(), shares / shares.sum(), atol=0.01)
    assert drawn.mean().abs() < 0.02
    assert drawn.std() == pytest.approx(1.0, abs=0.02)


def test_envs_change_their_noise_by_themselves() -> None:
    source, noise = generator(), RepeatedNoise(200, 1, 16)
    before, shares = noise.draw(source), []
    for _ in range(60):
        after = noise.draw(source)
        shares.append(float((after != before).float().mean()))
        before = after
    assert min(shares[20:]) > 0.2
    assert max(shares[20:]) < 0.8


def test_it_goes_on_where_it_was() -> None:
    first, second = RepeatedNoise(8, 2, 9), RepeatedNoise(8, 2, 9)
    ours, theirs = generator(), generator()
    for _ in range(7):
        first.draw(ours)
    second.load_state_dict(first.state_dict())
    theirs.set_state(ours.get_state())
    for _ in range(9):
        assert torch.equal(first.draw(ours), second.draw(theirs))
