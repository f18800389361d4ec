"""The processor cores of a process."""

from __future__ import annotations

import os


def usable_cores(process: int = 0) -> list[int]:
    """Return the ids of the cores that a process may use; all of them where the system keeps no such list (macOS).

    Args:
        process: Its number; 0 is this process.
    """
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(process))
    return list(range(os.cpu_count() or 1))
