"""Evaluate one trained cell of a study on fresh envs; ``myriad study`` runs this as a process of its own."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from myriad_lab.cli.checkpoints import env_plan_of
from myriad_lab.evaluation.diversity import diversity_metrics
from myriad_lab.evaluation.metrics import coverage, held_out_best
from myriad_lab.evaluation.study import EvaluationCfg
from myriad_lab.networks.population import PopulationActor
from myriad_lab.portfolio.bundle import Bundle, load_bundle
from myriad_lab.portfolio.manifest import Manifest
from myriad_lab.portfolio.recording import EpisodeRecord
from myriad_lab.portfolio.run_folder import RunFolder, list_runs
from myriad_lab.runners.rollout import actor_policy, rollout_episodes

SOLVED = 0.5
"""Success rate from which a head counts as successful."""


def evaluate_cell(request: Mapping[str, Any]) -> dict[str, Any]:
    """Return metrics, learning curve and cost of the newest run under ``request["runs"]``.

    Args:
        request: ``runs``: folder of the run folder; ``evaluation``: fields of ``EvaluationCfg``, or ``None`` for a
            prerequisite, whose bundle is all that is wanted; ``untrained``: whether to draw the weights anew;
            ``seed``: seed of the cell; ``curves``: metrics of the learning curve.
    """
    run = list_runs(request["runs"])[-1]
    device = (request["evaluation"] or {}).get("device", "cpu")
    bundle = load_bundle(run.latest(), device)
    manifest = bundle.manifest
    result: dict[str, Any] = {"bundle": str(bundle.path), "metrics": {}, "curve": []}
    result["cost"] = {"env_steps": manifest.env_steps, "wall_time": manifest.wall_time, **_updates(manifest)}
    if request["evaluation"] is None:
        return result
    cfg = EvaluationCfg(**request["evaluation"])
    if request["untrained"]:
        bundle.actor = _untrained(bundle.actor, request["seed"]).to(device)
        result["cost"] = {"env_steps": 0, "wall_time": 0.0, "updates": 0}
    if cfg.kind == "exploration":
        result["metrics"] = explore(bundle, cfg)
    else:
        result["metrics"] = solve(bundle, cfg, cfg.episodes_per_head)
    result["metrics"] |= {f"cost/{name}": value for name, value in result["cost"].items()}
    if request["untrained"]:
        return result
    if cfg.num_checkpoints:
        result["curve"] = checkpoint_curve(run, cfg)
    else:
        keys = ("env_steps", "wall_time", *request["curves"])
        result["curve"] = [{key: row[key] for key in keys if row.get(key) is not None} for row in run.read_metrics()]
    return result


def explore(bundle: Bundle, cfg: EvaluationCfg) -> dict[str, float]:
    """Return entropies [nat], diversity and coverage of the stochastic population, at equal samples for every m."""
    heads = bundle.manifest.num_policies
    record = _rollout(bundle, cfg, cfg.num_envs // heads, cfg.num_envs, deterministic=False)
    # One group: all particles in one pool, of the same size for every m.
    pool, rows = diversity_metrics(record, k=cfg.k, pool_size=cfg.pool_size, num_groups=1, seed=cfg.seed)
    metrics = {
        "entropy_pool": pool["entropy_pool"]["mean"],
        "entropy_heads_mean": pool["entropy_heads_mean"]["mean"],
        "diversity": pool["diversity"]["mean"],
        "diversity_normalised": pool["diversity_normalised"]["mean"],
        "kl_heads_mean": sum(row["kl"]["mean"] for row in rows) / heads if heads > 1 else 0.0,
        "pool_size": float(pool["pool_size"]),
    }
    if bundle.manifest.arena is not None:
        from myriad_lab.envs.arena import Arena

        arena = Arena.from_dict(bundle.manifest.arena)
        metrics["coverage"], alone = coverage(record.visits(), arena.extent, arena.reachable().numpy())
        metrics["coverage_heads_mean"] = sum(alone) / heads
    return {name: float(value) for name, value in metrics.items()}


def solve(bundle: Bundle, cfg: EvaluationCfg, episodes: int) -> dict[str, float]:
    """Return success and return of the deterministic heads; the best head is measured on held-out episodes."""
    heads = bundle.manifest.num_policies
    return solve_metrics(_rollout(bundle, cfg, episodes, heads * episodes, deterministic=True), cfg.seed)


def solve_metrics(record: EpisodeRecord, seed: int) -> dict[str, float]:
    """Return success and return of recorded episodes; the best head is chosen by some and measured on the others."""
    best = held_out_best(record, seed)
    metrics = {
        "return_best": best["return"]["mean"],
        "return_mean": float(record.returns.mean()),
        "length_mean": float(record.lengths.mean()),
        "best_head": float(best["head"]),
    }
    if record.success is not None:
        rates = record.success.mean(axis=1)
        metrics |= {
            "success_best": best["success"]["mean"],
            "success_mean": float(rates.mean()),
            "heads_solved": float((rates >= SOLVED).sum()),
        }
    return metrics


def checkpoint_curve(run: RunFolder, cfg: EvaluationCfg) -> list[dict[str, float]]:
    """Return env steps, seconds and the metrics of ``solve`` at evenly spaced checkpoints, the last one included.

    A run from a portfolio begins with what the heads do before any finetuning, at 0 env steps.
    """
    paths = run.list_checkpoints()
    count = min(cfg.num_checkpoints, len(paths))
    chosen = [paths[round((i + 1) * len(paths) / count) - 1] for i in range(count)]
    curve = []
    last = Manifest.load(paths[-1])
    if last.parent is not None:
        parent = load_bundle(last.parent, cfg.device)
        # The portfolio's heads in the env of this run.
        start = Bundle(parent.path, replace(last, num_policies=parent.manifest.num_policies), parent.actor)
        curve.append({"env_steps": 0.0, "wall_time": 0.0} | solve(start, cfg, cfg.curve_episodes))
    for path in chosen:
        manifest = Manifest.load(path)
        point = {"env_steps": float(manifest.env_steps), "wall_time": manifest.wall_time}
        curve.append(point | solve(load_bundle(path, cfg.device), cfg, cfg.curve_episodes))
    return curve


def main(arguments: Sequence[str]) -> int:
    """Read a request, write its result, and link the bundle as ``bundle`` beside it."""
    request = json.loads(Path(arguments[0]).read_text())
    torch.set_num_threads(1)
    result = evaluate_cell(request)
    out = Path(request["out"])
    link = out.with_name("bundle")
    link.unlink(missing_ok=True)
    link.symlink_to(Path(result["bundle"]).resolve(), target_is_directory=True)
    out.write_text(json.dumps(result, indent=1))
    return 0


def _updates(manifest: Manifest) -> dict[str, float]:
    """Return the gradient steps of the critics, where the runner counts them."""
    metrics = manifest.metrics
    count = metrics.get("Perf/value_updates", metrics.get("Perf/updates"))
    return {} if count is None else {"updates": count}


def _untrained(actor: PopulationActor, seed: int) -> PopulationActor:
    """Return a population of the same shape with fresh weights."""
    generator = torch.Generator().manual_seed(seed)
    return PopulationActor(actor.num_obs, actor.num_actions, actor.num_policies, actor.cfg, generator).eval()


def _rollout(
    bundle: Bundle, cfg: EvaluationCfg, episodes_per_head: int, num_envs: int, deterministic: bool
) -> EpisodeRecord:
    manifest = bundle.manifest
    env = env_plan_of(bundle).make(num_envs, device=cfg.device, seed=cfg.seed, final_obs=False)
    try:
        generator = torch.Generator(cfg.device).manual_seed(cfg.seed)
        policy = actor_policy(bundle.actor, manifest.obs_groups["actor"], deterministic, generator)
        return rollout_episodes(
            env,
            policy,
            manifest.num_policies,
            episodes_per_head,
            features=None if deterministic else "features",
            num_obs_rows=0,
        )
    finally:
        env.close()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
