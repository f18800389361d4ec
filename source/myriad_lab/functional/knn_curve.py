"""Points in the order of a space-filling curve, and boxes around runs of them: a search tree made of sorts.

The curve is that of Morton (A computer oriented geodetic data base, IBM 1966), through the ranks of the coordinates
instead of the coordinates themselves. Ranks are spread evenly whatever the data are, so that neither a dense cluster
nor a point far away makes the boxes of the others larger; a grid would need a cell size, and none fits both. Everything
here has a batch axis, and shapes that do not depend on the data, so that no device is waited for.
"""

from __future__ import annotations

import torch

FAN = 32
"""Points of a box, boxes of a node, nodes of the level above."""
LEVELS = 3
MAX_DIM = 3
"""Most features: 63 bits hold the ranks of 2^21 points in each of them; of more points neighbours share a rank."""


def curve_keys(points: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
    """Return where points lie on the curve through the references, int64 (b, n).

    Args:
        points: Shape (b, n, d), d up to 3.
        references: Shape (b, m, d).
    """
    dim = points.shape[-1]
    axes = references.mT.contiguous().sort(dim=-1).values
    ranks = torch.searchsorted(axes, points.mT.contiguous())
    bits = references.shape[1].bit_length()
    ranks = ranks >> max(0, bits - min(31, 63 // dim))
    # Spread the bits of each rank: the upper half of every run of bits moves away from the lower one.
    for run in (16, 8, 4, 2, 1):
        mask = sum(((1 << run) - 1) << first for first in range(0, 63, run * dim)) & (2**63 - 1)
        ranks = (ranks | (ranks << run * (dim - 1))) & mask
    return (ranks << torch.arange(dim, device=ranks.device).unsqueeze(1)).sum(1)


def boxes(values: torch.Tensor) -> list[torch.Tensor]:
    """Return the least and largest values of runs of 32, of runs of 32 of these, and once more.

    Args:
        values: Shape (b, c, m), ordered along the last axis.

    Returns:
        For each of the levels a tensor (b, 2 c, ceil(m / 32^level)), the least values first.
    """
    least = largest = values
    levels = []
    for _ in range(LEVELS):
        least, largest = _runs(least).amin(-1), _runs(largest).amax(-1)
        levels.append(torch.cat([least, largest], dim=1))
    return levels


def _runs(values: torch.Tensor) -> torch.Tensor:
    """Cut the last axis into runs of 32; the last entry fills up the last run."""
    count = values.shape[-1]
    rows = torch.arange(-(-count // FAN) * FAN, device=values.device).clamp(max=count - 1)
    return values[..., rows].unflatten(-1, (-1, FAN))
