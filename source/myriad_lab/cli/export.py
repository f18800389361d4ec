"""``myriad export``: ONNX, TorchScript and the contract of a policy, compared with torch on recorded observations."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from myriad_lab.cli.checkpoints import add_checkpoint_flags, choose_heads, env_of, open_bundle, run_of
from myriad_lab.errors import ConfigurationError

if TYPE_CHECKING:
    from myriad_lab.envs.contract import VecEnv
    from myriad_lab.export.policy import Exported
    from myriad_lab.portfolio.bundle import Bundle

RECORDINGS = ("evaluation.npz", "evaluation_visits.npz")
"""Files under ``recordings/`` that hold observations, in the order in which they are looked for."""
STEPS, ENVS_PER_HEAD = 32, 8
"""Control steps, and envs of each head, that are rolled out where no observations were recorded."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``myriad export``."""
    from myriad_lab.cli.arguments import non_empty_path, positive_float

    add_checkpoint_flags(parser, policy="best")
    parser.add_argument("--out", type=non_empty_path, help="folder (default: export/ in the run folder)")
    parser.add_argument(
        "--tolerance", type=positive_float, default=1e-5, help="largest difference of an action allowed"
    )


def run(args: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Export and verify; returns 1 where a file differs from torch by more than the tolerance."""
    from myriad_lab.export.verify import ExportError

    bundle = open_bundle(args.checkpoint, args.runs_root)
    try:
        exported = export(bundle, args.policy, args.out, tolerance=args.tolerance, overrides=overrides)
    except ExportError as error:
        print(f"error: {error}")
        return 1
    print("\n".join(summary(exported)))
    return 0


def export(
    bundle: Bundle,
    policy: str = "best",
    out: str | Path | None = None,
    *,
    tolerance: float = 1e-5,
    overrides: Sequence[str] = (),
) -> Exported:
    """Write ``policy.onnx``, ``policy.pt``, ``contract.json`` and, for MuJoCo, ``scene.xml``, and verify them.

    Args:
        bundle: What to export from.
        policy: ``all`` (one file with an index input), ``best``, or a head.
        out: Folder; ``export/`` in the run folder, or beside a bundle that is in none, by default.
        tolerance: Largest absolute difference of an action that passes.
        overrides: ``env.key=value``.

    Raises:
        ConfigurationError: If there is no such head, packages are missing, or an override has no effect.
        ExportError: If a file differs from torch.
    """
    from myriad_lab.export.onnx import require_onnx
    from myriad_lab.export.policy import export_policy

    require_onnx()
    head = None if policy == "all" else choose_heads(policy, bundle)[0]
    folder = run_of(bundle)
    target = Path(out) if out is not None else (folder.export if folder is not None else bundle.path / "export")
    obs, heads = recorded_observations(bundle)
    origin = "rollout" if obs is None else "recorded"
    in_mujoco = bundle.manifest.backend in ("mujoco", "mujoco_warp")
    if obs is None or in_mujoco:
        # the scene and its robots are the same on both, and the C engine needs neither a GPU nor kernels
        backend = "mujoco" if in_mujoco else None
        env = env_of(bundle, bundle.manifest.num_policies * ENVS_PER_HEAD, backend=backend, overrides=overrides)
        try:
            if obs is None:
                obs, heads = _observe(bundle, env)
            xml = scene_xml(env) if in_mujoco else None
        finally:
            env.close()
    else:
        for override in overrides:
            raise ConfigurationError(
                f"{override}: the run has recorded observations and no scene to write, so nothing here depends on the "
                "env; leave it out"
            )
        xml = None
    return export_policy(bundle, target, head, obs, heads, tolerance=tolerance, scene=xml, origin=origin)


def summary(exported: Exported) -> list[str]:
    """Return what was written and how far it is from torch, as lines of text."""
    parity = exported.parity
    which = "all heads, chosen by the input 'head'" if exported.head is None else f"head {exported.head}"
    return [
        f"exported {which}: {exported.folder / 'policy.onnx'}, policy.pt and contract.json",
        f"largest difference to torch on {parity.rows} {parity.observations} observations: "
        f"ONNX {parity.onnx_max_abs_error:.3g}, TorchScript {parity.torchscript_max_abs_error:.3g}",
    ]


def recorded_observations(bundle: Bundle) -> tuple[Any, Any]:
    """Return observations (rows, num_obs) and heads (rows,) of the run's evaluation; ``None, None`` without one."""
    from myriad_lab.portfolio.recording import EpisodeRecord

    run = run_of(bundle)
    for name in RECORDINGS if run is not None else ():
        assert run is not None
        if not (run.recordings / name).is_file():
            continue
        record = EpisodeRecord.load(run.recordings / name)
        if record.policy_obs is None or record.policy_heads is None:
            continue
        # of other terms, or of heads that halving has dropped since
        fits = record.policy_obs.shape[1] == bundle.actor.num_obs
        if fits and record.policy_heads.max(initial=0) < bundle.actor.num_policies:
            return record.policy_obs, record.policy_heads
    return None, None


def scene_xml(env: VecEnv) -> str:
    """Return the MJCF of the scene, with the start of an episode as the keyframe ``start``.

    Raises:
        ConfigurationError: If the env does not run on MuJoCo.
    """
    import torch

    from myriad_lab.envs.mujoco.model import build_spec

    task: Any = getattr(env, "task", None)
    if task is None or task.robot.mjcf is None:
        raise ConfigurationError(f"task {env.spec.task} has no MuJoCo scene")
    robot, arena = task.robot, task.arena
    ground = float(arena.height_at(torch.tensor(arena.start)))
    start = [*arena.start, ground + robot.start_height, 1.0, 0.0, 0.0, 0.0, *robot.default_joint_pos]
    spec = build_spec(robot, arena)
    spec.add_key(name="start", qpos=start, ctrl=list(robot.action.offset))
    spec.compile()
    return spec.to_xml()


def _observe(bundle: Bundle, env: VecEnv) -> tuple[Any, Any]:
    """Roll the population out for a few steps and return what it saw."""
    import torch

    groups = bundle.manifest.obs_groups["actor"]
    rows = []
    obs = env.reset()
    with torch.inference_mode():
        for _ in range(STEPS):
            rows.append(torch.cat([obs[group] for group in groups], dim=-1))
            obs = env.step(bundle.actor.act(rows[-1], deterministic=True).action)[0]
    heads = torch.arange(bundle.manifest.num_policies).repeat_interleave(ENVS_PER_HEAD).repeat(STEPS)
    return torch.cat(rows).cpu().numpy(), heads.numpy()
