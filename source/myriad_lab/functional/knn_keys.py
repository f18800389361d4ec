"""A neighbour as one integer, for the kernels of :mod:`.knn_triton` and :mod:`.knn_boxes`.

The bits of its squared distance stand above its index. Distances that are not negative have the order of their bits, so
one minimum over such keys gives a nearest neighbour and who it is, and equal distances are ordered by index.
"""

# Arguments in capitals are constants of the compiler.
# ruff: noqa: N803

from __future__ import annotations

import torch
import triton
import triton.language as tl

_LOW = tl.constexpr(0xFFFFFFFF)
ABSENT = tl.constexpr(0x7F800000FFFFFFFF)
"""No reference: an infinite distance, and the largest index."""


def pack(squared: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Return the keys, int64, of squared distances (float32, not negative) and indices below 2^31."""
    return (squared.contiguous().view(torch.int32).to(torch.int64) << 32) | indices


def unpack(keys: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return distances, ascending along the last axis, and indices; where there is no reference, infinity and 0."""
    keys = keys.sort(dim=-1).values
    distances = (keys >> 32).to(torch.int32).view(torch.float32).sqrt()
    return distances, torch.where(torch.isfinite(distances), keys & _LOW.value, 0)


@triton.jit
def make_keys(squared: tl.tensor, indices: tl.tensor, seen: tl.tensor) -> tl.tensor:
    """Return keys; of what is not seen, or is not at a finite distance, that of no reference."""
    keys = (squared.to(tl.int32, bitcast=True).to(tl.int64) << 32) | indices.to(tl.int64)
    return tl.where(seen & (squared < float("inf")), keys, ABSENT)


@triton.jit
def none_yet(k: tl.tensor, SLOTS: tl.constexpr) -> tl.tensor:
    """Return the keys of ``k`` absent neighbours, each another one, and in the slots beyond such as are never worst."""
    slots = tl.arange(0, SLOTS)
    return tl.where(slots < k, ABSENT - slots.to(tl.int64), -1)


@triton.jit
def keep_nearest(best: tl.tensor, keys: tl.tensor) -> tl.tensor:
    """Put those of the keys into ``best`` that are smaller than its largest ones; each stays there at most once."""
    nearest, worst = tl.min(keys, 0), tl.max(best, 0)
    while nearest < worst:
        best = tl.where(best == worst, nearest, best)
        keys = tl.where(keys == nearest, ABSENT, keys)
        nearest, worst = tl.min(keys, 0), tl.max(best, 0)
    return best


@triton.jit
def nearer(key: tl.tensor, other: tl.tensor) -> tl.tensor:
    """Say whether the distance of the one key is smaller than that of the other, whoever they are."""
    return (key >> 32) < (other >> 32)


@triton.jit
def index_of(key: tl.tensor) -> tl.tensor:
    """Return the index."""
    return key & _LOW
