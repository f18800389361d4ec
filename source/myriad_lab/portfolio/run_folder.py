"""The folder of a run, and how to find checkpoints in it."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from myriad_lab.errors import CheckpointError, ConfigurationError
from myriad_lab.portfolio.atomic import check_writable, read_json, recover, remove_leftovers, write_json
from myriad_lab.portfolio.manifest import FILE_NAME, Manifest

CHECKPOINT_PATTERN = re.compile(r"iteration_(\d+)")
RUN_FILE = "run.json"
BEST_FILE = "best.json"


class RunFolder:
    """One run on the disk: ``run.json, config/, metrics.jsonl, checkpoints/, recordings/, videos/, export/``.

    Bundles that a resume from an older one left behind are in ``abandoned/``.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @classmethod
    def create(
        cls,
        root: str | Path = "runs",
        experiment_name: str = "default",
        run_name: str = "",
        min_free_bytes: int = 256 * 2**20,
    ) -> RunFolder:
        """Make ``root/experiment_name/<date>_<time>[_run_name]``; never an existing one.

        Raises:
            ConfigurationError: If the folder cannot be written, the disk is nearly full, or a name is no folder name.
        """
        for key, name in (("experiment_name", experiment_name), ("run_name", run_name)):
            if name in (".", "..") or "/" in name or "\0" in name:
                raise ConfigurationError(f"{key}={name!r} is no folder name; leave out slashes")
        parent = Path(root) / experiment_name
        check_writable(parent, min_free_bytes)
        stem = datetime.now().strftime("%Y-%m-%d_%H-%M-%S") + (f"_{run_name}" if run_name else "")
        for attempt in range(1, 1000):
            path = parent / (stem if attempt == 1 else f"{stem}_{attempt}")
            try:
                path.mkdir()
            except FileExistsError:
                continue
            run = cls(path)
            run.checkpoints.mkdir()
            return run
        raise ConfigurationError(f"{parent / stem} and 998 more exist already; choose another run_name")

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """Open an existing run, or the run that holds the bundle ``path``.

        Raises:
            CheckpointError: If there is no run.
        """
        path = Path(path).resolve()
        for candidate in (path, *path.parents):
            if (candidate / "checkpoints").is_dir():
                return cls(candidate)
        raise CheckpointError(f"{path} is no run folder: it has no checkpoints/")

    @property
    def checkpoints(self) -> Path:
        """Folder of the bundles."""
        return self.path / "checkpoints"

    @property
    def recordings(self) -> Path:
        """Folder of the recorded features and episodes."""
        return self.path / "recordings"

    @property
    def videos(self) -> Path:
        """Folder of the videos."""
        return self.path / "videos"

    @property
    def export(self) -> Path:
        """Folder of the exported policies."""
        return self.path / "export"

    @property
    def metrics_file(self) -> Path:
        """One JSON object per iteration."""
        return self.path / "metrics.jsonl"

    @property
    def evaluation_file(self) -> Path:
        """Results of ``evaluate``."""
        return self.path / "evaluation.json"

    def checkpoint_path(self, iteration: int) -> Path:
        """Return where the bundle of an iteration belongs."""
        return self.checkpoints / f"iteration_{iteration:06d}"

    def list_checkpoints(self) -> list[Path]:
        """Return the complete bundles, oldest first."""
        if not self.checkpoints.is_dir():
            return []
        for previous in self.checkpoints.glob(".previous-*"):
            recover(self.checkpoints / previous.name.removeprefix(".previous-"))
        found = [
            path
            for path in self.checkpoints.iterdir()
            if CHECKPOINT_PATTERN.fullmatch(path.name) and (path / FILE_NAME).is_file()
        ]
        return sorted(found, key=_iteration)

    def latest(self) -> Path:
        """Return the newest bundle.

        Raises:
            CheckpointError: If there is none.
        """
        bundles = self.list_checkpoints()
        if not bundles:
            raise CheckpointError(f"{self.checkpoints} holds no checkpoint")
        return bundles[-1]

    def best(self) -> Path:
        """Return the marked bundle, else the one with the best metric among those that name one.

        Raises:
            CheckpointError: If no bundle says how good it is.
        """
        marked = self.checkpoints / BEST_FILE
        if marked.is_file():
            path = self.checkpoints / str(read_json(marked).get("name"))
            recover(path)
            if (path / FILE_NAME).is_file():
                return path
        scored = [
            (score, path) for path in self.list_checkpoints() if (score := Manifest.load(path).score()) is not None
        ]
        if not scored:
            raise CheckpointError(
                f"no checkpoint of {self.path} has the metric that its manifest names as best_metric; use 'latest'"
            )
        return max(scored)[1]

    def mark_best(self, name: str | Path) -> None:
        """Remember that the bundle ``name`` is the best one so far; it is kept by ``prune``.

        Raises:
            CheckpointError: If there is no such bundle.
        """
        path = self.checkpoints / Path(name).name
        manifest = Manifest.load(path)
        write_json(
            self.checkpoints / BEST_FILE, {"name": path.name, "metric": manifest.best_metric, "score": manifest.score()}
        )

    def prune(self, keep: int) -> None:
        """Delete all but the last ``keep`` bundles and the best one, and what killed writers left behind."""
        if keep < 1:
            raise ConfigurationError(f"keep={keep}; at least one checkpoint must be kept")
        remove_leftovers(self.checkpoints)
        try:
            best = self.best()
        except CheckpointError:
            best = None
        for path in self.list_checkpoints()[:-keep]:
            if path != best:
                # A half-deleted folder must not look like a bundle.
                (path / FILE_NAME).unlink()
                shutil.rmtree(path)

    def set_aside(self, iteration: int) -> Path | None:
        """Move the bundles after ``iteration`` to ``abandoned/<number>``: a run goes on from there another way.

        What names one of them as the best, and its evaluation, goes with them, and a copy of the metrics.

        Returns:
            The folder they are in now, ``None`` where there are none.
        """
        later = {path.name: path for path in self.list_checkpoints() if _iteration(path) > iteration}
        if not later:
            return None
        place = next(path for i in itertools.count(1) if not (path := self.path / "abandoned" / str(i)).exists())
        place.mkdir(parents=True)
        if self.metrics_file.is_file():
            shutil.copy2(self.metrics_file, place)
        for file, key in ((self.checkpoints / BEST_FILE, "name"), (self.evaluation_file, "checkpoint")):
            if file.is_file() and read_json(file).get(key) in later:
                file.rename(place / file.name)
        for name, path in later.items():
            path.rename(place / name)
        return place

    def write_info(self, info: Mapping[str, Any]) -> None:
        """Merge ``info`` (command, task, seed, versions, ``finished``) into ``run.json``."""
        write_json(self.path / RUN_FILE, {**self.read_info(), **info})

    def read_info(self) -> dict[str, Any]:
        """Return ``run.json``, empty if it was never written.

        Raises:
            CheckpointError: If it is damaged.
        """
        path = self.path / RUN_FILE
        return read_json(path) if path.is_file() else {}

    def read_metrics(self) -> list[dict[str, Any]]:
        """Return the lines of ``metrics.jsonl``; a last line cut short by a crash is left out."""
        if not self.metrics_file.is_file():
            return []
        lines = self.metrics_file.read_text().splitlines()
        rows = []
        for number, line in enumerate(lines):
            try:
                rows.append(json.loads(line))
            except ValueError as error:
                if number < len(lines) - 1:
                    raise CheckpointError(f"{self.metrics_file} line {number + 1} is damaged: {error}") from error
        return rows


