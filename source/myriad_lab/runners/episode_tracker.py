"""Returns, lengths and successes of the last episodes of each head, kept on the device."""

from __future__ import annotations

from typing import Any

import torch

from myriad_lab.functional.collective import ALONE, Collective
from myriad_lab.networks.population import check_population


class EpisodeTracker:
    """A ring of the last ``window`` finished episodes per head; nothing reaches the host until ``summary``.

    Args:
        num_envs: Envs; env e belongs to head ``e // (num_envs // num_policies)``.
        num_policies: Heads.
        device: Of the rewards.
        window: Episodes per head that averages run over.
    """

    def __init__(self, num_envs: int, num_policies: int, device: torch.device | str = "cpu", window: int = 100) -> None:
        self.num_envs, self.num_policies, self.window = num_envs, num_policies, window
        self.envs_per_policy = check_population(num_envs, num_policies)
        # quantities: return, length, success; the extra column takes what envs that go on would write
        self._ring = torch.zeros(3, num_policies, window + 1, device=device)
        self._running = torch.zeros(3, num_envs, device=device)
        self._finished = torch.zeros(num_policies, dtype=torch.int64, device=device)
        self._heads = torch.arange(num_policies, device=device).unsqueeze(1)

    def step(self, rewards: torch.Tensor, dones: torch.Tensor, valid: torch.Tensor, success: torch.Tensor) -> None:
        """Take one env step; an episode whose last step is not valid is dropped.

        Args:
            rewards: Rewards, (num_envs,).
            dones: Whether the episode ended, bool (num_envs,).
            valid: False where the physics broke, or where the episode is not of the policy that is measured, bool
                (num_envs,).
            success: Whether the goal was reached in this episode, bool (num_envs,).
        """
        self._running[0] += torch.where(valid, rewards, 0.0)
        self._running[1] += 1.0
        self._running[2] = success.float()
        ended = (dones & valid).view(self.num_policies, self.envs_per_policy)
        # more ends in one step than the window holds: the later ones stay
        rank = ended.cumsum(1)
        kept = ended & (rank > rank[:, -1:] - self.window)
        column = torch.where(kept, (self._finished.unsqueeze(1) + rank - 1) % self.window, self.window)
        self._ring[:, self._heads, column] = self._running.view(3, self.num_policies, self.envs_per_policy)
        self._finished += rank[:, -1]
        self._running *= ~dones

    def restart(self) -> None:
        """Forget the episodes under way: all envs begin new ones."""
        self._running.zero_()

    def head_means(self) -> torch.Tensor:
        """Return mean return, length and success of each head, (3, num_policies); NaN without a finished episode."""
        counts = self._finished.clamp_max(self.window)
        inside = torch.arange(self.window, device=counts.device) < counts.unsqueeze(1)
        return (self._ring[..., : self.window] * inside).sum(-1) / counts

    def summary(self, has_success: bool, ranks: Collective = ALONE) -> dict[str, float]:
        """Return the means over heads that finished an episode, and return and success of each head, of all ranks."""
        means = ranks.gather_rows(self.head_means().T).T.cpu()
        names = ("mean_reward", "mean_episode_length", "success")[: 3 if has_success else 2]
        out = {f"Train/{name}": float(means[i].nanmean()) for i, name in enumerate(names)}
        for i in range(means.shape[1]):
            out[f"Heads/mean_reward_{i}"] = float(means[0, i])
            if has_success:
                out[f"Heads/success_{i}"] = float(means[2, i])
        return {key: value for key, value in out.items() if value == value}

    def state_dict(self) -> dict[str, Any]:
        """Return all counts."""
        return {"ring": self._ring.clone(), "running": self._running.clone(), "finished": self._finished.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self._ring.copy_(state["ring"])
        self._running.copy_(state["running"])
        self._finished.copy_(state["finished"])
