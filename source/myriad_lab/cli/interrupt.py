"""Ctrl-C: the first one lets a run finish its iteration and save, the second one kills it."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from types import FrameType, TracebackType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class GracefulStop:
    """Context manager that turns SIGINT and SIGTERM into a request to stop.

    The first signal calls ``request_stop``; the handlers from before are then back in force, so that a second one
    ends the process at once. Outside the main thread, where Python allows no handlers, it does nothing.
    """

    def __init__(self, request_stop: Callable[[], None], tell: bool = True) -> None:
        """Take what asks the run to stop after its iteration, and whether to say so on the terminal."""
        self.request_stop, self.tell = request_stop, tell
        self.signal_number: int | None = None
        """The signal that arrived, ``None`` if none did."""
        self._previous: dict[int, Callable[[int, FrameType | None], object] | int | None] = {}

    def __enter__(self) -> GracefulStop:
        """Install the handlers."""
        try:
            for number in SIGNALS:
                self._previous[number] = signal.signal(number, self._handle)
        except ValueError:
            self._previous.clear()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Put the handlers from before back."""
        self._restore()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.signal_number = number
        self._restore()
        if self.tell:
            print("\nstopping: the iteration is finished and saved first; once more ends at once", file=sys.stderr)
        self.request_stop()

    def _restore(self) -> None:
        while self._previous:
            number, handler = self._previous.popitem()
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
