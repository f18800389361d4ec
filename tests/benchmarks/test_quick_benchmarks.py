"""The quick cases of learner, population and replay run, and their lines say what they should."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch

from myriad_lab.cli.benchmarks import learner, population, rates, replay
from myriad_lab.cli.benchmarks.line import BenchmarkLine, Timing
from myriad_lab.cli.benchmarks.plain import PlainReplay


@pytest.fixture(autouse=True)
def no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run each work once and take its place in the alphabet for its time, so that floors can be predicted."""

    def in_turns(works: dict, device: str, quick: bool) -> dict[str, Timing]:
        for name, work in works.items():
            if not name.startswith("large"):
                work()
        return {name: Timing(1.0, 2.0) for name in works}

    for module in (learner, population, replay):
        monkeypatch.setattr(module, "in_turns", in_turns)
    monkeypatch.setattr(rates.Yardsticks, "read", lambda self, timings: rates.Rates(flops=1e9, bytes=1e9))


def lines_of(module: ModuleType, device: str = "cpu") -> list[BenchmarkLine]:
    cases = module.cases(device, quick=True)
    assert len({case.name for case in cases}) == len(cases)
    return [line for case in cases for line in case.run()]


def test_learner() -> None:
    lines = lines_of(learner)
    assert [line.name for line in lines[:6]] == [
        f"{kind}, S {precision}"
        for precision in ("fp32", "bf16")
        for kind in ("critic update", "policy update", "round")
    ]
    assert lines[6].name == "critic update, S fp32 x4"
    assert {line.size for line in lines} == {"256 rows", "4 x 64 rows"}
    default = [line for line in lines if line.name == "critic update, S default fp32"]
    assert [line.peer for line in default] == ["plain torch, scalar critics"]
    atoms = 100 * 2 * 128 * (4 + 4) * 256  # products of the last layers of twin critics and targets beyond a scalar's
    assert default[0].floor_s == pytest.approx((lines[0].floor_s or 0.0) + atoms / 1e9)
    critic, policy, both = (line.floor_s or 0.0 for line in lines[:3])
    assert critic == pytest.approx(30.2 * 256 / 8192, rel=0.01)
    assert both == pytest.approx(2 * critic + policy)
    assert [line.peer for line in lines[:3]] == ["plain torch", "plain torch", ""]
    assert all(line.peak_bytes for line in lines)


def test_a_round_does_its_updates() -> None:
    agent = learner.make_learner("S", 2, 16, "cpu", False, 32)
    step = learner.random_step(32, "cpu")
    for done in range(4):
        assert (agent.counts.value_updates, agent.counts.policy_updates) == (2 * max(0, done - 1), max(0, done - 1))
        learner._round(agent, step)


def test_learner_sizes() -> None:
    names = [case.name for case in learner.cases("cpu", quick=False)]
    assert len(names) == len(set(names)) == 2 * (2 * 4 + 2 + 2)
    assert {"M, bf16, 1 x 32768", "S, fp32, 32 x 256"} < set(names)


def test_population() -> None:
    lines = lines_of(population)
    assert [(line.name, line.size) for line in lines] == [
        (f"population {kind}, {precision}, 512 envs", f"m = {m}")
        for m in (1, 8, 64)
        for precision in ("fp32", "bf16")
        for kind in ("act", "update")
    ]
    weights = 48 * 512 + 512 * 256
    head = 256 * 256 + 256 + 256 * 8 + 8 + 8
    assert lines[0].floor_s == pytest.approx(2 * 512 * (weights + head) / 1e9)
    assert lines[1].floor_s == pytest.approx(2 * 512 * (3 * (weights + head) - 48 * 512) / 1e9)
    cases = population.cases("cpu", quick=False)
    assert [case.name for case in cases][-5::2] == [
        "m = 4096, full, bf16, 4096 envs", "m = 1024, low_rank, bf16, 4096 envs", "m = 4096, low_rank, bf16, 4096 envs",
    ]  # fmt: skip
    assert cases[12].needs_bytes > 5 * 2**30 > cases[11].needs_bytes
    assert len(population.cases("cuda:0", quick=False)) == 2 * len(cases)


def test_replay() -> None:
    lines = lines_of(replay)
    assert [line.name for line in lines] == [
        "replay write, fp32", "replay sample, 256 envs fp32", "replay write, bf16", "replay sample, 256 envs bf16",
    ]  # fmt: skip
    assert lines[1].size == "4 x 64 rows of 256 envs"
    assert lines[0].floor_s == pytest.approx(256 * (8 * 160 + 4 + 5 + 4 + 2) / 1e9)
    assert lines[1].floor_s == pytest.approx(256 * (8 * 283 + 23) / 1e9)
    assert "FastTD3's layout 1152" in lines[0].note
    sizes = [float(line.note.split(" B per transition")[0].split()[-1]) for line in lines[::2]]
    assert sizes[1] < 0.55 * sizes[0]


def test_plain_memory_stops_at_the_end_of_an_episode() -> None:
    memory = PlainReplay(4, 1, 1, 1, "cpu")
    for step in range(4):
        obs = torch.full((1, 1), float(step))
        ended = torch.tensor([step == 1])
        memory.write(obs, obs, obs[:, 0], ended, torch.zeros_like(ended), obs + 1.0)
    obs, _, rewards, after, discounts = memory.sample(64, 3, torch.Generator().manual_seed(0))
    for start, reward, following, discount in ((0.0, 0.99, 2.0, 0.0), (1.0, 1.0, 2.0, 0.0)):
        rows = obs[:, 0] == start
        assert bool(rows.any())
        assert rewards[rows].unique().tolist() == pytest.approx([reward])
        assert after[rows].unique().tolist() == [following]
        assert discounts[rows].unique().tolist() == [discount]
