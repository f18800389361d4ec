"""What the commands that use a trained portfolio share: which bundle, which heads, which env."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from myriad_lab.errors import CheckpointError, ConfigurationError

if TYPE_CHECKING:
    from myriad_lab.cli.env_plan import EnvPlan
    from myriad_lab.envs.contract import VecEnv
    from myriad_lab.portfolio.bundle import Bundle
    from myriad_lab.portfolio.run_folder import RunFolder


def add_checkpoint_flags(parser: argparse.ArgumentParser, policy: str) -> None:
    """Add ``--checkpoint``, ``--policy`` and ``--runs_root``."""
    from myriad_lab.cli.arguments import non_empty

    parser.add_argument(
        "--checkpoint", type=non_empty, default="latest", help="bundle or run folder, or latest, or best"
    )
    parser.add_argument(
        "--policy", type=non_empty, default=policy, help=f"head number, best, or all (default: {policy})"
    )
    parser.add_argument("--runs_root", type=non_empty, default="runs", help="where runs are (default: runs)")


def add_env_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that choose the env."""
    from myriad_lab.cli.arguments import non_empty, positive_int, seed_int

    parser.add_argument("--task", type=non_empty, help="registered task id (default: that of the checkpoint)")
    parser.add_argument("--backend", type=non_empty, help="simulator (default: that of the checkpoint)")
    parser.add_argument("--num_envs", type=positive_int, help="parallel envs")
    parser.add_argument("--device", default="cpu", help="torch device (default: cpu)")
    parser.add_argument("--seed", type=seed_int, default=10_007, help="seed of the episodes (default: 10007)")


def open_bundle(checkpoint: str | Path, runs_root: str | Path = "runs", device: str = "cpu") -> Bundle:
    """Load the bundle that ``--checkpoint`` names.

    Raises:
        CheckpointError: If there is none, or it is damaged.
        ConfigurationError: If the device is not there.
    """
    from myriad_lab.portfolio.bundle import load_bundle, resolve_checkpoint
    from myriad_lab.tasks.registry import check_device

    check_device(device)
    return load_bundle(resolve_checkpoint(checkpoint, runs_root), device)


def check_out_file(path: Path) -> None:
    """Make sure, before the work, that its result can be written to ``path``.

    Raises:
        ConfigurationError: If it is a folder, or its folder cannot be made or written.
    """
    from myriad_lab.portfolio.atomic import check_writable

    if path.is_dir():
        raise ConfigurationError(f"cannot write to {path}: it is a folder; give the name of a file")
    check_writable(path.parent)


def run_of(bundle: Bundle) -> RunFolder | None:
    """Return the run folder that holds a bundle, ``None`` for a bundle that was copied out of it."""
    from myriad_lab.portfolio.run_folder import RunFolder

    try:
        return RunFolder.open(bundle.path)
    except CheckpointError:
        return None


def choose_heads(policy: str, bundle: Bundle) -> list[int]:
    """Return the heads that ``--policy`` means: all, the best one by the last evaluation, or one by number.

    Raises:
        ConfigurationError: If there is no such head, or nothing says which one is best.
    """
    total = bundle.manifest.num_policies
    if policy == "all":
        return list(range(total))
    if policy == "best":
        return [best_head(bundle)]
    if not policy.isdecimal() or int(policy) >= total:
        raise ConfigurationError(f"--policy {policy}: expected all, best, or a head in 0..{total - 1}")
    return [int(policy)]


def best_head(bundle: Bundle) -> int:
    """Return the best head: by the evaluation of this very checkpoint on its own task, else by what training measured.

    Raises:
        ConfigurationError: If neither is there.
        CheckpointError: If the evaluation is damaged.
    """
    from myriad_lab.portfolio.atomic import read_json

    manifest = bundle.manifest
    if manifest.num_policies == 1:
        return 0
    run = run_of(bundle)
    if run is not None and run.evaluation_file.is_file():
        evaluation = read_json(run.evaluation_file)
        of = (evaluation.get("checkpoint"), evaluation.get("task"), len(evaluation.get("heads", [])))
        if of == (bundle.path.name, manifest.task, manifest.num_policies):
            return int(evaluation["best_head"]["head"])
    for scores in manifest.head_metrics.values():
        # A head that has not finished an episode has no score.
        known = {head: score for head, score in enumerate(scores) if score is not None}
        if len(scores) == manifest.num_policies and len(set(known.values())) > 1:
            return max(known, key=known.__getitem__)
    raise ConfigurationError(
        f"nothing says which head of {bundle.path} is best; run `myriad evaluate --checkpoint {bundle.path}` first, "
        "or give a number"
    )


def env_plan_of(
    bundle: Bundle,
    task: str | None = None,
    backend: str | None = None,
    overrides: Sequence[str] = (),
    **isaaclab: Any,
) -> EnvPlan:
    """Return the env of a bundle, or of another task or backend, with the settings of the bundle where they hold.

    Args:
        bundle: The bundle; its settings hold for its own task.
        task: Registered id; that of the bundle by default.
        backend: Simulator; that of the bundle by default, for its own task.
        overrides: ``env.key=value``, ``isaaclab.key=value``, ``physics=NAME``.
        isaaclab: Settings of backend ``isaaclab`` for this use, over those of the bundle and under the overrides.

    Raises:
        ConfigurationError: If task, backend, a field or an override is wrong.
    """
    from myriad_lab.cli.configuration import flatten, parse_overrides
    from myriad_lab.cli.env_plan import ISAACLAB, own_keys, plan_env

    parsed = parse_overrides(overrides)
    strange = [*parsed.groups, *(key for key in parsed.values if not key.startswith(("env.", "isaaclab.")))]
    if strange:
        raise ConfigurationError(f"override {strange[0]!r}: only env.key=value can be given here")
    manifest = bundle.manifest
    task = task or manifest.task
    same_task = task == manifest.task
    backend = manifest.backend if backend is None and same_task else backend
    kept = flatten(manifest.config.get("env", {})) if same_task else {}
    if backend != manifest.backend:  # what belongs to the simulator stays behind
        kept = {key: value for key, value in kept.items() if key in own_keys(task)}
    settings = flatten(manifest.config.get(ISAACLAB, {})) if same_task and backend == manifest.backend else {}
    asked = {section: _part(parsed.values, section) for section in ("env", ISAACLAB)}
    layers = [settings, isaaclab, asked[ISAACLAB]]
    given = asked[ISAACLAB] | ({"viz": isaaclab["viz"]} if "viz" in isaaclab else {})
    return plan_env(task, backend, [kept, asked["env"]], layers, asked=given)


def _part(values: Mapping[str, Any], section: str) -> dict[str, Any]:
    start = f"{section}."
    return {key.removeprefix(start): value for key, value in values.items() if key.startswith(start)}


def env_of(bundle: Bundle, num_envs: int, *, device: str = "cpu", seed: int = 0, **where: Any) -> VecEnv:
    """Make the env of a bundle, or of another task that its policies fit.

    Args:
        bundle: The bundle.
        num_envs: Number of envs.
        device: Torch device.
        seed: Seed of the episodes.
        where: ``task``, ``backend``, ``overrides`` and settings of ``isaaclab``, see ``env_plan_of``.

    Raises:
        ConfigurationError: If task, backend, a field or the number of envs is wrong.
        CheckpointError: If the policies do not fit the env.
    """
    from myriad_lab.portfolio.bundle import check_seed

    env = env_plan_of(bundle, **where).make(num_envs, device=device, seed=seed, final_obs=False)
    try:
        check_seed(bundle.manifest, env.spec)
    except CheckpointError:
        env.close()
        raise
    return env
