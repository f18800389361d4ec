"""What a study asks of its peers: which checkouts it needs, and what each of their cells is to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from myriad_lab.cli.peers.checkouts import PEERS, Checkout, find_checkout
from myriad_lab.errors import ConfigurationError, nearest
from myriad_lab.evaluation.study import Cell, StudyCfg, cell_settings, override_arguments


def resolve_checkouts(study: StudyCfg, folder: Path | None) -> dict[str, Checkout]:
    """Return the checkouts of the study's peers, none where no folder is given.

    Raises:
        ConfigurationError: If a peer is unknown, or the folder lacks a checkout that the study needs.
    """
    names = sorted({variant.peer for variant in study.variants.values() if variant.peer})
    for name in names:
        if name not in PEERS:
            raise ConfigurationError(f"peer={name!r} of study {study.name} is unknown. {nearest(name, PEERS)}")
    if folder is not None and not names:
        raise ConfigurationError(f"--peers {folder}: study {study.name} trains by our own code alone; leave it out")
    return {} if folder is None else {name: find_checkout(name, folder) for name in names}


def peer_request(
    study: StudyCfg, cell: Cell, case_overrides: Mapping[str, Any], checkout: Checkout, folder: Path
) -> dict[str, Any]:
    """Return the request of a peer's cell, see ``cell.train_peer`` and ``cell.evaluate_peer``.

    Args:
        study: The study.
        cell: The cell.
        case_overrides: Overrides of the case with its goal resolved.
        checkout: The peer's code.
        folder: Folder of the cell.
    """
    flags, overrides = cell_settings(study, cell, case_overrides)
    return {
        "peer": checkout.name,
        "peers": str(checkout.path.parent),
        "flags": flags,
        "overrides": overrides,
        "budget": asdict(study.budget_of(cell)),
        "num_checkpoints": study.evaluation.num_checkpoints,
        "snapshots": str(folder / "snapshots"),
        "seed": cell.seed,
        "evaluation": asdict(study.evaluation),
        "out": str(folder / "evaluation.json"),
    }


def describe_peer(study: StudyCfg, cell: Cell, case_overrides: Mapping[str, Any]) -> list[str]:
    """Return what a peer's cell trains with, as words: its name, the flags and the settings."""
    flags, overrides = cell_settings(study, cell, case_overrides)
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    return [study.variants[cell.variant].peer, *words, *override_arguments(overrides)]
