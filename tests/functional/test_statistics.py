"""Bootstrap intervals."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from myriad_lab.errors import ConfigurationError
from myriad_lab.functional.statistics import bootstrap_interval


def test_interval_covers_the_mean_as_often_as_it_says():
    """60 normal values, 90 %: the share of 300 intervals that hold the truth has a standard error of 1.7 %."""
    generator = np.random.default_rng(0)
    held = 0
    for seed in range(300):
        _, low, high = bootstrap_interval(generator.normal(3.0, 2.0, 60), 0.9, 400, seed)
        held += low <= 3.0 <= high
    assert 0.83 < held / 300 < 0.95


def test_interval_narrows_with_confidence_and_repeats_with_the_seed():
    values = torch.tensor([0.1, 0.4, 0.5, 0.9, 1.3])
    wide, narrow = bootstrap_interval(values, 0.99), bootstrap_interval(values, 0.5)
    assert wide[0] == narrow[0] == pytest.approx(0.64)
    assert wide[1] < narrow[1] < 0.64 < narrow[2] < wide[2]
    assert wide == bootstrap_interval(values.numpy(), 0.99)
    assert bootstrap_interval(values, 0.99, 100) != bootstrap_interval(values, 0.99, 100, seed=1)


def test_one_value_has_no_spread():
    assert bootstrap_interval([2.5]) == (2.5, 2.5, 2.5)


def test_a_large_sample_is_resampled_in_parts():
    value, low, high = bootstrap_interval(np.linspace(0.0, 1.0, 3001), num_resamples=3000)
    assert value == pytest.approx(0.5)
    assert low < 0.5 < high < low + 0.03


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bootstrap_interval([]), "no values"),
        (lambda: bootstrap_interval([1.0, float("nan")]), "finite"),
        (lambda: bootstrap_interval([1.0], 95.0), "confidence=95"),
        (lambda: bootstrap_interval([1.0], num_resamples=0), "num_resamples"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ConfigurationError, match=message):
        call()
