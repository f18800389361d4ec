"""``myriad play``: several heads of a portfolio in one scene, as a film or in an interactive viewer."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
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
from myriad_lab.cli.scenes import make_scene, positions
from myriad_lab.errors import ConfigurationError

if TYPE_CHECKING:
    import numpy as np

    from myriad_lab.envs.contract import VecEnv
    from myriad_lab.portfolio.bundle import Bundle

MUJOCO = "mujoco"
ACTORS = ("trained", "zero", "random")
EXPLORERS = ("kmyriad",)
"""Algorithms whose policies are shown with their noise, for that is how they explore."""
MAX_ROBOTS = 32
"""Robots in one film; more than that hide one another."""
MAX_LENGTH = 600
"""Control steps of a film whose length nobody asked for, at most."""
SPEEDS = (0.01, 100.0)
"""Slowest and fastest film over real time: slower is a still picture, faster shows nothing of a motion."""
FPS = 30
"""Pictures per second of film, at most."""


@dataclass
class PlayCfg:
    """What to show."""

    actor: str = "trained"
    """``trained``, or as a comparison ``zero`` or ``random`` actions."""
    length: int | None = None
    """Control steps; an episode, but at most ``MAX_LENGTH``, by default."""
    speed: float = 1.0
    """Film time over simulated time is 1 / speed."""
    num_envs: int | None = None
    """Robots, a multiple of the heads; by default one for each head."""
    task: str | None = None
    """Task; that of the checkpoint by default."""
    backend: str | None = None
    """Simulator; that of the checkpoint by default."""
    device: str = "cpu"
    """Torch device."""
    seed: int = 10_007
    """Seed of starts and noise."""
    viz: str | None = None
    """Viewer: ``mujoco``, or on backend ``isaaclab`` one or more of its own."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``myriad play``."""
    from myriad_lab.cli.arguments import non_empty, non_empty_path, positive_float, positive_int

    add_checkpoint_flags(parser, policy="all")
    add_env_flags(parser)
    parser.add_argument("--actor", choices=ACTORS, default="trained", help="what acts (default: trained)")
    parser.add_argument("--video", action="store_true", help="write a film; the default where there is no --viz")
    parser.add_argument("--video_length", type=positive_int, help="control steps (default: an episode)")
    parser.add_argument("--speed", type=positive_float, default=1.0, help="times real time (default: 1)")
    parser.add_argument(
        "--viz",
        nargs="?",
        const=MUJOCO,
        type=non_empty,
        metavar="VIEWER",
        help="open MuJoCo's viewer; on backend isaaclab one of its own: newton_gl, viser, rerun, kit",
    )
    parser.add_argument("--out", type=non_empty_path, help="film (default: videos/ in the run folder)")


