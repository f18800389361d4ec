from __future__ import annotations

import math

import numpy as np
import pytest

from myriad_lab.errors import CheckpointError, ConfigurationError
from myriad_lab.evaluation.diversity import diversity_metrics
from myriad_lab.evaluation.metrics import choose_best_head, coverage, episode_metrics, held_out_best, interval
from myriad_lab.portfolio.recording import EpisodeRecord

EXTENT = (0.0, 10.0, 0.0, 10.0)


def make_record(returns: np.ndarray, success: np.ndarray | None = None, **arrays: np.ndarray) -> EpisodeRecord:
    zeros = np.zeros(returns.shape)
    return EpisodeRecord(returns, zeros.astype(np.int64) + 7, zeros.astype(bool), success, **arrays)


def make_visits(points: np.ndarray) -> EpisodeRecord:
    return make_record(np.zeros(points.shape[:2]), features=points, valid=np.ones(points.shape[:3], dtype=bool))


def test_interval_holds_the_mean_and_shrinks() -> None:
    draws = np.random.default_rng(0).normal(3.0, 1.0, 400)
    few, many = interval(draws[:20]), interval(draws)
    assert few["low"] < few["mean"] < few["high"]
    assert many["high"] - many["low"] < 0.5 * (few["high"] - few["low"])
    assert many["high"] - many["low"] == pytest.approx(2 * 1.96 / math.sqrt(400), rel=0.2)
    assert interval([2.0]) == {"mean": 2.0, "low": 2.0, "high": 2.0, "n": 1}


def test_episode_metrics_per_head_and_together() -> None:
    returns = np.array([[1.0, 3.0], [5.0, 7.0]])
    success = np.array([[True, False], [True, True]])
    portfolio, heads = episode_metrics(make_record(returns, success))
    assert portfolio["return"]["mean"] == 4.0
    assert portfolio["success"]["mean"] == 0.75
    assert [head["return"]["mean"] for head in heads] == [2.0, 6.0]
    assert [head["success"]["mean"] for head in heads] == [0.5, 1.0]
    assert portfolio["length"]["mean"] == 7.0
    assert episode_metrics(make_record(returns))[0]["success"] is None


def test_coverage_counts_reachable_cells_once() -> None:
    reachable = np.zeros((10, 10), dtype=bool)
    reachable[:4] = True  # x in [0, 4)
    first = np.array([[0.5, 0.5], [0.6, 0.4], [1.5, 0.5]])
    second = np.array([[1.5, 0.5], [9.5, 0.5], [-3.0, 0.5]])  # known already, out of reach, outside
    share, shares = coverage([first, second], EXTENT, reachable)
    assert share == pytest.approx(2 / 40)
    assert shares == pytest.approx([2 / 40, 1 / 40])
    with pytest.raises(ConfigurationError, match="0 cells"):
        coverage([first], EXTENT, reachable & False)


def test_best_head_by_success_then_return_then_coverage() -> None:
    rows = [{"success": 0.5, "return": 1.0}, {"success": 0.9, "return": 0.0}, {"success": 0.9, "return": 2.0}]
    assert choose_best_head(rows) == {"head": 2, "metric": "success", "value": 0.9}
    same = [{"success": None, "return": 0.0, "coverage": c} for c in (0.1, 0.4, 0.2)]
    assert choose_best_head(same) == {"head": 1, "metric": "coverage", "value": 0.4}
    assert choose_best_head([{"return": 3.0}])["head"] == 0
    with pytest.raises(ConfigurationError, match="neither success, return, coverage nor entropy"):
        choose_best_head([{}, {}])


def test_held_out_best_does_not_flatter() -> None:
    generator = np.random.default_rng(0)
    flattered, honest = [], []
    for _ in range(200):
        success = generator.random((16, 32)) < 0.5  # all heads are equally good
        flattered.append(success.mean(axis=1).max())
        honest.append(held_out_best(make_record(success.astype(float), success))["success"]["mean"])
    assert np.mean(flattered) > 0.6
    assert np.mean(honest) == pytest.approx(0.5, abs=0.03)
    with pytest.raises(ConfigurationError, match="two at least"):
        held_out_best(make_record(np.zeros((2, 1))))


def test_disjoint_heads_are_as_diverse_as_can_be() -> None:
    generator = np.random.default_rng(0)
    points = generator.random((4, 8, 201, 2)).astype(np.float32)
    points[..., 0] += 10.0 * np.arange(4)[:, None, None]
    apart, rows = diversity_metrics(make_visits(points), k=5, pool_size=1600)
    # A group from all heads is sparser than a head, so the edges of the squares bias its entropy upwards a little.
    assert apart["diversity"]["mean"] == pytest.approx(math.log(4), abs=0.2)
    assert apart["diversity_normalised"]["mean"] == pytest.approx(1.0, abs=0.15)
    assert apart["entropy_heads_mean"]["mean"] == pytest.approx(0.0, abs=0.2)  # ln of the area 1
    assert apart["entropy_pool"]["mean"] == pytest.approx(math.log(4), abs=0.2)
    assert (apart["groups"], apart["pool_size"], apart["k"]) == (2, 1600, 5)  # 2 groups of 4 of the 8 episodes
    assert all(row["kl"]["mean"] > 2.0 for row in rows)
    together, _ = diversity_metrics(make_visits(generator.random((4, 8, 200, 2)).astype(np.float32)), k=5)
    assert abs(together["diversity"]["mean"]) < 0.1


def test_the_common_start_does_not_count() -> None:
    points = np.random.default_rng(3).random((2, 32, 41, 2)).astype(np.float32)
    points[:, :, 0] = 0.5  # 64 copies of one state: more than k of them, at distance 0 from each other
    found, _ = diversity_metrics(make_visits(points), k=5, num_groups=1)
    assert found["pool_size"] == 2 * 32 * 40
    assert found["entropy_pool"]["mean"] == pytest.approx(0.0, abs=0.05)  # ln of the area 1


def test_interval_of_the_entropy_covers_fresh_data() -> None:
    generator = np.random.default_rng(1)
    found, _ = diversity_metrics(make_visits(generator.random((2, 32, 100, 2)).astype(np.float32)), k=10)
    again, _ = diversity_metrics(make_visits(generator.random((2, 32, 100, 2)).astype(np.float32)), k=10)
    width = found["entropy_pool"]["high"] - found["entropy_pool"]["low"]
    assert 0.0 < width < 0.2
    assert abs(found["entropy_pool"]["mean"] - again["entropy_pool"]["mean"]) < 2 * width


def test_bad_recordings_are_refused() -> None:
    points = np.random.default_rng(0).random((2, 4, 10, 2)).astype(np.float32)
    with pytest.raises(ConfigurationError, match=r"k=18 with 18 particles for each of"):
        diversity_metrics(make_visits(points), k=18)
    with pytest.raises(ConfigurationError, match="no features"):
        diversity_metrics(make_record(np.zeros((2, 2))))
    broken = points.copy()
    broken[1, 2, 3] = np.nan
    with pytest.raises(ConfigurationError, match="NaN or infinity"):
        diversity_metrics(make_visits(broken), k=3)
    empty = make_visits(points)
    assert empty.valid is not None
    empty.valid[1] = False
    with pytest.raises(ConfigurationError, match="no recorded state"):
        diversity_metrics(empty, k=3)
    with pytest.raises(CheckpointError, match="holds no features"):
        make_record(np.zeros((1, 1))).visits()
