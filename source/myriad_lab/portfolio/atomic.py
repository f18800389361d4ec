"""Write files and folders so that a reader sees the old ones or the new ones, never a part."""

from __future__ import annotations

import json
import math
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from myriad_lab.errors import CheckpointError, ConfigurationError

TEMPORARY_PREFIX = ".tmp-"
PREVIOUS_PREFIX = ".previous-"


def plain_json(value: Any) -> Any:
    """Return ``value`` as strict JSON containers: tuples become lists, numbers that are not finite become ``None``."""
    if isinstance(value, dict):
        return {str(key): plain_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_json(item) for item in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    if hasattr(value, "tolist"):
        return plain_json(value.tolist())
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{value!r} of type {type(value).__name__} has no JSON form")


def write_bytes(path: Path, data: bytes) -> None:
    """Replace the file ``path`` by ``data`` in one step, on the disk before the function returns."""

    def write(temporary: Path) -> None:
        temporary.write_bytes(data)

    write_file(path, write)


def write_file(path: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a temporary file, then move it to ``path`` in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f"{TEMPORARY_PREFIX}{os.getpid()}-{path.name}"
    try:
        write(temporary)
        _sync(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as strict JSON, in one step."""
    write_bytes(path, (json.dumps(plain_json(value), indent=2, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        CheckpointError: If it is cut short or otherwise damaged.
    """
    try:
        value = json.loads(path.read_text())
    except ValueError as error:
        raise CheckpointError(f"{path} is not readable as JSON ({error}); it is damaged, make it anew") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds no JSON object; it is damaged, make it anew")
    return value


def write_folder(path: Path, fill: Callable[[Path], None]) -> None:
    """Let ``fill`` write into a temporary folder, then move that to ``path``.

    A folder cannot replace a folder in one step. The old one is therefore set aside under a name that ``recover``
    knows, so that a crash between the two moves loses nothing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    recover(path)
    temporary = path.parent / f"{TEMPORARY_PREFIX}{os.getpid()}-{path.name}"
    previous = _previous(path)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        fill(temporary)
        for folder, _, files in os.walk(temporary, topdown=False):
            for name in files:
                _sync(Path(folder) / name)
            _sync(Path(folder))
        if path.exists():
            shutil.rmtree(previous, ignore_errors=True)
            os.rename(path, previous)
        os.rename(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    _sync(path.parent)
    shutil.rmtree(previous, ignore_errors=True)


@contextmanager
def staged_files(folder: Path) -> Iterator[Path]:
    """Give a temporary folder, and move the files in it into ``folder`` at the end; its other files stay.

    Where the block raises, nothing is moved, and the files of before stay, all of them.
    """
    stage = folder / f"{TEMPORARY_PREFIX}{os.getpid()}-stage"
    shutil.rmtree(stage, ignore_errors=True)
    stage.mkdir(parents=True)
    try:
        yield stage
        paths = sorted(stage.iterdir())
        for path in paths:
            _sync(path)
        for path in paths:
            os.replace(path, folder / path.name)
    finally:
        shutil.rmtree(stage, ignore_errors=True)
    _sync(folder)


def recover(path: Path) -> None:
    """Put back the folder that an interrupted ``write_folder`` had set aside."""
    previous = _previous(path)
    if previous.exists() and not path.exists():
        os.rename(previous, path)


def remove_leftovers(folder: Path) -> None:
    """Recover or delete what killed writers left in ``folder``; call it only where no other process writes."""
    for previous in folder.glob(f"{PREVIOUS_PREFIX}*"):
        recover(folder / previous.name.removeprefix(PREVIOUS_PREFIX))
        shutil.rmtree(previous, ignore_errors=True)
    for temporary in folder.glob(f"{TEMPORARY_PREFIX}*"):
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


def check_writable(folder: Path, min_free_bytes: int = 256 * 2**20) -> None:
    """Find out before the work whether ``folder`` can take its results.

    Raises:
        ConfigurationError: If the folder cannot be made or written, or if the disk has less than ``min_free_bytes``.
    """
    # ranks on several machines, which may have the same number, look at one shared folder
    probe = folder / f"{TEMPORARY_PREFIX}{socket.gethostname()}-{os.getpid()}-probe"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"probe")
        probe.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigurationError(
            f"cannot write to {folder}: {error.strerror or error}; choose another folder or mend its permissions"
        ) from error
    free = shutil.disk_usage(folder).free
    if free < min_free_bytes:
        raise ConfigurationError(
            f"the disk of {folder} has {free / 2**20:.0f} MiB left, at least {min_free_bytes / 2**20:.0f} MiB are "
            "needed; free some space or choose another folder"
        )


def _previous(path: Path) -> Path:
    return path.parent / f"{PREVIOUS_PREFIX}{path.name}"


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