def run(args: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Show the heads and say where the film is."""
    bundle = open_bundle(args.checkpoint, args.runs_root, args.device)
    names = ("actor", "speed", "num_envs", "task", "backend", "device", "seed", "viz")
    cfg = PlayCfg(length=args.video_length, **{name: getattr(args, name) for name in names})
    heads = choose_heads(args.policy, bundle)
    if args.viz and (args.viz == MUJOCO or not args.video):
        from myriad_lab.cli.viewers import view

        view(bundle, cfg, heads=heads, overrides=overrides)
    if args.video or not args.viz:
        print(f"written: {record(bundle, cfg, heads=heads, overrides=overrides, out=args.out)}")
    return 0


def record(
    bundle: Bundle,
    cfg: PlayCfg | None = None,
    *,
    heads: Sequence[int] | None = None,
    overrides: Sequence[str] = (),
    out: str | Path | None = None,
) -> Path:
    """Write a film of several heads in one scene: MuJoCo's picture where it can be rendered, else a drawing from above.

    Args:
        bundle: What to show.
        cfg: Settings.
        heads: Heads to show; all by default, evenly chosen where there are more than ``MAX_ROBOTS``.
        overrides: ``env.key=value``.
        out: File; in ``videos/`` of the run folder, or beside a bundle that is in none, by default.

    Raises:
        ConfigurationError: Before any work, if packages for films are missing, the file cannot be written or is no
            ``.mp4``, or the numbers do not fit.
    """
    from myriad_lab.monitor.video import require_video

    require_video()
    cfg = cfg or PlayCfg()
    heads = shown_heads(bundle.manifest.num_policies, heads)
    path = Path(out) if out is not None else _film_path(bundle, cfg, heads)
    if path.suffix != ".mp4":
        raise ConfigurationError(f"--out {path}: expected the name of a film, FILE.mp4")
    check_out_file(path)
    env, policy = open_heads(bundle, cfg, heads, overrides)
    try:
        return film(env, policy, path, heads, bundle.manifest.num_policies, length=cfg.length, speed=cfg.speed)
    finally:
        env.close()


def film(
    env: VecEnv,
    policy: Callable[[Any], Any],
    path: Path,
    heads: Sequence[int],
    num_policies: int,
    *,
    length: int | None = None,
    speed: float = 1.0,
) -> Path:
    """Write a film of the robots of an env.

    Args:
        env: Robots of head after head, as many for each.
        policy: Observations of all envs to actions.
        path: File to write.
        heads: The heads, for their colours.
        num_policies: Heads of the whole population.
        length: Control steps; an episode, but at most ``MAX_LENGTH``, by default.
        speed: Simulated time over film time.
    """
    from myriad_lab.monitor.video import write_mp4

    scene = make_scene(env, heads, num_policies)
    try:
        stride = max(1, round(speed / (FPS * env.spec.control_period)))
        fps = min(60.0, speed / (env.spec.control_period * stride))
        steps = length or min(env.max_episode_length, MAX_LENGTH)
        return write_mp4(path, _frames(env, policy, scene, steps, stride), fps)
    finally:
        scene.close()


def open_heads(
    bundle: Bundle, cfg: PlayCfg, heads: Sequence[int], overrides: Sequence[str]
) -> tuple[VecEnv, Callable[[Any], Any]]:
    """Return env and policy, one head after the other.

    Raises:
        ConfigurationError: If a setting is wrong.
        CheckpointError: If the heads do not fit the env.
    """
    import torch

    from myriad_lab.networks.population import check_population
    from myriad_lab.runners.rollout import actor_policy, random_policy, zero_policy

    if cfg.actor not in ACTORS:
        raise ConfigurationError(f"--actor {cfg.actor}: expected one of {', '.join(ACTORS)}")
    if not SPEEDS[0] <= cfg.speed <= SPEEDS[1]:
        raise ConfigurationError(f"--speed {cfg.speed:g}: expected {SPEEDS[0]:g} to {SPEEDS[1]:g} times real time")
    num_envs = cfg.num_envs or len(heads)
    check_population(num_envs, len(heads))
    where: dict[str, Any] = {"task": cfg.task, "backend": cfg.backend, "device": cfg.device, "seed": cfg.seed}
    viewers = {} if cfg.viz in (None, MUJOCO) else {"viz": cfg.viz}
    env = env_of(bundle, num_envs, overrides=overrides, play_mode=True, **viewers, **where)
    if cfg.actor == "zero":
        return env, zero_policy(env)
    if cfg.actor == "random":
        return env, random_policy(env, cfg.seed)
    actor = bundle.actor.select(heads).to(cfg.device).eval()
    groups = bundle.manifest.obs_groups["actor"]
    noisy = bundle.manifest.algorithm in EXPLORERS
    generator = torch.Generator(cfg.device).manual_seed(cfg.seed)
    return env, actor_policy(actor, groups, deterministic=not noisy, generator=generator)


def shown_heads(num_policies: int, heads: Sequence[int] | None = None) -> list[int]:
    """Return the heads that a film shows: those asked for, evenly thinned to ``MAX_ROBOTS``."""
    heads = list(range(num_policies)) if heads is None else list(heads)
    if len(heads) <= MAX_ROBOTS:
        return heads
    return [heads[round(i * (len(heads) - 1) / (MAX_ROBOTS - 1))] for i in range(MAX_ROBOTS)]


def _frames(env: VecEnv, policy: Callable[[Any], Any], scene: Any, length: int, stride: int) -> Iterator[np.ndarray]:
    import torch

    obs = env.reset()
    for step in range(length):
        if step % stride == 0:
            yield scene.draw(positions(env))
        with torch.inference_mode():
            obs, _, dones, _ = env.step(policy(obs))
        scene.break_trails(dones.bool().cpu().numpy())


def _film_path(bundle: Bundle, cfg: PlayCfg, heads: Sequence[int]) -> Path:
    run_folder = run_of(bundle)
    folder = run_folder.videos if run_folder is not None else bundle.path / "videos"
    which = "all_heads" if len(heads) > 1 else f"head_{heads[0]}"
    return folder / f"{which}_{cfg.actor}_{bundle.path.name}.mp4"
