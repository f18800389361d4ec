"""Where the code of others lies, which commit of it, and how its modules are imported without what it only shows by."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from myriad_lab.errors import ConfigurationError, nearest


@dataclass(frozen=True)
class Peer:
    """Somebody else's learner."""

    repository: str
    """Where to clone it from."""
    commit: str
    """The commit that its driver was written for."""
    driver: str
    """Module that runs it; has ``train(checkout, env, recorder, settings, seed)``."""
    sources: str
    """Folder of its Python code inside the checkout; says too whether a folder is a checkout of it."""


PEERS = {
    "FastTD3": Peer(
        "https://github.com/younggyoseo/FastTD3",
        "229ed59bbf43ea2f7a2d5d90d1076314839944d7",
        "myriad_lab.cli.peers.fast_td3",
        "fast_td3",
    ),
    "FlashSAC": Peer(
        "https://github.com/Holiday-Robot/FlashSAC",
        "87edc9061150ae9e962dd84e6544e27a1554b3ab",
        "myriad_lab.cli.peers.flash_sac",
        "flash_rl",
    ),
}
"""Name in a study, and of the folder of the checkout -> what is known of it."""


@dataclass(frozen=True)
class Checkout:
    """A clone of a peer's repository on this machine."""

    name: str
    """Which peer."""
    path: Path
    """Its folder."""
    commit: str
    """Commit that is checked out."""
    changed: bool
    """Whether its Python code differs from that commit."""

    @property
    def sources(self) -> Path:
        """Folder of its Python code."""
        return self.path / PEERS[self.name].sources

    def describe(self) -> str:
        """Return one line for the page of a study."""
        peer = PEERS[self.name]
        notes = ["with changes to its code"] if self.changed else []
        if self.commit != peer.commit:
            notes.append(f"its driver was written for {peer.commit[:12]}")
        return f"{peer.repository} at {self.commit}" + (f" ({', '.join(notes)})" if notes else "")


def find_checkout(name: str, folder: Path | None) -> Checkout:
    """Return the checkout ``folder / name``.

    Raises:
        ConfigurationError: If the peer is unknown, there is no folder, or it is no git checkout of the peer.
    """
    if name not in PEERS:
        raise ConfigurationError(f"peer={name!r} is unknown. {nearest(name, PEERS)}")
    peer = PEERS[name]
    how = f"git clone {peer.repository} FOLDER/{name} && git -C FOLDER/{name} checkout {peer.commit}, --peers FOLDER"
    if folder is None:
        raise ConfigurationError(f"{name} is trained by its own public code, which is not part of this package: {how}")
    path = (folder / name).resolve()
    if not (path / peer.sources).is_dir():
        raise ConfigurationError(f"{path} holds no {peer.sources}/, so it is no checkout of {name}: {how}")
    try:
        top, commit = _git(path, "rev-parse", "--show-toplevel", "HEAD").split()
        status = _git(path, "status", "--porcelain", "--", "*.py")
    except (OSError, subprocess.CalledProcessError, ValueError) as error:
        raise ConfigurationError(
            f"{path} is no git checkout, and results must say of which commit they are: {how}"
        ) from error
    if Path(top).resolve() != path:
        raise ConfigurationError(f"{path} belongs to the git repository {top}, not to one of its own: {how}")
    return Checkout(name, path, commit, bool(status.strip()))


def import_file(name: str, path: Path) -> ModuleType:
    """Import a file of a checkout as module ``name``."""
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ConfigurationError(f"{path} is missing: check out the commit that the driver was written for")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def replace_module(name: str, **content: Any) -> ModuleType:
    """Put a module with this content where ``import name`` finds it first."""
    module = ModuleType(name)
    module.__dict__.update(content)
    sys.modules[name] = module
    parent, _, last = name.rpartition(".")
    if parent in sys.modules:
        setattr(sys.modules[parent], last, module)
    return module


def stand_in(contents: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Stand in for packages that are imported and not needed for learning, where they are not installed.

    Args:
        contents: Dotted module -> its content; a module after the one that holds it.

    Returns:
        Top-level packages that were stood in for.
    """
    packages = [name for name in contents if "." not in name and name not in sys.modules]
    absent = {name for name in packages if importlib.util.find_spec(name) is None}
    for name, content in contents.items():
        if name.partition(".")[0] in absent:
            replace_module(name, **content)
    return sorted(absent)


def without_progress(iterable: Any = None, **_: Any) -> Any:
    """Stand in for ``tqdm.tqdm``: the iterable itself, or a bar that shows nothing."""
    return _NoBar() if iterable is None else iterable


def refuse(what: str) -> Callable[..., Any]:
    """Return a function that says it was not meant to be called."""

    def refused(*_: Any, **__: Any) -> Any:
        raise NotImplementedError(f"{what} is not installed; only its name was expected to be used")

    return refused


class _NoBar:
    def update(self, count: int = 1) -> None:
        """Show nothing."""

    def set_description(self, text: str = "") -> None:
        """Show nothing."""


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, errors="replace").stdout
