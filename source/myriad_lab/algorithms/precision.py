"""Whether a device computes in bfloat16 by itself or only imitates it."""

from __future__ import annotations

import torch


def has_native_bfloat16(device: torch.device) -> bool:
    """Return whether matmuls in bfloat16 run on units made for them: tensor cores, AMX tiles or AVX-512 BF16."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        # public names for these do not exist; a torch without them is taken for a processor without the units
        asked = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
        return any(ask() for ask in asked if ask is not None)
    return False


class MixedPrecision:
    """Whether, and how, the networks of an algorithm run in bfloat16.

    Args:
        wanted: The setting ``mixed_precision``; ``None`` means where the device has units for it.
        device: Where the networks are.
    """

    def __init__(self, wanted: bool | None, device: torch.device) -> None:
        self.enabled = has_native_bfloat16(device) if wanted is None else wanted
        self._device = device

    def autocast(self) -> torch.autocast:
        """Return a context for forward passes."""
        return torch.autocast(self._device.type, torch.bfloat16, enabled=self.enabled)
