"""Points as bfloat16 numbers, whose products tensor cores form exactly and fast, and how far sums of these may be off.

A float32 number is the sum of bfloat16 parts: the first is the number rounded to 8 bits, the second what this leaves,
rounded to 8 bits, and three hold all 24. With q_i and r_j the parts of two points, the product of the points is the sum
of q_i r_j over all i and j. Of P parts those products are formed for which i + j < P, each as further columns of one
matrix product: 1, 3 or 6 times as many columns as features.
"""

# Arguments of kernels are pointers, numbers, and in capitals constants of the compiler.
# ruff: noqa: ANN001, ANN202, N803

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

PADDED_TO = 128
"""Rows are added until their number is a multiple of this, so that a tile needs no mask."""
_ROWS = 32
"""Points that a program splits."""
_LARGEST = tl.constexpr(2.0**124)
"""Squared norm beyond which a sum of products could overflow; of such points nothing is known."""


class Split(NamedTuple):
    """Clouds in the form in which they are multiplied; all with rows added, which lie infinitely far away."""

    factors: torch.Tensor
    """The parts, (b, rows, width)."""
    lows: torch.Tensor
    """Lower bounds of the squared norms, (b, rows); minus infinity where they are too large."""
    sizes: torch.Tensor
    """Norms, (b, rows); 0 where they are too large, as are the parts."""


@dataclass(frozen=True)
class Layout:
    """Which parts of points of ``dim`` features are multiplied, and what that may be off.

    The sum of ``lows`` of a reference and the product of the factors is ``|r|^2 - 2 q.r``, too large by at most
    ``cross_error |q| |r|``.
    """

    dim: int
    parts: int
    """Parts of a number: 1, 2 or 3."""

    @classmethod
    def of(cls, dim: int) -> Layout:
        """Return what suits points of so many features.

        Three where their products fit into 32 columns, which take less time than looking at every distance, two where
        they fit into 64, which take little more: in few dimensions neighbours are close for the size of their cloud.
        """
        return cls(dim, 3 if 6 * dim <= 32 else 2 if 3 * dim <= 64 else 1)

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """Parts of the query and of the reference that are multiplied."""
        return [(first, both - first) for both in range(self.parts) for first in range(both + 1)]

    @property
    def width(self) -> int:
        """Columns of the factors."""
        return max(16, 1 << (len(self.pairs) * self.dim - 1).bit_length())

    @property
    def rounding(self) -> float:
        """Relative error of a squared norm, and of a product's sum with respect to what is added up.

        Tensor cores shift the products of a step and the sum so far to the largest of them, and cut off what lies below
        its 24th bit (Fasi et al. 2021, "Numerical behavior of NVIDIA tensor cores"; models of later ones: Khattak and
        Mikaitis 2025, arXiv 2512.07004). Steps of 8 products, the fewest for bfloat16, are 9 such errors and that of
        the result, each of 2^-23: 2.5 units of 2^-24 a column, and 3.5 more for a last step that is not full. A norm is
        a sum of ``dim`` squares, each rounded. Centring, products of parts that are up to 0.8 % more than those of the
        points, roots, the direct distances and the bound itself are the rest of 20.
        """
        return (2.5 * len(self.pairs) * self.dim + self.dim + 20) * 2.0**-24

    @property
    def cross_error(self) -> float:
        """Error of ``-2 q.r``, relative to ``|q| |r|``.

        What a part leaves is at most 2^-8 / (1 + 2^-8) of what was there. What P parts leave out is the sum over i < P
        of q_i times the rest of r after P - i parts, and the rest of q times r: P + 1 terms of at most 2^-8P.
        """
        return 2.0 * (self.rounding + (self.parts + 1) * 2.0 ** (-8 * self.parts))

    def split(self, points: torch.Tensor, centres: torch.Tensor, *, queries: bool) -> Split:
        """Split clouds (b, n, dim) less their centres (b, 1, dim), as queries (-2 times) or as references."""
        batch, num_points, _ = points.shape
        padded = math.ceil(num_points / PADDED_TO) * PADDED_TO
        # Triton's interpreter, which runs on a CPU, does not multiply bfloat16: there these numbers are kept as float32
        kind = torch.bfloat16 if points.is_cuda else torch.float32
        factors = points.new_empty(batch, padded, self.width, dtype=kind)
        lows, sizes = points.new_empty(2, batch, padded)
        used = len(self.pairs) * self.dim
        code = sum(pair[not queries] << 2 * slot for slot, pair in enumerate(self.pairs))
        shape: dict[str, Any] = {"DIM": self.dim, "USED": used, "WIDTH": self.width, "CODE": code}
        shape |= {"SCALE": -2.0 if queries else 1.0, "ROWS": _ROWS, "PADDED_TO": PADDED_TO}
        tensors: list[Any] = [points.contiguous(), centres.contiguous(), factors, lows, sizes]
        numbers: list[Any] = [1.0 - self.rounding, num_points]
        _split[(batch * padded // _ROWS,)](*tensors, *numbers, **shape)
        return Split(factors, lows, sizes)


@triton.jit(do_not_specialize=["num_points"])
def _split(
    points, centres, factors, lows, sizes, below, num_points,
    DIM: tl.constexpr, USED: tl.constexpr, WIDTH: tl.constexpr, CODE: tl.constexpr, SCALE: tl.constexpr,
    ROWS: tl.constexpr, PADDED_TO: tl.constexpr,
):  # fmt: skip
    """Write the parts of some points of a cloud; ``CODE`` has two bits for each ``DIM`` columns that say which."""
    num_padded = tl.cdiv(num_points, PADDED_TO) * PADDED_TO
    cloud = (tl.program_id(0) // (num_padded // ROWS)).to(tl.int64)
    rows = tl.program_id(0) % (num_padded // ROWS) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, WIDTH)
    there = (rows < num_points)[:, None] & (columns < USED)[None, :]
    values = tl.load(
        points + (cloud * num_points + rows)[:, None] * DIM + (columns % DIM)[None, :], mask=there, other=0.0
    )
    values = tl.where(there, values - tl.load(centres + cloud * DIM + columns % DIM)[None, :], 0.0)
    norms = tl.sum(tl.where((columns < DIM)[None, :], values * values, 0.0), 1)
    known = norms <= _LARGEST
    first = _leading(values)
    second = _leading(values - first)
    part = ((CODE >> (2 * (columns // DIM))) & 3)[None, :]
    chosen = tl.where(part == 0, first, tl.where(part == 1, second, values - first - second))
    chosen = tl.where(known[:, None], SCALE * chosen, 0.0)
    out = cloud * num_padded + rows
    tl.store(factors + out[:, None] * WIDTH + columns[None, :], chosen.to(factors.dtype.element_ty))
    low = tl.where(known, below * norms, float("-inf"))
    tl.store(lows + out, tl.where(rows < num_points, low, float("inf")))
    tl.store(sizes + out, tl.where(known, tl.sqrt(norms), 0.0))


@triton.jit
def _leading(values):
    """Return values rounded to 8 bits, those in the middle away from zero."""
    bits = values.to(tl.int32, bitcast=True) + 0x8000
    return (bits & -0x10000).to(tl.float32, bitcast=True)
