"""What the kernels for a GPU are compared with; they run in Triton's interpreter where there is no GPU."""

from __future__ import annotations

import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def exact(
    queries: torch.Tensor,
    references: torch.Tensor,
    k: int,
    own_row: bool = False,
    groups: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the neighbours in each cloud by direct subtraction in float64."""
    squared = (queries.double().unsqueeze(2) - references.double().unsqueeze(1)).square().sum(-1)
    if own_row:
        squared.diagonal(dim1=1, dim2=2).fill_(torch.inf)
    if groups is not None:
        squared[groups[0].unsqueeze(2) == groups[1].unsqueeze(1)] = torch.inf
    found = squared.topk(k, largest=False, sorted=True)
    return found.values.sqrt(), found.indices


def cloud(*shape: int, seed: int = 0, offset: float = 20.0) -> torch.Tensor:
    """Return clouds that lie far from the origin for their size, as robots in a corner of their arena do."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(*shape, generator=generator) + offset).to(DEVICE)
