"""What this machine is: processor, GPU, versions."""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from myriad_lab.envs.cores import usable_cores

PACKAGES = ("myriad-lab", "torch", "mujoco", "rsl-rl-lib", "numpy")
OPTIONAL = ("isaaclab", "newton", "ovphysx", "isaacsim")
"""Packages that are told of where they are installed."""


def hardware(device: str = "cuda") -> dict[str, Any]:
    """Return processor, usable cores, GPU (that of ``device``, if it is one), torch version and threads."""
    import torch

    gpu = device if device.startswith("cuda") else "cuda"
    return {
        "cpu": cpu_name(),
        "cores": len(usable_cores()),
        "gpu": torch.cuda.get_device_name(gpu) if torch.cuda.is_available() else "none",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }


def cpu_name() -> str:
    """Return the name of the processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    named = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that matter, for ``run.json``."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found | installed(OPTIONAL)


def installed(names: Sequence[str]) -> dict[str, str]:
    """Return the versions of those packages that are installed."""
    found = {}
    for name in names:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found