def list_runs(root: str | Path, task: str | None = None) -> list[RunFolder]:
    """Return the runs under ``root`` that have a checkpoint (of ``task``, if given), oldest first."""
    folders = (path.parent for path in Path(root).glob("**/checkpoints") if path.is_dir())
    return sorted(_usable(folders, task), key=lambda run: (run.latest().stat().st_mtime_ns, run.path.name))


def resolve_checkpoint(selector: str | Path, runs_root: str | Path = "runs", task: str | None = None) -> Path:
    """Return the bundle folder that ``selector`` means.

    Args:
        selector: ``latest`` or ``best`` (of the newest run under ``runs_root``), a bundle, a run folder (its latest
            bundle), or ``<run folder>/latest`` or ``<run folder>/best``.
        runs_root: Where runs are.
        task: Consider runs of this task only, for the two words.

    Raises:
        CheckpointError: If nothing is there; says what was looked for.
    """
    path = Path(selector)
    if str(selector) in ("latest", "best"):
        runs = list_runs(runs_root, task)
        if not runs:
            of_task = f" of {task}" if task else ""
            raise CheckpointError(
                f"no run with a checkpoint{of_task} under {Path(runs_root)}; give a path, or train first"
            )
        return runs[-1].best() if str(selector) == "best" else runs[-1].latest()
    recover(path)
    if path.name in ("latest", "best") and not path.exists():
        run = RunFolder(path.parent)
        return run.best() if path.name == "best" else run.latest()
    if (path / "checkpoints").is_dir():
        return RunFolder(path).latest()
    if (path / FILE_NAME).is_file():
        return path
    problem = "holds neither manifest.json nor checkpoints/" if path.exists() else "does not exist"
    raise CheckpointError(f"checkpoint {path} {problem}; expected a bundle, a run folder, 'latest' or 'best'")


def git_state(folder: str | Path) -> tuple[str | None, str]:
    """Return commit and uncommitted difference of the source tree around ``folder``; ``(None, "")`` outside one."""
    try:
        commit = _git(folder, "rev-parse", "HEAD").strip()
        return commit, _git(folder, "diff", "HEAD")
    except (OSError, subprocess.CalledProcessError):
        return None, ""


def _iteration(bundle: Path) -> int:
    match = CHECKPOINT_PATTERN.fullmatch(bundle.name)
    assert match is not None
    return int(match.group(1))


def _git(folder: str | Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, errors="replace").stdout


def _usable(folders: Iterable[Path], task: str | None) -> list[RunFolder]:
    runs = [run for run in map(RunFolder, folders) if run.list_checkpoints()]
    return [run for run in runs if task is None or Manifest.load(run.latest()).task == task]
