"""Learners against each other on the clock: the study ``end2end``, as one of the benchmarks."""

from __future__ import annotations

from pathlib import Path

QUICK_SCALE = 0.05
"""Share of the budgets where it only has to be seen that it works."""


def run(device: str, quick: bool = False, minutes: float | None = None, peers: Path | None = None) -> int:
    """Run the cells of the study that are not done yet, and write its page; returns 1 where one failed.

    Args:
        device: ``cpu`` for the study ``end2end``; on a GPU it is ``end2end_cuda``, with the published settings.
        quick: Whether to run one seed for a twentieth of the budgets, into a folder of its own.
        minutes: Start no cell after so long.
        peers: Folder with a checkout of each public learner.

    Raises:
        ConfigurationError: If a checkout is missing in ``peers``.
    """
    from myriad_lab.cli import study
    from myriad_lab.cli.main import parser_of

    name = "end2end" if device == "cpu" else "end2end_cuda"
    words = [name, "--out", f"runs/studies/{name}{'_quick' if quick else ''}"]
    words += ["--scale", str(QUICK_SCALE), "--num_seeds", "1"] if quick else []
    words += ["--minutes", str(minutes)] if minutes else []
    words += ["--peers", str(peers)] if peers else []
    return study.run(parser_of("study").parse_args(words))
