"""What makes a host wait for a device, refused: by the name of the operation on a CPU, by CUDA itself on a GPU.

On a CPU a copy to the host has the name of any other copy: that one only CUDA finds.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

READ_BACKS = ("_local_scalar_dense", "nonzero", "unique", "masked_select")
"""The host needs the values, or a shape that depends on them."""
UPLOADS = ("lift_fresh",)
"""A tensor is made of numbers of the host: on a GPU a copy that is waited for."""


class NoHostWaits(TorchDispatchMode):
    """Refuse the operations that would make a host wait for a device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        assert not any(part in name for part in (*READ_BACKS, *UPLOADS)), f"{name} makes the host wait for the device"
        return func(*args, **(kwargs or {}))


@contextmanager
def no_cuda_syncs() -> Iterator[None]:
    """Let CUDA raise where the host waits for the device."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Synchronization debug mode is a prototype")
            torch.cuda.set_sync_debug_mode("error")
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
