"""Versioned mailbox for weights between processes: shared tensors, nothing pickled per message, no lock to die with."""

from __future__ import annotations

from collections.abc import Sequence

import torch

_BEGUN, _DONE = 0, 1
_MAX_READS = 100


class WeightMailbox:
    """One writer leaves tensors, any number of readers fetch the newest complete ones.

    Two copies and a sequence counter: the writer fills the copy that is not current and then makes it current, a reader
    copies the current one and reads again if the writer came round to it meanwhile. Nobody waits for anybody, and a
    process killed in the middle of either leaves nothing locked. Tensors of a CPU live in shared memory; those of a GPU
    travel by handle once, when the mailbox is handed to the other process.

    Args:
        tensors: The first message; also gives shapes, types and device. Its version is 0.
        tags: Number of integers that travel with each message, e.g. counters.
    """

    def __init__(self, tensors: Sequence[torch.Tensor], tags: int = 1) -> None:
        self._copies = [[t.detach().clone() for t in tensors] for _ in range(2)]
        self._sequence = torch.zeros(2, dtype=torch.int64)
        self._tags = torch.zeros(2, tags, dtype=torch.int64)
        self._seen = 0
        for tensor in [self._sequence, self._tags, *self._copies[0], *self._copies[1]]:
            if tensor.device.type == "cpu":
                tensor.share_memory_()

    @property
    def version(self) -> int:
        """Number of messages published so far."""
        return int(self._sequence[_DONE])

    @torch.no_grad()
    def publish(self, tensors: Sequence[torch.Tensor], tags: Sequence[int] = (0,)) -> None:
        """Make ``tensors`` the current message; for the one writer alone."""
        version = self.version + 1
        self._sequence[_BEGUN] = version
        slot = version % 2
        _copy(self._copies[slot], tensors)
        for i, tag in enumerate(tags):
            self._tags[slot, i] = tag
        self._sequence[_DONE] = version

    @torch.no_grad()
    def fetch(self, into: Sequence[torch.Tensor]) -> list[int] | None:
        """Copy the newest message ``into`` these tensors if it was not fetched yet.

        Returns:
            Its tags; ``None`` if there is nothing new.

        Raises:
            RuntimeError: If the writer overtook every attempt, which means that it publishes without doing any work.
        """
        for _ in range(_MAX_READS):
            version = self.version
            if version == self._seen:
                return None
            slot = version % 2
            _copy(into, self._copies[slot])
            tags = self._tags[slot].tolist()
            # the writer reuses this copy for version + 2, which it begins only after version + 1 is done
            if int(self._sequence[_BEGUN]) < version + 2:
                self._seen = version
                return tags
        raise RuntimeError(f"The writer of a mailbox overtook {_MAX_READS} reads in a row.")


def _copy(into: Sequence[torch.Tensor], source: Sequence[torch.Tensor]) -> None:
    torch._foreach_copy_(list(into), [t.detach() for t in source])
    for device in {t.device for t in [*into, *source] if t.is_cuda}:
        torch.cuda.current_stream(device).synchronize()
