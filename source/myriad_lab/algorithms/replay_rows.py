"""Minibatches of a replay memory that may be on another device than the networks."""

from __future__ import annotations

import torch

from myriad_lab.algorithms.pql_cfg import PQLCfg
from myriad_lab.storage.replay import ReplayBuffer
from myriad_lab.storage.replay_batch import ReplayBatch


class ReplayRows:
    """Rows drawn where the replay memory is and read where the networks are.

    Where both are on one device, an update that is recorded as a graph draws its rows itself. From another device they
    cannot be part of the record: they are drawn before it is replayed, and copied to where it reads them.

    Args:
        replay: The replay memory.
        cfg: Says how many rows, and how they are chosen.
        generator: The learner's source of random numbers, of the device of the networks; its seed decides that of the
            draws on another device, too.
    """

    def __init__(self, replay: ReplayBuffer, cfg: PQLCfg, generator: torch.Generator) -> None:
        self._replay, self._cfg, self._generator = replay, cfg, generator
        self.draws = torch.Generator(replay.device) if replay.device != generator.device else generator
        self._brought: ReplayBatch | None = None
        self.reseed()

    @property
    def apart(self) -> bool:
        """Whether the rows come from another device."""
        return self.draws is not self._generator

    def sample(self) -> ReplayBatch:
        """Draw the rows of one minibatch per head, (num_policies, batch_size, ...)."""
        batch = self._draw()
        return batch.map(lambda tensor: tensor.to(self._generator.device)) if self.apart else batch

    def bring(self) -> None:
        """Draw what the next update reads, if it cannot do so itself."""
        if not self.apart:
            return
        if self._brought is None:
            self._brought = self.sample()
        else:
            self._brought.copy_(self._draw())

    def current(self) -> ReplayBatch:
        """Return the rows of the update that runs."""
        return self.sample() if self._brought is None else self._brought

    def forget(self) -> None:
        """Give up the place of rows that were brought: their shape changes, and nothing recorded reads it any more."""
        self._brought = None

    def reseed(self) -> None:
        """Start the draws on another device anew, by the seed of the learner's source."""
        if self.apart:
            self.draws.manual_seed(self._generator.initial_seed() + 1)

    def _draw(self) -> ReplayBatch:
        cfg = self._cfg
        return self._replay.sample(
            cfg.batch_size, self.draws, own_fraction=cfg.own_fraction, n_step=cfg.n_step, gamma=cfg.gamma
        )
