"""What ``myriad doctor`` says of Isaac Lab, from the metadata of the installed packages: no simulator is started."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from myriad_lab.cli.doctor import Finding
from myriad_lab.envs.isaaclab.launch import SUPPORTED

if TYPE_CHECKING:
    from packaging.requirements import Requirement

TESTED = "3.0.0"
GET = "pip install 'myriad-lab[isaaclab]' in an environment of its own with Python 3.12"
PINNED = (
    ("numpy", "isaaclab", "", ("numpy",)),
    ("rsl-rl", "isaaclab", "", ("rsl-rl-lib",)),
    ("Newton", "isaaclab", "", ("newton", "warp-lang")),
    ("Newton", "newton", "sim", ("mujoco-warp", "mujoco")),
    ("PhysX", "isaaclab", "ovphysx", ("ovphysx", "ovstage")),
    ("Kit", "isaaclab", "isaacsim", ("isaacsim",)),
)
"""Part, the package that pins it, the extra of that package that asks for it, what is pinned."""
OPTIONAL = {"PhysX": "isaaclab", "Kit": "isaacsim"}
"""Parts that Isaac Lab works without -> the extra of ours that brings them."""


def check_isaaclab(path: list[str] | None = None) -> list[Finding]:
    """Look at Isaac Lab, its engines, its pins and its assets.

    Args:
        path: Folders to look for packages in; those of the interpreter by default.
    """
    isaaclab = _find("isaaclab", path)
    if isaaclab is None:
        return [Finding("Isaac Lab", "missing", f"{GET} (in a checkout, for the CPU: make isaaclab)")]
    version = isaaclab.version
    if not version.startswith(SUPPORTED):
        old = version.startswith(("2.", "0."))  # From source, 2.3 calls itself 0.54.
        refused = "Isaac Lab 2.3 is not supported yet" if old else "not supported"
        return [Finding("Isaac Lab", "broken", f"{version}: {refused}; 3.0 runs without Kit: {GET}")]
    tested = version if version == TESTED else f"{version} (tested with {TESTED})"
    return [
        Finding("Isaac Lab", "ok", tested),
        _check_python(isaaclab),
        *_check_pins(path),
        *_check_usd(path),
        _check_assets(),
    ]


def _find(name: str, path: list[str] | None) -> metadata.Distribution | None:
    where = {} if path is None else {"path": path}
    context = metadata.DistributionFinder.Context(name=name, **where)
    return next(iter(metadata.distributions(context=context)), None)


def _check_python(isaaclab: metadata.Distribution) -> Finding:
    """Compare the interpreter with what Isaac Lab declares; only 3.11 is known to work beyond that."""
    from packaging.specifiers import SpecifierSet

    version, declared = platform.python_version(), str(isaaclab.metadata.json.get("requires_python", ""))
    if SpecifierSet(declared).contains(version, prereleases=True):
        return Finding("Isaac Lab: Python", "ok", version)
    if version.startswith("3.11."):
        return Finding("Isaac Lab: Python", "ok", f"{version}, off-label: Isaac Lab declares {declared}")
    return Finding("Isaac Lab: Python", "broken", f"{version}; Isaac Lab needs {declared}: {GET}")


def _check_pins(path: list[str] | None) -> list[Finding]:
    """Compare what is installed with what Isaac Lab and Newton ask for; one line for each part."""
    parts: dict[str, list[tuple[Requirement, str | None]]] = {}
    for part, owner, extra, names in PINNED:
        for requirement in _requirements(owner, extra, names, path):
            installed = _find(requirement.name, path)
            parts.setdefault(part, []).append((requirement, installed.version if installed else None))
    return [_judge(part, pinned) for part, pinned in parts.items()]


def _requirements(owner: str, extra: str, names: Iterable[str], path: list[str] | None) -> list[Requirement]:
    """Return what ``owner[extra]`` asks for of ``names`` on this machine."""
    from packaging.requirements import Requirement

    package = _find(owner, path)
    lines = package.requires if package else None
    parsed = [Requirement(line) for line in lines or ()]
    asked = [r for r in parsed if r.marker is None or r.marker.evaluate({"extra": extra})]
    return [requirement for requirement in asked if requirement.name in names]


def _judge(part: str, pinned: list[tuple[Requirement, str | None]]) -> Finding:
    """Turn the pins of a part and the versions that are installed into one line."""
    what = f"Isaac Lab: {part}"
    wrong = [(r, v) for r, v in pinned if v is None or not r.specifier.contains(v, prereleases=True)]
    if not wrong:
        return Finding(what, "ok", ", ".join(f"{r.name} {v}" for r, v in pinned) + _device_of(part))
    if part in OPTIONAL and all(version is None for _, version in wrong):
        return Finding(what, "missing", f"pip install 'myriad-lab[{OPTIONAL[part]}]'")
    told = ", ".join(f"{r.name} is {v or 'not installed'}" for r, v in wrong)
    mend = " ".join(f"'{r.name}{r.specifier}'" for r, _ in wrong)
    return Finding(what, "broken", f"{told}: pip install --no-deps {mend}")


def _device_of(part: str) -> str:
    import torch

    if part == "PhysX" and not torch.cuda.is_available():
        return "; without CUDA it runs on the CPU, by myriad-lab's replacement of pinned memory"
    return ""


def _check_usd(path: list[str] | None) -> list[Finding]:
    """Two packages bring the module ``pxr``; the one installed last has written over the other."""
    exchange = _find("usd-exchange", path)
    if exchange is None:
        return [Finding("Isaac Lab: USD", "broken", "usd-exchange is not installed: " + GET)]
    if _find("usd-core", path) is None:
        return [Finding("Isaac Lab: USD", "ok", f"usd-exchange {exchange.version}")]
    mend = f"pip uninstall usd-core, then pip install --force-reinstall --no-deps usd-exchange=={exchange.version}"
    return [Finding("Isaac Lab: USD", "broken", f"usd-core overwrites usd-exchange: {mend}")]


def _check_assets() -> Finding:
    """Tell where the robots of the stock tasks come from."""
    root = os.environ.get("ISAACSIM_ASSET_ROOT", "")
    if not root:
        return Finding("Isaac Lab: assets", "ok", "from NVIDIA's server, since ISAACSIM_ASSET_ROOT is not set")
    if "://" in root or Path(root, "Isaac").is_dir():
        return Finding("Isaac Lab: assets", "ok", root)
    detail = f"ISAACSIM_ASSET_ROOT={root} holds no folder Isaac: unset it, or name a local copy of the assets"
    return Finding("Isaac Lab: assets", "broken", detail)
