"""The errors a user can mend."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ConfigurationError(ValueError):
    """Bad input, found before any work: names the value, what was expected and how to mend it."""


class BrokenPolicyError(ValueError, FloatingPointError):
    """Actions that are not a number: the weights of the policy broke in an update before."""


class CheckpointError(RuntimeError):
    """A bundle that is missing, truncated, of a newer schema, or of another task than asked for."""


def nearest(name: str, candidates: Iterable[str]) -> str:
    """Return a sentence with the names nearest to ``name``, or all of them where none is near."""
    names = sorted(candidates)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    return f"Did you mean {' or '.join(close)}?" if close else f"Known: {', '.join(names)}."
