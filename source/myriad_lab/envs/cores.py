"""The processor cores of this process."""

from __future__ import annotations

import os


def usable_cores() -> list[int]:
    """Return the ids of the cores this process may use; all of them where the system keeps no such list (macOS)."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))
