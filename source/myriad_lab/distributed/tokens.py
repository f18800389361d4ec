"""Ratios between processes held by counting: a token is the right to do one unit of work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

POLL_SECONDS = 0.1
"""Longest time a waiting process goes without looking whether the others are alive [s]."""


class Tokens:
    """A count that one process grants and another takes; taking from an empty count blocks in the kernel.

    Args:
        context: Multiprocessing context that starts the processes.
        initial: Tokens at the start; a negative number is a debt that the process that grants pays off first.
    """

    def __init__(self, context: Any, initial: int = 0) -> None:
        self._semaphore = context.Semaphore(max(0, initial))
        self._owed = max(0, -initial)

    def grant(self, count: int = 1) -> None:
        """Add ``count`` tokens; only one process may."""
        paid = min(count, self._owed)
        self._owed -= paid
        for _ in range(count - paid):
            self._semaphore.release()

    def take(self, while_waiting: Callable[[], None]) -> None:
        """Take one token.

        Args:
            while_waiting: Called every ``POLL_SECONDS`` while there is none; raises to give up.
        """
        while not self._semaphore.acquire(timeout=POLL_SECONDS):
            while_waiting()
