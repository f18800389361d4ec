"""How much memory is free, and how much a piece of work takes at its peak."""

from __future__ import annotations

import ctypes
import gc
from pathlib import Path

import torch

_STATUS, _CLEAR, _INFO = Path("/proc/self/status"), Path("/proc/self/clear_refs"), Path("/proc/meminfo")
_RESET_PEAK = "5"
"""What Linux wants to be told to count the peak of the resident memory anew."""


class PeakMemory:
    """Context that measures the most memory held inside it, beyond what was held at its start.

    On a GPU these are the bytes of torch's tensors, on a CPU the resident memory of the process, libraries and thread
    pools included. ``num_bytes`` is ``None`` where the system does not tell, as outside Linux.

    Args:
        device: Device of the work.
    """

    def __init__(self, device: str) -> None:
        self._device = torch.device(device)
        self.num_bytes: int | None = None

    def __enter__(self) -> PeakMemory:
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            torch.cuda.reset_peak_memory_stats(self._device)
            self._before: int | None = torch.cuda.memory_allocated(self._device)
        else:
            _return_freed_memory()
            self._before = _resident("VmRSS") if _restart_peak() else None
        return self

    def __exit__(self, *error: object) -> None:
        cuda = self._device.type == "cuda"
        peak = torch.cuda.max_memory_allocated(self._device) if cuda else _resident("VmHWM")
        if peak is not None and self._before is not None:
            self.num_bytes = max(0, peak - self._before)


def free_bytes(device: str) -> int | None:
    """Return the memory that is free on a device [B], once torch gave back what it keeps for later.

    ``None`` where the system does not tell.
    """
    if torch.device(device).type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(device)[0]
    return _field(_INFO, "MemAvailable")


def _resident(field: str) -> int | None:
    return _field(_STATUS, field)


def _field(path: Path, name: str) -> int | None:
    """Return a field of one of Linux's files of memory sizes, which are in KiB [B]."""
    if not path.is_file():
        return None
    found = (line.split()[1] for line in path.read_text().splitlines() if line.startswith(f"{name}:"))
    return next((1024 * int(value) for value in found), None)


def _restart_peak() -> bool:
    try:
        _CLEAR.write_text(_RESET_PEAK)
    except OSError:
        return False
    return True


def _return_freed_memory() -> None:
    """Make the C library give back what was freed, or the next allocations would not show."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError):  # another C library: its peaks are lower bounds
        return
