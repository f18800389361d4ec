"""Train one cell of a study by a peer's code, and evaluate it; ``myriad study`` runs each as a process of its own."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict

from myriad_lab.cli.peers.checkouts import PEERS, find_checkout
from myriad_lab.cli.peers.recorder import Recorder, Snapshot, load_snapshots
from myriad_lab.evaluation.study import BudgetCfg, EvaluationCfg, override_arguments
from myriad_lab.export.torchscript import load_torchscript
from myriad_lab.runners.rollout import Policy, rollout_episodes

ENV_SECTIONS = ("env.", "isaaclab.")
"""Overrides that are the env's; the others are settings of the peer."""


def train_peer(request: Mapping[str, Any]) -> None:
    """Train by the peer's code until the budget is spent, and leave its snapshots.

    Args:
        request: ``peer`` and ``peers``: name and the folder of its checkout; ``flags`` and ``overrides`` as those of
            ``myriad train``, but that overrides that are not the env's are the peer's own settings; ``budget``: fields
            of ``BudgetCfg``; ``num_checkpoints``: snapshots for the learning curve; ``snapshots``: folder for them;
            ``seed``.

    Raises:
        ConfigurationError: If a setting is wrong, or the run ends before its budget does.
    """
    from myriad_lab.cli.train import settle_torch

    checkout = find_checkout(request["peer"], Path(request["peers"]))
    settle_torch()
    seed = request["seed"]
    torch.manual_seed(seed)
    settings = {key: value for key, value in request["overrides"].items() if not key.startswith(ENV_SECTIONS)}
    run, env_plan = _plan(request)
    env = env_plan.make(run.num_envs or env_plan.default_num_envs, device=run.device, seed=seed, final_obs=True)
    try:
        budget = BudgetCfg(**request["budget"])
        recorder = Recorder(Path(request["snapshots"]), budget, request["num_checkpoints"], run.device)
        importlib.import_module(PEERS[checkout.name].driver).train(checkout, env, recorder, settings, seed)
    finally:
        env.close()


def evaluate_peer(request: Mapping[str, Any]) -> dict[str, Any]:
    """Return metrics, learning curve and cost like ``study_cell.evaluate_cell``, by the same episodes.

    Args:
        request: As for ``train_peer``, with ``evaluation``: fields of ``EvaluationCfg``.
    """
    from myriad_lab.cli.study_cell import solve_metrics

    cfg = EvaluationCfg(**request["evaluation"])
    folder = Path(request["snapshots"])
    _, env_plan = _plan(request)

    def solve(snapshot: Snapshot, episodes: int) -> dict[str, float]:
        env = env_plan.make(episodes, device=cfg.device, seed=cfg.seed, final_obs=False)
        try:
            policy = _policy(folder / snapshot.file, cfg.device)
            return solve_metrics(rollout_episodes(env, policy, 1, episodes, features=None, num_obs_rows=0), cfg.seed)
        finally:
            env.close()

    snapshots = load_snapshots(folder)
    cost = _cost(snapshots[-1])
    metrics = solve(snapshots[-1], cfg.episodes_per_head) | {f"cost/{name}": value for name, value in cost.items()}
    curve = [_cost(each) | solve(each, cfg.curve_episodes) for each in snapshots] if cfg.num_checkpoints else []
    return {"metrics": metrics, "curve": curve, "cost": cost}


def main(arguments: Sequence[str]) -> int:
    """Do ``train`` or ``evaluate`` with the request in a file; the result of the latter goes to ``request["out"]``."""
    what, request = arguments[0], json.loads(Path(arguments[1]).read_text())
    if what == "train":
        train_peer(request)
    else:
        torch.set_num_threads(1)
        Path(request["out"]).write_text(json.dumps(evaluate_peer(request), indent=1))
    return 0


def _plan(request: Mapping[str, Any]) -> tuple[Any, Any]:
    from myriad_lab.cli.plan import make_env_plan

    own = {key: value for key, value in request["overrides"].items() if key.startswith(ENV_SECTIONS)}
    return make_env_plan(request["flags"], override_arguments(own))


def _policy(path: Path, device: str) -> Policy:
    module = load_torchscript(path).to(device)

    def act(obs: TensorDict) -> torch.Tensor:
        return module(obs["policy"])

    return act


def _cost(snapshot: Snapshot) -> dict[str, float]:
    return {
        "env_steps": float(snapshot.env_steps),
        "wall_time": snapshot.wall_time,
        "updates": float(snapshot.updates),
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
