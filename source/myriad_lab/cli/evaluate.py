"""``myriad evaluate``: success, return, length, coverage and diversity of a checkpoint, with intervals, as JSON."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from myriad_lab.cli.checkpoints import (
    add_checkpoint_flags,
    add_env_flags,
    check_out_file,
    choose_heads,
    env_of,
    open_bundle,
    run_of,
)
from myriad_lab.errors import ConfigurationError

if TYPE_CHECKING:
    from myriad_lab.envs.contract import VecEnv
    from myriad_lab.networks.population import PopulationActor
    from myriad_lab.portfolio.bundle import Bundle
    from myriad_lab.portfolio.recording import EpisodeRecord

TARGET_ENVS = 2048
"""Envs of a rollout where ``--num_envs`` is not given, rounded so that every head has as many."""
GROUPS = 8
"""Groups of episodes that the intervals of the entropies are over."""


@dataclass
class EvaluateCfg:
    """Settings of an evaluation."""

    episodes: int = 256
    """Deterministic episodes per head, for success and return."""
    pool_size: int = 16_384
    """Particles in the pool of the entropy estimates; compare values at equal pool size and k only."""
    k: int | None = None
    """Neighbours of the entropy estimates; 50 by default, fewer where a head has few particles."""
    seed: int = 10_007
    """Seed of the episodes."""
    num_envs: int | None = None
    """Parallel envs; about ``TARGET_ENVS`` by default."""
    task: str | None = None
    """Task to evaluate in; that of the checkpoint by default."""
    backend: str | None = None
    """Simulator; that of the checkpoint by default."""
    device: str = "cpu"
    """Torch device."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``myriad evaluate``."""
    from myriad_lab.cli.arguments import non_empty_path, positive_int

    add_checkpoint_flags(parser, policy="all")
    add_env_flags(parser)
    parser.add_argument("--episodes", type=positive_int, default=256, help="deterministic episodes per head")
    parser.add_argument("--pool_size", type=positive_int, default=16_384, help="particles in the pool of all heads")
    parser.add_argument("--k", type=positive_int, help="neighbours of the entropy estimates (default: 50)")
    parser.add_argument(
        "--out",
        type=non_empty_path,
        help="JSON file, written without recordings (default: evaluation.json in the run folder, and recordings/ "
        "beside it; needed with one head, another task or backend, and overrides)",
    )


