"""The same population on 1, 2 and 4 ranks: the same pool, the same gradients, the same bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rank_jobs import M, adapt, break_one, learn, train
from ranks import run_ranks

from myriad_lab.algorithms.population_optimizer import KL_FACTOR
from myriad_lab.functional.collective import ALONE
from myriad_lab.portfolio.bundle import load_bundle
from myriad_lab.portfolio.run_folder import RunFolder

ONE_STEP = {"num_epochs": 1}
CASES: dict[str, dict[str, Any]] = {
    "own": ONE_STEP,
    "mepol": {**ONE_STEP, "reward": "mepol", "standardize": False, "baseline": "global", "max_grad_norm": 1e-3},
    "centred": {**ONE_STEP, "reward": "centred", "exclude_own_trajectory": True},
    "window": {**ONE_STEP, "window": 2},
    "drawn": {**ONE_STEP, "max_particles": 24, "network": {"adapter": "film"}},
    "epochs": {"num_epochs": 2, "num_minibatches": 3, "entropy_coef": 0.01},
    "bounded": {"num_epochs": 2, "num_minibatches": 2, "max_grad_norm": 1e-2},
}


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    return learn(ALONE, CASES)


def assert_close(ours: Any, theirs: Any, where: str = "") -> None:
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys(), where
        for key in ours:
            assert_close(ours[key], theirs[key], f"{where}.{key}")
    elif isinstance(ours, list):
        assert len(ours) == len(theirs), where
        for i, pair in enumerate(zip(ours, theirs, strict=True)):
            assert_close(*pair, f"{where}[{i}]")
    elif isinstance(ours, torch.Tensor) and ours.is_floating_point():
        scale = float(ours.nan_to_num().abs().max()) if ours.numel() else 0.0
        torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=2e-5 * scale + 1e-7, equal_nan=True, msg=where)
    elif isinstance(ours, torch.Tensor):
        assert torch.equal(ours, theirs), where
    elif isinstance(ours, float):
        assert theirs == pytest.approx(ours, rel=1e-4, abs=1e-6), where
    else:
        assert ours == theirs, where


@pytest.mark.parametrize("world_size", [2, 4])
def test_the_sharding_changes_nothing_but_the_rounding(alone, world_size):
    """Entropy, rewards, norms, gradients, running statistics, moments, particles and generators."""
    for rank, found in enumerate(run_ranks(world_size, learn, CASES)):
        for name, expected in alone.items():
            for part in ("metrics", "grads", "heads"):
                assert_close(expected[part], found[name][part], f"rank {rank} of {world_size}, {name}: {part}")
            if rank == 0:  # which alone gets the whole state
                assert_close(expected["state"], found[name]["state"], f"{world_size} ranks, {name}: state")


def test_the_cases_are_what_they_say(alone):
    assert all(sum(float(g.abs().sum()) for g in case["grads"].values()) > 1e-4 for case in alone.values())
    assert all(float(case["metrics"]["Policy/valid_share"]) < 1.0 for case in alone.values())
    assert float(alone["mepol"]["metrics"]["Loss/grad_norm"]) > 1e-3  # the bound binds
    assert alone["drawn"]["state"]["state_rewards"]["buffer"] is not None
    assert alone["own"]["state"]["state_rewards"]["buffer"] is None


def test_what_breaks_on_one_rank_is_undone_on_all():
    for found in run_ranks(2, break_one):
        assert found == {"guard": True, "update": 1.0, "unchanged": True}


def test_step_sizes_follow_the_divergence_of_all_ranks():
    """Each rank tells of 1.2 times the desired one: too little to slow down for one, too much for two together."""
    assert run_ranks(1, adapt, 1.2) == pytest.approx([1.0])
    assert run_ranks(2, adapt, 1.2) == pytest.approx([1 / KL_FACTOR] * 2)


SMALL_STEPS = {"learning_rate": 1e-9}
"""Adam turns rounding into whole steps where a gradient is zero: bundles are compared where steps are nothing."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Return the run folder of two iterations by the number of ranks."""
    folders = {n: tmp_path_factory.mktemp(f"ranks{n}") for n in (1, 2)}
    for n, folder in folders.items():
        run_ranks(n, train, {"folder": str(folder), "iterations": 2, **SMALL_STEPS})
    return folders


def test_a_bundle_of_two_ranks_is_that_of_one(runs):
    ours, theirs = (load_bundle(RunFolder(runs[n]).latest()) for n in (1, 2))
    assert theirs.manifest.num_policies == theirs.actor.num_policies == M
    assert ours.manifest.num_envs == theirs.manifest.num_envs
    assert_close(ours.manifest.head_metrics, theirs.manifest.head_metrics)
    assert_close(ours.actor.state_dict(), theirs.actor.state_dict())
    state, their_state = ours.load_train_state(), theirs.load_train_state()
    assert [len(s.pop("envs")) for s in (state, their_state)] == [1, 2]
    assert (ours.manifest.iteration, ours.manifest.env_steps) == (theirs.manifest.iteration, theirs.manifest.env_steps)
    assert_close(state, their_state)
    rows, their_rows = (RunFolder(runs[n]).read_metrics() for n in (1, 2))
    assert len(rows) == len(their_rows) == 2
    for row, their_row in zip(rows, their_rows, strict=True):
        assert_close(
            *(
                {
                    k: v
                    for k, v in r.items()
                    if "Perf" not in k and k != "wall_time" and not k.startswith("Episode_Termination")
                }
                for r in (row, their_row)
            )
        )
    for name in ("visits_before.npz", "visits.npz"):
        visits, their_visits = (np.load(runs[n] / "recordings" / name) for n in (1, 2))
        np.testing.assert_allclose(visits["features"], their_visits["features"], atol=1e-4)
        assert (visits["valid"] == their_visits["valid"]).all()


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2), (2, 2)])
def test_a_run_goes_on_with_as_many_ranks_or_others(runs, tmp_path, before, after):
    """With as many, as if it had never stopped, to the bit; with others, from new starts of the episodes."""
    first = RunFolder(runs[before]).checkpoint_path(1)
    found = run_ranks(after, train, {"folder": str(tmp_path), "iterations": 1, "resume": str(first), **SMALL_STEPS})
    assert [(one["iteration"], one["env_steps"]) for one in found] == [(2, 2 * 80)] * after
    assert all(torch.equal(one["trunk"], found[0]["trunk"]) for one in found)
    ours, theirs = (load_bundle(RunFolder(folder).latest()) for folder in (runs[before], tmp_path))
    if before == after:
        ours_state, state = ours.load_train_state(), theirs.load_train_state()
        for name, tensor in ours.actor.state_dict().items():
            assert torch.equal(tensor, theirs.actor.state_dict()[name])
        assert torch.equal(ours_state["algorithm"]["generator"], state["algorithm"]["generator"])
        for env, their_env in zip(ours_state["envs"], state["envs"], strict=True):
            assert torch.equal(env["obs"]["policy"], their_env["obs"]["policy"])


def test_ranks_keep_one_trunk_and_stop_together(tmp_path):
    """With steps as they are, four ranks have the same trunk to the bit; one is told to stop, and all do."""
    found = run_ranks(4, train, {"folder": str(tmp_path), "iterations": 9, "stop": True, "num_minibatches": 2})
    assert [one["iteration"] for one in found] == [2] * 4
    assert all(torch.equal(one["trunk"], found[0]["trunk"]) for one in found)
    assert RunFolder(tmp_path).latest().name == "iteration_000002"
