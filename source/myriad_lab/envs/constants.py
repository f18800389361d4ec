"""Numbers that every step needs on the device."""

from __future__ import annotations

import functools
from typing import Any

import torch


@functools.lru_cache(maxsize=64)
def constant(numbers: tuple[Any, ...], device: torch.device, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Return numbers as a tensor that is made once; it is everybody's, so nobody may write into it.

    A GPU's host would wait for every copy, and of tens of thousands of envs some begin anew in nearly every step.
    """
    with torch.inference_mode(False):  # what is made in that mode cannot be used outside of it
        return torch.tensor(numbers, dtype=dtype, device=device)
