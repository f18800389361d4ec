"""Exploration noise that lasts for several steps, since what one control step does is often too little to be seen."""

from __future__ import annotations

from typing import Any

import torch


class RepeatedNoise:
    """Standard normal noise of which each env keeps a draw for ``k`` steps, ``P(k) ~ k^-2``.

    FlashSAC (arXiv 2604.04539) draws one ``k`` for all envs; here each env draws its own, so that their noises do not
    change together.

    Args:
        num_envs: Rows of the noise.
        num_actions: Columns of the noise.
        longest: Largest ``k``; 1 draws anew at every step.
        device: Where the noise lives.
    """

    def __init__(self, num_envs: int, num_actions: int, longest: int, device: torch.device | str = "cpu") -> None:
        self._noise = torch.zeros(num_envs, num_actions, device=device)
        self._left = torch.zeros(num_envs, dtype=torch.int64, device=device)
        # on the CPU: a GPU adds these up in any order, which torch refuses where runs are to be repeatable
        shares = torch.arange(1, longest + 1, dtype=torch.float64).pow(-2)
        # the last bound is left out: rounding must not let a draw lie beyond it
        self._bounds = (shares.cumsum(0) / shares.sum())[:-1].float().to(device)

    def draw(self, generator: torch.Generator) -> torch.Tensor:
        """Return the noise of the next step, shape (num_envs, num_actions)."""
        fresh = torch.randn(self._noise.shape, generator=generator, device=self._noise.device)
        if not len(self._bounds):
            return fresh
        uniform = torch.rand(self._left.shape, generator=generator, device=self._left.device)
        over = self._left == 0
        self._noise = torch.where(over.unsqueeze(1), fresh, self._noise)
        self._left = torch.where(over, torch.searchsorted(self._bounds, uniform, right=True) + 1, self._left) - 1
        return self._noise

    def state_dict(self) -> dict[str, Any]:
        """Return the noise that is kept, and for how many steps."""
        return {"noise": self._noise.clone(), "left": self._left.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned.

        Raises:
            RuntimeError: It is of another shape.
        """
        self._noise.copy_(state["noise"])
        self._left.copy_(state["left"])
