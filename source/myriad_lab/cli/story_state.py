"""What the story remembers between two calls, so that it goes on where it was interrupted."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from myriad_lab.portfolio.atomic import read_json, write_json
from myriad_lab.portfolio.run_folder import RunFolder

STATE_FILE = "story.json"


class StoryInterruptedError(Exception):
    """A signal ended a stage; what it did is saved."""


def signature(inputs: Mapping[str, Any]) -> str:
    """Return a short fingerprint of what a stage depends on."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True, default=str).encode()).hexdigest()[:8]


def put_aside(root: Path) -> None:
    """Rename the folder of a story, if there is one, so that another can begin."""
    if root.exists():
        aside = root.with_name(f"{root.name}_until_{datetime.now():%Y-%m-%d_%H-%M-%S}")
        root.rename(aside)
        print(f"what was done is in {aside} now")


class StoryState:
    """The finished stages of a story, in ``story.json``; a stage whose inputs changed counts as not done."""

    def __init__(self, root: Path, stages: list[str]) -> None:
        """Take the folder of the story and the names of its stages, in order."""
        self.root, self.stages = root, stages
        path = root / STATE_FILE
        self._done: dict[str, Any] = read_json(path) if path.is_file() else {}

    def stage(self, name: str, title: str, inputs: Mapping[str, Any], work: Callable[[], dict[str, Any]]) -> Any:
        """Return the result of a stage, doing it if it was not done with the same inputs before.

        Args:
            name: Name of the stage.
            title: What it does, for the terminal.
            inputs: JSON-able; what its result depends on.
            work: Does it; returns JSON containers.
        """
        mark = signature(inputs)
        place = f"[{self.stages.index(name) + 1}/{len(self.stages)}] {title}"
        done = self._done.get(name)
        if done is not None and done["signature"] == mark:
            print(f"{place}: done before", flush=True)
            return done["result"]
        print(f"\n{place}", flush=True)
        started = time.monotonic()
        result = work()
        seconds = time.monotonic() - started
        self._done[name] = {"signature": mark, "seconds": seconds, "result": result}
        self.root.mkdir(parents=True, exist_ok=True)
        write_json(self.root / STATE_FILE, self._done)
        print(f"{place}: done in {seconds:.0f} s", flush=True)
        return result

    @property
    def begun(self) -> bool:
        """Whether a stage was done before."""
        return bool(self._done)

    def seconds(self) -> float:
        """Return the time that all finished stages took [s]."""
        return sum(done["seconds"] for done in self._done.values())

    def run_of(self, run_name: str) -> RunFolder | None:
        """Return the newest run of that name that has a checkpoint; it may be done although its stage is not."""
        runs = [RunFolder(path) for path in sorted(self.root.glob(f"*_{run_name}"), reverse=True)]
        return next((run for run in runs if run.list_checkpoints()), None)
