"""What this machine is: devices, processor, versions."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

from myriad_lab.errors import ConfigurationError

PACKAGES = ("myriad-lab", "torch", "mujoco", "rsl-rl-lib", "numpy")


def check_device(device: str) -> None:
    """Make sure that a torch device is there.

    Raises:
        ConfigurationError: If it is no device, or this machine does not have it; says which it has.
    """
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    available = ["cpu", *[f"cuda:{i}" for i in range(count)]]
    try:
        parsed = torch.device(device)
    except RuntimeError as error:
        raise ConfigurationError(f"device={device!r} is no device; this machine has {', '.join(available)}") from error
    index = parsed.index or 0
    if parsed.type not in ("cpu", "cuda") or (parsed.type == "cuda" and index >= count):
        raise ConfigurationError(f"device={device!r} is not there; this machine has {', '.join(available)}")


def hardware() -> dict[str, Any]:
    """Return processor, usable cores, GPU, torch version and threads."""
    import torch

    return {
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
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
    return found
