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
