"""``myriad report``: one self-contained HTML page of a run folder."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from myriad_lab.cli.arguments import non_empty, non_empty_path, refuse_overrides
from myriad_lab.errors import ConfigurationError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``myriad report``."""
    parser.add_argument("run_folder", nargs="?", type=non_empty, help="run folder (default: that of --checkpoint)")
    parser.add_argument(
        "--checkpoint", type=non_empty, help="bundle or run folder, or latest, or best (default: latest)"
    )
    parser.add_argument("--runs_root", type=non_empty, default="runs", help="where runs are (default: runs)")
    parser.add_argument(
        "--seeds",
        nargs="*",
        type=non_empty,
        default=[],
        metavar="RUN",
        help="runs with other seeds, for intervals on the curves",
    )
    parser.add_argument("--out", type=non_empty_path, help="HTML file (default: report.html in the run folder)")


def run(args: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Write the page and say where it is."""
    refuse_overrides("report", overrides)
    if args.run_folder and args.checkpoint:
        raise ConfigurationError(
            f"{args.run_folder} and --checkpoint {args.checkpoint} both say which run the page is of; give one of them"
        )
    path = report(args.run_folder or args.checkpoint or "latest", args.runs_root, others=args.seeds, out=args.out)
    print(f"written: {path} ({path.stat().st_size / 2**20:.1f} MiB)")
    return 0


def report(
    checkpoint: str | Path, runs_root: str | Path = "runs", *, others: Sequence[str] = (), out: str | Path | None = None
) -> Path:
    """Write the page of the run that holds a checkpoint.

    Raises:
        CheckpointError: If there is no such run, or a file in it is damaged.
        ConfigurationError: If matplotlib is missing, the page cannot be written, or another seed is the same run
            again or a run of something else.
    """
    import importlib.util

    from myriad_lab.cli.checkpoints import check_out_file
    from myriad_lab.evaluation.report import write_report
    from myriad_lab.portfolio.atomic import check_writable
    from myriad_lab.portfolio.run_folder import RunFolder, resolve_checkpoint

    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigurationError("the report needs matplotlib; install it with: pip install 'myriad-lab[viz]'")
    path = resolve_checkpoint(checkpoint, runs_root)
    _check_seeds(path, others)
    if out is None:
        check_writable(RunFolder.open(path).path)
    else:
        check_out_file(Path(out))
    return write_report(path, others, out)


def _check_seeds(path: Path, others: Sequence[str]) -> None:
    """Refuse runs that are counted twice, and those of another task or algorithm."""
    from myriad_lab.portfolio.manifest import Manifest
    from myriad_lab.portfolio.run_folder import RunFolder

    def what(run: RunFolder) -> str:
        manifest = Manifest.load(run.latest())
        return f"{manifest.algorithm} on {manifest.task}"

    own = RunFolder.open(path)
    seen = {own.path}
    for other in map(RunFolder.open, others):
        if other.path in seen:
            raise ConfigurationError(f"--seeds {other.path}: this run is on the page already; give runs of other seeds")
        if what(other) != what(own):
            raise ConfigurationError(
                f"--seeds {other.path}: it is a run of {what(other)}, and the page is of {what(own)}; give runs of the "
                "same with other seeds"
            )
        seen.add(other.path)