def run(args: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Evaluate, print a summary and say where the JSON is."""
    bundle = open_bundle(args.checkpoint, args.runs_root, args.device)
    names = ("episodes", "pool_size", "k", "seed", "num_envs", "task", "backend", "device")
    cfg = EvaluateCfg(**{name: getattr(args, name) for name in names})
    heads = choose_heads(args.policy, bundle)
    result, path = evaluate(bundle, cfg, heads=heads, overrides=overrides, out=args.out)
    print("\n".join(summary(result)))
    print(f"written: {path}")
    return 0


def evaluate(
    bundle: Bundle,
    cfg: EvaluateCfg | None = None,
    *,
    heads: Sequence[int] | None = None,
    overrides: Sequence[str] = (),
    out: str | Path | None = None,
) -> tuple[dict[str, Any], Path | None]:
    """Roll out a portfolio and measure it.

    The heads act with their noise for coverage, entropies and diversity, as they explore, and with their mean for
    success, return and length. A task without reward and goal has no second part.

    Args:
        bundle: What to evaluate.
        cfg: Settings.
        heads: Heads to evaluate; all by default.
        overrides: ``env.key=value``.
        out: JSON file, written alone; by default ``evaluation.json`` in the run folder, with the episodes under
            ``recordings/``, which is for all heads in the run's own env only.

    Returns:
        The result and its file, ``None`` for a bundle outside a run folder with no ``out`` given.

    Raises:
        ConfigurationError: Before any work, if ``k`` is too large, the file cannot be written, or the run folder is no
            place for it.
    """
    from myriad_lab.evaluation.diversity import choose_neighbours
    from myriad_lab.portfolio.atomic import write_json

    cfg = cfg or EvaluateCfg()
    heads = list(range(bundle.manifest.num_policies)) if heads is None else list(heads)
    choose_neighbours(cfg.k, cfg.pool_size // len(heads), len(heads))
    folder = run_of(bundle)
    path = Path(out) if out is not None else folder.evaluation_file if folder is not None else None
    if path is not None:
        check_out_file(path)
        if out is None:
            _check_own(bundle, cfg, heads, overrides, path)
    actor = bundle.actor.select(heads).to(cfg.device).eval()
    num_envs = cfg.num_envs or len(heads) * max(1, TARGET_ENVS // len(heads))
    where = {"task": cfg.task, "backend": cfg.backend, "device": cfg.device, "seed": cfg.seed}
    env = env_of(bundle, num_envs, overrides=overrides, **where)
    try:
        groups = bundle.manifest.obs_groups["actor"]
        visits = _explore(env, actor, cfg, groups)
        rewarded = visits.success is not None or bool((visits.returns != 0.0).any())
        episodes = _perform(env, actor, cfg, groups) if rewarded else None
        task = getattr(env, "task", None)
    finally:
        env.close()
    result = _result(bundle, cfg, heads, visits, episodes, task)
    if path is not None:
        if out is None:
            _save_records(path.parent / "recordings", {"evaluation_visits": visits, "evaluation": episodes})
        write_json(path, result)
    return result, path


def summary(result: Mapping[str, Any]) -> list[str]:
    """Return the result as lines of text."""
    lines = [f"{result['task']}, {result['checkpoint']}, {len(result['heads'])} heads"]
    for key, value in result["portfolio"].items():
        if isinstance(value, Mapping):
            lines.append(f"  {key:<22} {value['mean']:.4g} [{value['low']:.4g}, {value['high']:.4g}]")
        elif value is not None:
            lines.append(f"  {key:<22} {value:.4g}")
    best = result["best_head"]
    lines.append(f"  best head              {best['head']} by {best['metric']}")
    held_out = result["held_out_best"]
    for key in ("success", "return"):
        if held_out and held_out[key]:
            value, head = held_out[key], held_out["head"]
            text = f"{value['mean']:.4g} [{value['low']:.4g}, {value['high']:.4g}]"
            lines.append(f"  {key} of head {head}, on episodes it was not chosen by: {text}")
    return lines


def _check_own(bundle: Bundle, cfg: EvaluateCfg, heads: Sequence[int], overrides: Sequence[str], path: Path) -> None:
    """Refuse to overwrite what report and export take for the evaluation of all heads in the run's own env."""
    manifest = bundle.manifest
    strange = [
        *(["some of the heads"] if list(heads) != list(range(manifest.num_policies)) else []),
        *([f"--task {cfg.task}"] if cfg.task not in (None, manifest.task) else []),
        *([f"--backend {cfg.backend}"] if cfg.backend not in (None, manifest.backend) else []),
        *overrides,
    ]
    if strange:
        raise ConfigurationError(
            f"{path} is for all heads in the run's own task, which report and export go by, not for "
            f"{', '.join(strange)}; say with --out FILE where that shall be written"
        )


def _explore(env: VecEnv, actor: PopulationActor, cfg: EvaluateCfg, groups: Sequence[str]) -> EpisodeRecord:
    """Roll out enough noisy episodes for ``GROUPS`` groups of ``pool_size`` particles."""
    import torch

    from myriad_lab.runners.rollout import actor_policy, rollout_episodes

    if "features" not in env.spec.observations:
        raise ConfigurationError(
            f"{env.spec.task} has nothing to measure the entropy on; name it with isaaclab.features=[...], see "
            "docs/isaaclab.md"
        )
    heads = actor.num_policies
    per_group = math.ceil(cfg.pool_size / heads / env.max_episode_length)
    generator = torch.Generator(env.device).manual_seed(cfg.seed)
    policy = actor_policy(actor, groups, deterministic=False, generator=generator)
    return rollout_episodes(
        env, policy, heads, per_group * GROUPS, obs_groups=groups, info={"deterministic": False, "seed": cfg.seed}
    )


def _perform(env: VecEnv, actor: PopulationActor, cfg: EvaluateCfg, groups: Sequence[str]) -> EpisodeRecord:
    """Roll out the deterministic episodes; the states of a few are kept for pictures."""
    from myriad_lab.runners.rollout import actor_policy, rollout_episodes

    info = {"deterministic": True, "seed": cfg.seed}
    policy = actor_policy(actor, groups, deterministic=True)
    return rollout_episodes(
        env, policy, actor.num_policies, cfg.episodes, recorded_per_head=8, obs_groups=groups, info=info
    )


def _result(
    bundle: Bundle,
    cfg: EvaluateCfg,
    heads: Sequence[int],
    visits: EpisodeRecord,
    episodes: EpisodeRecord | None,
    task: Any,
) -> dict[str, Any]:
    from myriad_lab.evaluation.metrics import choose_best_head, held_out_best

    portfolio, rows = _measure(visits, episodes, cfg, getattr(task, "arena", None))
    rows = [{"head": head, **row} for head, row in zip(heads, rows, strict=True)]
    best = choose_best_head(rows)
    held_out = held_out_best(episodes, cfg.seed) if episodes is not None and episodes.num_episodes > 1 else None
    goal = getattr(task, "goal", None)
    return {
        "checkpoint": bundle.path.name,
        "task": cfg.task or bundle.manifest.task,
        "iteration": bundle.manifest.iteration,
        "env_steps": bundle.manifest.env_steps,
        "goal": None if goal is None else [float(x) for x in goal],
        "settings": _settings(visits, episodes, cfg, portfolio),
        "portfolio": portfolio,
        "best_head": {**best, "head": heads[best["head"]]},
        "held_out_best": None if held_out is None else {**held_out, "head": heads[held_out["head"]]},
        "heads": rows,
    }


def _measure(
    visits: EpisodeRecord, episodes: EpisodeRecord | None, cfg: EvaluateCfg, arena: Any
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    from myriad_lab.evaluation.diversity import diversity_metrics
    from myriad_lab.evaluation.metrics import coverage, episode_metrics

    portfolio, rows = diversity_metrics(visits, k=cfg.k, pool_size=cfg.pool_size, num_groups=GROUPS, seed=cfg.seed)
    if arena is not None:
        reachable = arena.reachable().cpu().numpy()
        share, shares = coverage(visits.visits(), arena.extent, reachable)
        portfolio |= {"coverage": share, "reachable_cells": int(reachable.sum())}
        rows = [{**row, "coverage": value} for row, value in zip(rows, shares, strict=True)]
    if episodes is not None:
        whole, single = episode_metrics(episodes, cfg.seed)
        portfolio = whole | portfolio
        rows = [first | second for first, second in zip(single, rows, strict=True)]
    return portfolio, rows


def _settings(
    visits: EpisodeRecord, episodes: EpisodeRecord | None, cfg: EvaluateCfg, portfolio: Mapping[str, Any]
) -> dict[str, Any]:
    states = int(visits.lengths.sum())
    text = (
        f"Coverage, entropies and KL: {visits.num_episodes} episodes per head with the policies' noise, {states:,} "
        f"states in all; k = {portfolio['k']}, pool of {portfolio['pool_size']:,} particles, "
        f"{portfolio['groups']} groups."
    )
    if episodes is not None:
        text = f"Success, return and length: {episodes.num_episodes} deterministic episodes per head. {text}"
    return {
        "text": text,
        "seed": cfg.seed,
        "episodes_per_head": None if episodes is None else episodes.num_episodes,
        "visit_episodes_per_head": visits.num_episodes,
        "visit_states": states,
        "k": portfolio["k"],
        "pool_size": portfolio["pool_size"],
    }


def _save_records(folder: Path, records: Mapping[str, EpisodeRecord | None]) -> None:
    for name, record in records.items():
        if record is not None:
            record.save(folder / f"{name}.npz")
        else:
            (folder / f"{name}.npz").unlink(missing_ok=True)
