"""Recorded episodes of a population: what ``runners`` write and ``evaluation`` reads."""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from myriad_lab.errors import CheckpointError
from myriad_lab.portfolio.atomic import plain_json, write_file

Array = np.ndarray


@dataclass
class EpisodeRecord:
    """Full episodes, ``m`` heads times ``n`` episodes; every array but those of the states is complete."""

    returns: Array
    """Undiscounted return of each episode, float64, shape (m, n)."""
    lengths: Array
    """Control steps of each episode, int64, shape (m, n)."""
    diverged: Array
    """Episodes cut off because the physics broke, bool, shape (m, n)."""
    success: Array | None = None
    """Episodes that reached the goal, bool, shape (m, n); ``None`` for tasks without a goal."""
    features: Array | None = None
    """Features of the states in which an action was taken, float32, shape (m, n_recorded, T, d)."""
    valid: Array | None = None
    """Which of those belong to the episode, bool, shape (m, n_recorded, T)."""
    policy_obs: Array | None = None
    """A sample of the observations the policies saw, float32, shape (rows, num_obs)."""
    policy_heads: Array | None = None
    """Head that saw each of them, int64, shape (rows,)."""
    info: dict[str, Any] = field(default_factory=dict)
    """JSON-able notes: task, checkpoint, seed, whether actions were deterministic, ..."""

    @property
    def num_policies(self) -> int:
        """Number of heads m."""
        return self.returns.shape[0]

    @property
    def num_episodes(self) -> int:
        """Episodes per head n."""
        return self.returns.shape[1]

    def visits(self, max_per_head: int | None = None, seed: int = 0) -> list[Array]:
        """Return the visited features of each head, shape (rows, d) each; a random subset if there are more."""
        if self.features is None or self.valid is None:
            raise CheckpointError("this recording holds no features; roll out with features recorded")
        return select_visits(self.features, self.valid, max_per_head, seed)

    def save(self, path: str | Path) -> None:
        """Write a compressed ``.npz`` in one step."""
        arrays = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "info"}
        save_arrays(path, {name: array for name, array in arrays.items() if array is not None}, self.info)

    @classmethod
    def load(cls, path: str | Path) -> EpisodeRecord:
        """Read what ``save`` wrote.

        Raises:
            CheckpointError: If the file is missing, damaged or no recording of episodes.
        """
        arrays, info = load_arrays(path)
        missing = {"returns", "lengths", "diverged"} - arrays.keys()
        if missing:
            raise CheckpointError(f"{path} lacks {', '.join(sorted(missing))}; it is no recording of episodes")
        known = {f.name for f in fields(cls)}
        return cls(**{name: array for name, array in arrays.items() if name in known}, info=info)


def select_visits(features: Array, valid: Array, max_per_head: int | None = None, seed: int = 0) -> list[Array]:
    """Return the valid rows of ``features`` (m, n, T, d) of each head, at most ``max_per_head``, drawn at random."""
    generator = np.random.default_rng(seed)
    visits = []
    for rows, mask in zip(features, valid, strict=True):
        found = rows[mask]
        if max_per_head is not None and len(found) > max_per_head:
            found = found[np.sort(generator.choice(len(found), max_per_head, replace=False))]
        visits.append(found)
    return visits


def save_arrays(path: str | Path, arrays: dict[str, Array], info: dict[str, Any] | None = None) -> None:
    """Write arrays and JSON-able notes as a compressed ``.npz`` in one step."""
    note = np.array(json.dumps(plain_json(info or {})))

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, info=note, **arrays)

    write_file(Path(path), write)


def load_arrays(path: str | Path) -> tuple[dict[str, Array], dict[str, Any]]:
    """Read what ``save_arrays`` wrote; ``info`` is empty where a file has none.

    Raises:
        CheckpointError: If the file is missing or damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path} is missing")
    try:
        # NumPy forgets to close a file that it opened itself and could not read.
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path} is damaged ({error}); record it again") from error
    note = arrays.pop("info", None)
    return arrays, json.loads(str(note)) if note is not None else {}
