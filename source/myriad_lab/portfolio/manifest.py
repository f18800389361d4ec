"""The manifest of a bundle: everything about a portfolio except its numbers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import MISSING, asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from myriad_lab.errors import CheckpointError
from myriad_lab.portfolio.atomic import plain_json, read_json, write_json

SCHEMA_VERSION = 2


def _add_parameters(raw: dict[str, Any]) -> dict[str, Any]:
    """Give the terms of the spec their ``parameters``; version 1 told Fourier frequencies in the description alone."""
    if "spec" not in raw:
        return raw  # refused as what it is: no manifest
    spec = raw["spec"]
    groups = {}
    for group, terms in spec.get("observations", {}).items():
        groups[group] = []
        for term in terms:
            told = re.search(r"f: (\[.*?\])", term.get("description", ""))
            groups[group].append({"parameters": {"frequencies": json.loads(told[1])} if told else {}, **term})
    return {**raw, "spec": {**spec, "observations": groups}}


MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: _add_parameters}
"""From schema version v to v + 1: takes and returns the raw manifest."""
FILE_NAME = "manifest.json"


def _package_version() -> str:
    from importlib.metadata import version

    return version("myriad-lab")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass
class Manifest:
    """What a bundle holds, how it was made and how good it is; ``manifest.json`` is this, as JSON."""

    task: str
    """Registered task id."""
    algorithm: str
    """Name of the algorithm on the command line, e.g. ``kmyriad``."""
    spec: dict[str, Any]
    """``EnvSpec.to_dict()`` of the env the portfolio was trained in."""
    network: dict[str, Any]
    """``class``, ``cfg``, ``num_obs``, ``num_actions``, ``num_policies``: what rebuilds the actor."""
    num_policies: int
    """Number of heads."""
    num_envs: int = 0
    """Envs it was trained with."""
    obs_groups: dict[str, list[str]] = field(default_factory=lambda: {"actor": ["policy"]})
    """Observation groups that feed each network, as in RSL-RL."""
    config: dict[str, Any] = field(default_factory=dict)
    """Resolved configuration: ``env``, ``agent``, ``run``."""
    iteration: int = 0
    """Iterations done."""
    env_steps: int = 0
    """Env steps done, summed over envs."""
    wall_time: float = 0.0
    """Training time so far [s]."""
    metrics: dict[str, float | None] = field(default_factory=dict)
    """Metrics at this checkpoint; ``None`` where a metric was not finite."""
    head_metrics: dict[str, list[float]] = field(default_factory=dict)
    """Metrics with one value per head, e.g. the return of each."""
    best_metric: dict[str, str] = field(default_factory=dict)
    """``name`` of the entry of ``metrics`` that decides which bundle is best, and ``mode``, ``max`` or ``min``."""
    parent: str | None = None
    """Bundle that seeded this run."""
    git_commit: str | None = None
    """Commit of the source tree, ``None`` outside a checkout."""
    arena: dict[str, Any] | None = None
    """``Arena.to_dict()``: extent, walls, start, robot radius; ``None`` for tasks without an arena."""
    backend: str | None = None
    """Simulator backend."""
    files: dict[str, int] = field(default_factory=dict)
    """Size of each file of the bundle [bytes], so that a truncated one is noticed."""
    created: str = field(default_factory=_now)
    """When the bundle was made, UTC."""
    package_version: str = field(default_factory=_package_version)
    """Version of Myriad Lab that wrote the bundle."""
    schema_version: int = SCHEMA_VERSION
    """Version of this layout."""

    def to_dict(self) -> dict[str, Any]:
        """Return the manifest as plain JSON containers."""
        return plain_json(asdict(self))

    @classmethod
    def from_dict(cls, raw: dict[str, Any], source: Path | str = FILE_NAME) -> Manifest:
        """Build a manifest from JSON containers, of this or an older schema.

        Raises:
            CheckpointError: If the schema is newer than this package, or a field is missing or unknown.
        """
        raw = _migrate(dict(raw), source)
        known = {f.name for f in fields(cls)}
        required = {f.name for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING}
        for problem, names in (("lacks", required - raw.keys()), ("has unknown", raw.keys() - known)):
            if names:
                raise CheckpointError(f"{source} {problem} {', '.join(sorted(names))}; it is no manifest of Myriad Lab")
        return cls(**raw)

    def save(self, folder: Path) -> None:
        """Write ``manifest.json`` into ``folder`` in one step."""
        write_json(folder / FILE_NAME, self.to_dict())

    @classmethod
    def load(cls, folder: Path) -> Manifest:
        """Read ``manifest.json`` of the bundle ``folder``.

        Raises:
            CheckpointError: If the file is missing or is not a manifest.
        """
        path = folder / FILE_NAME
        if not path.is_file():
            raise CheckpointError(f"{path} is missing; {folder} is no bundle")
        return cls.from_dict(read_json(path), path)

    def score(self) -> float | None:
        """Return the metric that decides which bundle is best, larger is better; ``None`` if it is unknown."""
        value = self.metrics.get(self.best_metric.get("name", ""))
        if value is None:
            return None
        return -value if self.best_metric.get("mode", "max") == "min" else value


def _migrate(raw: dict[str, Any], source: Path | str) -> dict[str, Any]:
    version = raw.get("schema_version")
    if not isinstance(version, int) or isinstance(version, bool):
        raise CheckpointError(f"{source} has schema_version {version!r}, expected a whole number")
    if version > SCHEMA_VERSION:
        raise CheckpointError(
            f"{source} has schema version {version}, this Myriad Lab reads up to {SCHEMA_VERSION}; "
            f"upgrade to {raw.get('package_version', 'the version that wrote it')} or newer"
        )
    for step in range(version, SCHEMA_VERSION):
        if step not in MIGRATIONS:
            raise CheckpointError(f"{source} has schema version {version}, which can no longer be read")
        raw = MIGRATIONS[step](raw)
    return {**raw, "schema_version": SCHEMA_VERSION}
