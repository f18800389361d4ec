"""The formulas of the floors, against figures worked out by hand elsewhere and against counting."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from myriad_lab.cli.benchmarks.floors import Updates, fasttd3_transition_bytes, layer_flops, overlap_efficiency
from myriad_lab.cli.benchmarks.plain import PlainReplay, PlainTD3

RATE, WIDTH = 790e12, 4.3e12
"""An H200: bfloat16 arithmetic [FLOP/s] and memory [B/s]."""
S, M = (512, 256, 128), (1024, 512, 256)


@pytest.mark.parametrize(
    ("hidden", "rows", "critic", "policy", "times"),
    [
        (S, 2048, 7.5, 5.6, (10, 7, 8)),
        (S, 8192, 30.2, 22.4, (38, 28, 19)),
        (S, 16384, 60.4, 44.8, (76, 57, 34)),
        (S, 32768, 121, 90, (153, 113, 65)),
        (M, 2048, 27.2, 20.6, (34, 26, 22)),
        (M, 8192, 109, 82, (138, 104, 43)),
        (M, 16384, 217, 165, (275, 209, 72)),
        (M, 32768, 435, 329, (550, 417, 129)),
    ],
)
def test_table_of_88_observations_and_16_actions(
    hidden: tuple[int, ...], rows: int, critic: float, policy: float, times: tuple[int, int, int]
) -> None:
    """GFLOP, and microseconds of critic and policy arithmetic and of the bytes of a fused critic update."""
    updates = Updates(88, 16, hidden)
    assert updates.critic_flops(rows) / 1e9 == pytest.approx(critic, rel=0.01)
    assert updates.policy_flops(rows) / 1e9 == pytest.approx(policy, rel=0.01)
    widths = [104, *hidden, 1]
    pair = 2 * sum(a * b + b for a, b in itertools.pairwise(widths))
    moved = updates.critic_bytes(rows, 4 * (2 * 88 + 16 + 2), pair)
    found = updates.critic_flops(rows) / RATE, updates.policy_flops(rows) / RATE, moved / WIDTH
    assert [1e6 * seconds for seconds in found] == pytest.approx(times, abs=0.6)


@pytest.mark.parametrize(
    ("shape", "atoms", "small", "medium"),
    [
        ((108, 21), 1, (40, 29), (141, 106)),
        ((211, 20), 1, (48, 34), (156, 115)),
        ((123, 37), 101, (44, 32), (150, 111)),
        ((310, 37), 101, (58, 40), (178, 127)),
    ],
)
def test_other_shapes(shape: tuple[int, int], atoms: int, small: tuple[int, int], medium: tuple[int, int]) -> None:
    for hidden, times in ((S, small), (M, medium)):
        updates = Updates(*shape, hidden, atoms)
        found = [1e6 * flops / RATE for flops in (updates.critic_flops(8192), updates.policy_flops(8192))]
        assert found == pytest.approx(times, abs=1.1)


@pytest.mark.parametrize("hidden", [(32, 16), (24, 24, 8)])
def test_formulas_count_what_torch_counts(hidden: tuple[int, ...]) -> None:
    """The plain updates do the arithmetic of the formulas, besides what only autograd's modules do."""
    obs, rows = torch.randn(64, 12), 64
    learner, updates = PlainTD3(12, 5, hidden, "cpu"), Updates(12, 5, hidden)
    with FlopCounterMode(display=False) as counter:
        learner.value_update(obs, torch.zeros(rows, 5), torch.zeros(rows), obs, torch.ones(rows))
    assert counter.get_total_flops() == updates.critic_flops(rows)
    with FlopCounterMode(display=False) as counter:
        learner.policy_update(obs)
    # autograd forms the gradient of the whole input of a critic, of which only the action's part is needed
    assert counter.get_total_flops() - updates.policy_flops(rows) == 2 * 2 * rows * 12 * hidden[0]


def test_bytes_of_a_policy_update() -> None:
    updates = Updates(88, 16, S)
    assert updates.policy_bytes(8192, 0) == 8192 * (4 * 88 + 4 * 896)
    assert updates.policy_bytes(0, 1000) == 28_000
    assert updates.critic_bytes(10, 7.0, 0, item=4) - updates.critic_bytes(10, 7.0, 0) == 10 * 8 * 896
    assert layer_flops([3, 4, 5]) == 2 * (12 + 20)


def test_fasttd3_layout() -> None:
    assert fasttd3_transition_bytes(123, 37) == 1152
    assert fasttd3_transition_bytes(310, 37) == 2648
    assert fasttd3_transition_bytes(10, 2, 20) == fasttd3_transition_bytes(10, 2) + 160
    assert PlainReplay(4, 8, 123, 37, "cpu").num_bytes == 4 * 8 * 1152


def test_overlap_arithmetic() -> None:
    assert overlap_efficiency(30.0, 20.0, 50.0) == 0.0
    assert overlap_efficiency(30.0, 20.0, 30.0) == 1.0
    assert overlap_efficiency(20.0, 30.0, 40.0) == 0.5
    assert overlap_efficiency(20.0, 30.0, 60.0) == -0.5
