"""Parallel Q-learning on 1, 2 and 4 ranks: the same gradients for the same rows, one trunk, whole bundles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pql_jobs import draws, train, update
from rank_jobs import M
from ranks import run_ranks
from test_population_ranks import assert_close

from myriad_lab.errors import ConfigurationError
from myriad_lab.functional.collective import ALONE
from myriad_lab.portfolio.bundle import load_bundle
from myriad_lab.portfolio.run_folder import RunFolder
from myriad_lab.runners.parallel_q_cfg import ParallelQRunnerCfg

CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "bounded": {"max_grad_norm": 1e-4},
    "returns": {"normalize_returns": True, "return_bound": 2.0},
    "prior": {"seeded": True, "prior_weight": 0.5, "prior_bootstrap": True},
}


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    return update(ALONE, CASES)


@pytest.mark.parametrize("world_size", [2, 4])
def test_the_same_rows_give_the_same_gradients(alone, world_size):
    """Gradients, running statistics, moments and the networks of the whole population, whoever has them."""
    for rank, found in enumerate(run_ranks(world_size, update, CASES)):
        for name, expected in alone.items():
            for part in ("metrics", "grads"):
                assert_close(expected[part], found[name][part], f"rank {rank} of {world_size}, {name}: {part}")
            if rank == 0:  # which alone gets the whole state
                assert_close(expected["state"], found[name]["state"], f"{world_size} ranks, {name}: state")


def test_the_cases_are_what_they_say(alone):
    sizes = {
        name: sum(float(g.square().sum()) for key, g in case["grads"].items() if key.startswith("actor")) ** 0.5
        for name, case in alone.items()
    }
    assert sizes["bounded"] == pytest.approx(1e-4, rel=1e-2)  # the bound binds
    assert min(size for name, size in sizes.items() if name != "bounded") > 2e-4
    assert any(key.startswith("actor.trunk") for key in alone["plain"]["grads"])
    assert float(alone["returns"]["state"]["return_scale"]["factor"]) != 1.0
    assert float(alone["prior"]["metrics"][1, 2]) > 1e-3  # the distance that prior_weight pulls at
    assert "prior" in alone["prior"]["state"]


def test_ranks_draw_apart_and_share_the_memory():
    first, second = run_ranks(2, draws)
    assert not torch.equal(first["noise"], second["noise"])
    assert not torch.equal(first["envs"], second["envs"])
    assert first["slots"] * 2 * 4 == 1_000_000  # replay_capacity is that of all ranks


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Return the run folder of two iterations by the number of ranks."""
    folders = {n: tmp_path_factory.mktemp(f"ranks{n}") for n in (1, 2)}
    for n, folder in folders.items():
        found = run_ranks(n, train, {"folder": str(folder), "iterations": 2})
        assert all(torch.equal(one["trunk"], found[0]["trunk"]) for one in found)
    return folders


def test_a_bundle_holds_all_heads_whoever_trained_them(runs):
    ours, theirs = (load_bundle(RunFolder(runs[n]).latest()) for n in (1, 2))
    for bundle in (ours, theirs):
        assert bundle.manifest.num_policies == bundle.actor.num_policies == M
        assert (bundle.manifest.num_envs, bundle.manifest.env_steps) == (8, 2 * 15 * 8)
        assert len(bundle.manifest.head_metrics["mean_reward"]) == M
        state = bundle.load_train_state()["algorithm"]
        assert state["critic"]["weights.0"].shape[0] == 2 * M
        assert state["critic_optimizer"]["state"][0]["exp_avg"].shape[0] == 2 * M
        assert state["actor"]["heads.out_weight"].shape[0] == M
    assert "others" not in ours.load_train_state()
    assert len(theirs.load_train_state()["others"]) == 1
    rows = RunFolder(runs[2]).read_metrics()
    assert len(rows) == 2
    assert {f"Heads/mean_reward_{i}" for i in range(M)} <= rows[-1].keys()
    assert rows[-1]["Loss/critic"] > 0.0


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2), (2, 2)])
def test_a_run_goes_on_with_as_many_ranks_or_others(runs, tmp_path, before, after):
    """With the networks, moments and counts as they were; with as many ranks, with their random numbers too."""
    bundle = load_bundle(RunFolder(runs[before]).latest())
    asked = {"folder": str(tmp_path), "iterations": 1, "resume": str(bundle.path)}
    found = run_ranks(after, train, asked)
    state = bundle.load_train_state()["algorithm"]
    for one in found:
        assert torch.equal(one["began"], state["critic"]["weights.0"])
        assert (one["iteration"], one["env_steps"]) == (3, 3 * 15 * 8)
        assert one["updates"] == [2 * 15 - 4 + 15 - 4, (2 * 15 - 4 + 15 - 4) // 2]  # warm-up anew: no replay memory
        assert torch.equal(one["trunk"], found[0]["trunk"])
    parts = [state, *state.get("others", [])]
    for i, one in enumerate(found):
        assert torch.equal(one["generator"], parts[min(i, len(parts) - 1)]["generator"]) == (before == after)


def test_the_replay_memory_of_one_process_is_left_behind_on_several(tmp_path):
    train(ALONE, {"folder": str(tmp_path / "one"), "iterations": 2, "save_replay": True})
    bundle = load_bundle(RunFolder(tmp_path / "one").latest())
    assert bundle.has_replay
    asked = {"folder": str(tmp_path / "two"), "iterations": 1, "resume": str(bundle.path)}
    for one in run_ranks(2, train, asked):
        assert one["updates"] == [2 * 15 - 4 + 15 - 4, (2 * 15 - 4 + 15 - 4) // 2]  # it collects first


def test_ranks_stop_together(tmp_path):
    found = run_ranks(4, train, {"folder": str(tmp_path), "iterations": 9, "stop": True})
    assert [one["iteration"] for one in found] == [2] * 4
    assert RunFolder(tmp_path).latest().name == "iteration_000002"


@pytest.mark.parametrize("setting", [{"mode": "parallel"}, {"save_replay": True}, {"halving_iterations": [1]}])
def test_what_ranks_cannot_do_is_refused(setting):
    with pytest.raises(ConfigurationError, match=rf"--distributed has no agent.runner.{next(iter(setting))}"):
        ParallelQRunnerCfg(**setting).check_ranks()
    ParallelQRunnerCfg().check_ranks()
