"""Rewards divided by the spread of the returns they add up to, so that one support fits every task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from myriad_lab.errors import CheckpointError
from myriad_lab.functional.collective import ALONE, Collective


class ReturnScale:
    """Running statistics of the discounted return of every env, and the factor for rewards that follows from them.

    The factor is ``1 / max(std(G), max|G| / bound)`` with ``G <- r + gamma G``, zero at the start of an episode
    (FlashSAC, arXiv 2604.04539): scaled returns have a spread of at most one and stay within ``bound``.

    Args:
        num_envs: Envs observed per step.
        gamma: Discount per control step.
        bound: Largest scaled return.
        device: Where the statistics live.
    """

    def __init__(self, num_envs: int, gamma: float, bound: float, device: torch.device | str = "cpu") -> None:
        self._gamma, self._bound = gamma, bound
        self._returns = torch.zeros(num_envs, device=device)
        # count, mean, sum of squared distances from the mean, in double precision: they grow for the whole run
        self._moments = torch.zeros(3, dtype=torch.float64, device=device)
        self._largest = torch.zeros((), device=device)
        self.factor = torch.ones((), device=device)
        """What rewards are multiplied by, a scalar that stays where it is; 1 until a return differs from zero."""

    def update(
        self, rewards: torch.Tensor, dones: torch.Tensor, valid: torch.Tensor, ranks: Collective = ALONE
    ) -> None:
        """Take the rewards of one step of all envs, (num_envs,); steps that are not valid end what came before them.

        The statistics are those of the envs of all ranks.
        """
        returns = torch.where(valid, rewards + self._gamma * self._returns, 0.0)
        counted = valid.sum()
        mean = returns.sum() / counted.clamp_min(1)
        squares = torch.where(valid, returns - mean, 0.0).square().sum()
        own = torch.stack((counted.double(), mean.double(), squares.double(), returns.abs().amax().double()))
        counts, means, spreads, largest = ranks.gather_rows(own.unsqueeze(0)).unbind(1)
        # the history is merged with this step of every rank, all of them by count (Chan et al. 1979)
        count, old_mean, old_squares = self._moments.clone().unbind()
        counts, means = torch.cat((count.view(1), counts)), torch.cat((old_mean.view(1), means))
        total = counts.sum().clamp_min(1.0)
        merged = (counts * means).sum() / total
        squares = old_squares + spreads.sum() + (counts * (means - merged).square()).sum()
        self._moments.copy_(torch.stack((counts.sum(), merged, squares)))
        self._largest.copy_(torch.maximum(self._largest, largest.amax().to(self._largest)))
        self._returns.copy_(torch.where(dones | ~valid, 0.0, returns))
        spread = torch.maximum((squares / total).sqrt().to(self._largest), self._largest / self._bound)
        self.factor.copy_(torch.where(spread > 0.0, 1.0 / spread, 1.0))

    def restart(self) -> None:
        """Forget the returns under way: all envs begin new episodes."""
        self._returns.zero_()

    def state_dict(self) -> dict[str, Any]:
        """Return the statistics and the returns under way."""
        return {name: tensor.clone() for name, tensor in self._tensors().items()}

    def load_state_dict(self, state: Mapping[str, Any] | None, with_returns: bool = True) -> None:
        """Restore what ``state_dict`` returned, the returns under way only if they are to be gone on with.

        Raises:
            CheckpointError: If there is none (``None``).
        """
        if state is None:
            raise CheckpointError(
                "the checkpoint has no statistics of returns: it was trained with agent.normalize_returns=false; keep "
                "it so"
            )
        for name, tensor in self._tensors().items():
            if with_returns or name != "returns":
                tensor.copy_(state[name])

    def _tensors(self) -> dict[str, torch.Tensor]:
        return {"returns": self._returns, "moments": self._moments, "largest": self._largest, "factor": self.factor}
