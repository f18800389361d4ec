"""Progress on a terminal: one live line, and a block of metrics now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import TextIO

HEADLINE = (
    ("Population/coverage", "coverage"),
    ("Population/entropy_pool", "entropy"),
    ("Population/diversity", "diversity"),
    ("Train/mean_reward", "reward"),
    ("Train/success", "success"),
    ("Perf/env_steps_per_second", "steps/s"),
)
"""Metrics of the live line, in order, with their short names; those not logged are left out."""


class Console:
    """Writes progress to a stream.

    On a terminal the live line overwrites itself; elsewhere (a file, a pipe) it is written at the same times as the
    block, so that a log stays readable.
    """

    def __init__(
        self, total_iterations: int | None = None, stream: TextIO | None = None, block_seconds: float = 30.0
    ) -> None:
        """Take the length of the run, the stream (standard output by default) and the time between blocks [s]."""
        self.total_iterations = total_iterations
        self.stream = sys.stdout if stream is None else stream
        self.block_seconds = block_seconds
        self._live = self.stream.isatty()
        self._width = 0
        self._first: tuple[int, float] | None = None
        self._last_block = -float("inf")

    def show(self, metrics: Mapping[str, float], iteration: int) -> None:
        """Show the metrics of one iteration."""
        now = time.monotonic()
        if self._first is None:
            self._first = (iteration, now)
        line = self._line(metrics, iteration, now)
        last = self.total_iterations is not None and iteration + 1 >= self.total_iterations
        block = last or now - self._last_block >= self.block_seconds
        if self._live:
            self.stream.write("\r" + line.ljust(self._width))
            self._width = len(line)
        elif block:
            self.stream.write(line + "\n")
        if block:
            self._last_block = now
            self._write_block(metrics)
        self.stream.flush()

    def close(self) -> None:
        """End the live line."""
        if self._live and self._width:
            self.stream.write("\n")
            self.stream.flush()
            self._width = 0

    def _line(self, metrics: Mapping[str, float], iteration: int, now: float) -> str:
        total = "" if self.total_iterations is None else f"/{self.total_iterations}"
        parts = [f"iteration {iteration + 1}{total}"]
        parts += [f"{label} {_number(metrics[key])}" for key, label in HEADLINE if key in metrics]
        remaining = self._remaining(iteration, now)
        return "  ".join(parts + ([] if remaining is None else [f"{_duration(remaining)} left"]))

    def _remaining(self, iteration: int, now: float) -> float | None:
        if self.total_iterations is None or self._first is None or iteration <= self._first[0]:
            return None
        pace = (now - self._first[1]) / (iteration - self._first[0])
        return pace * max(self.total_iterations - 1 - iteration, 0)

    def _write_block(self, metrics: Mapping[str, float]) -> None:
        if self._live:
            self.close()
        for key in sorted(metrics):
            if "/" in key:
                self.stream.write(f"    {key:<40} {_number(metrics[key]):>12}\n")


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
