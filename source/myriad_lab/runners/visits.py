"""What the population visited: cells of the arena, and recordings for the report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from myriad_lab.envs.arena import Arena
from myriad_lab.functional.collective import ALONE, Collective
from myriad_lab.functional.coverage import coverage, visited_cells
from myriad_lab.portfolio.recording import save_arrays


class CoverageMap:
    """Visited share of the reachable cells of an arena, of one batch and since the beginning; lives on the device.

    A cell counts once it is visited on one of the ranks.
    """

    def __init__(self, arena: Arena, device: torch.device | str = "cpu", ranks: Collective = ALONE) -> None:
        self._extent, self._ranks = arena.extent, ranks
        self._reachable = arena.reachable().to(device)
        self.visited = torch.zeros_like(self._reachable)

    def update(self, features: torch.Tensor, valid: torch.Tensor) -> dict[str, torch.Tensor]:
        """Mark the cells under a batch of features.

        Args:
            features: World position x, y [m] in the first two entries, shape (..., num_features).
            valid: Rows that count, bool (...,).

        Returns:
            ``Population/coverage`` of the batch and ``Population/coverage_cumulative``, scalars in [0, 1].
        """
        batch = self._ranks.any(visited_cells(torch.where(valid.unsqueeze(-1), features, torch.nan), self._extent))
        self.visited |= batch
        return {
            "Population/coverage": coverage(batch, self._reachable),
            "Population/coverage_cumulative": coverage(self.visited, self._reachable),
        }


def save_visits(
    path: Path, features: torch.Tensor, valid: torch.Tensor, num_policies: int, info: dict[str, Any]
) -> None:
    """Write the features of a rollout as ``features`` (m, n, T, d) float32 and ``valid`` (m, n, T) bool.

    Args:
        path: File to write, ``.npz``.
        features: Shape (T, num_envs, d).
        valid: Shape (T, num_envs).
        num_policies: Number of policies m; n is num_envs / m.
        info: Notes kept with the arrays.
    """
    arrays = {
        "features": features.unflatten(1, (num_policies, -1)).permute(1, 2, 0, 3).float().cpu().numpy(),
        "valid": valid.unflatten(1, (num_policies, -1)).permute(1, 2, 0).cpu().numpy(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    save_arrays(path, arrays, info)
