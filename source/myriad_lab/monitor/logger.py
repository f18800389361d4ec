"""Where metrics go: one abstract method, named in the configuration."""

from __future__ import annotations

import importlib.util
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from myriad_lab.errors import ConfigurationError, nearest
from myriad_lab.monitor.console import Console

LOGGERS = ("jsonl", "console", "tensorboard", "wandb", "none")
"""Names taken by ``make_loggers``."""
EXTRAS = {"tensorboard": "viz", "wandb": "wandb"}
"""Logger that needs the package of its name -> extra that brings it along."""


def check_package(name: str) -> None:
    """Find out before the work whether the package that a logger needs is installed.

    Raises:
        ConfigurationError: Saying what to install.
    """
    if name in EXTRAS and importlib.util.find_spec(name) is None:
        raise ConfigurationError(f"logger={name!r} needs the package {name}: pip install 'myriad-lab[{EXTRAS[name]}]'")


class Logger(ABC):
    """Takes the metrics of each iteration."""

    @abstractmethod
    def log(self, metrics: Mapping[str, float], iteration: int) -> None:
        """Take the metrics of one iteration."""

    def rewind(self, iteration: int) -> None:
        """Forget what was logged from ``iteration`` on: a run resumes there."""
        return

    def close(self) -> None:
        """Write out what is left."""
        return


class JsonLines(Logger):
    """Append one flat JSON object per iteration to a file; NaN is written as null.

    The file is open only while a line is written, so that a killed run loses at most the line in progress.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)

    def log(self, metrics: Mapping[str, float], iteration: int) -> None:
        """Append a line."""
        row = {"iteration": iteration} | {k: v if math.isfinite(v) else None for k, v in metrics.items()}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def rewind(self, iteration: int) -> None:
        """Drop the lines of ``iteration`` and later ones, and a last line cut short by a crash."""
        if not self.path.is_file():
            return
        kept = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                break
            if row["iteration"] < iteration:
                kept.append(line + "\n")
        partial = self.path.with_name(self.path.name + ".partial")
        partial.write_text("".join(kept), encoding="utf-8")
        partial.replace(self.path)


class ConsoleLogger(Logger):
    """Show progress on the terminal."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def log(self, metrics: Mapping[str, float], iteration: int) -> None:
        """Refresh the live line, and print a block now and then."""
        self.console.show(metrics, iteration)

    def close(self) -> None:
        """End the live line."""
        self.console.close()


class TensorBoard(Logger):
    """Write event files for TensorBoard."""

    def __init__(self, folder: str | Path) -> None:
        check_package("tensorboard")
        from torch.utils.tensorboard import SummaryWriter

        self._folder = str(folder)
        self._writer: Any = SummaryWriter(self._folder)

    def log(self, metrics: Mapping[str, float], iteration: int) -> None:
        """Write one scalar per metric."""
        for key, value in metrics.items():
            self._writer.add_scalar(key, value, iteration)

    def rewind(self, iteration: int) -> None:
        """Start a new event file that hides the events from ``iteration`` on."""
        from torch.utils.tensorboard import SummaryWriter

        self._writer.close()
        self._writer = SummaryWriter(self._folder, purge_step=iteration)

    def close(self) -> None:
        """Flush and close the event file."""
        self._writer.close()


class Wandb(Logger):
    """Send metrics to Weights & Biases; a resumed run goes on as the same one."""

    def __init__(self, run_folder: str | Path, project: str = "myriad-lab") -> None:
        check_package("wandb")
        import wandb  # pyright: ignore[reportMissingImports]

        folder = Path(run_folder).resolve()
        name = f"{folder.parent.name}-{folder.name}"
        self._run = wandb.init(project=project, name=name, id=name, dir=str(folder), resume="allow")

    def log(self, metrics: Mapping[str, float], iteration: int) -> None:
        """Send one row."""
        self._run.log(dict(metrics), step=iteration)

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


def make_loggers(
    names: Sequence[str] | str, run_folder: str | Path | None, total_iterations: int | None = None
) -> list[Logger]:
    """Return the loggers with these names; ``metrics.jsonl`` is always written where there is a run folder.

    Args:
        names: Names out of ``LOGGERS``, or one name.
        run_folder: Folder of the run, ``None`` for a run that leaves nothing.
        total_iterations: Number of iterations of the run, for the remaining time on the terminal.

    Raises:
        ConfigurationError: If a name is unknown, its package is missing, or it needs a run folder.
    """
    wanted = [names] if isinstance(names, str) else list(names)
    for name in wanted:
        if name not in LOGGERS:
            raise ConfigurationError(f"logger={name!r} is unknown. {nearest(name, LOGGERS)}")
        if run_folder is None and name in ("jsonl", "tensorboard", "wandb"):
            raise ConfigurationError(f"logger={name!r} needs a run folder")
    loggers: list[Logger] = []
    if run_folder is not None:
        loggers.append(JsonLines(Path(run_folder) / "metrics.jsonl"))
    if "console" in wanted:
        loggers.append(ConsoleLogger(Console(total_iterations)))
    if run_folder is not None and "tensorboard" in wanted:
        loggers.append(TensorBoard(run_folder))
    if run_folder is not None and "wandb" in wanted:
        loggers.append(Wandb(run_folder))
    return loggers
