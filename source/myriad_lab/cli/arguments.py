"""What the commands' arguments share: the parser, the shared flags, and the split into flags and overrides."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

from myriad_lab.errors import ConfigurationError, nearest

NOT_NEEDED = {
    "--headless": "nothing is shown without --viz",
    "--enable_cameras": "--video and --viz say what is drawn",
    "--rl_library": "--algorithm says what trains",
}
"""Flags of Isaac Lab's commands that have no meaning here -> why."""


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are ``ConfigurationError``, so that all errors of a user look alike."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage and exiting."""
        raise ConfigurationError(f"{message} (see `{self.prog} --help`)")

    def flags(self) -> list[str]:
        """Return every flag, e.g. ``--num_envs``."""
        return [option for action in self._actions for option in action.option_strings if option.startswith("--")]


def split_overrides(rest: Iterable[str], flags: Iterable[str]) -> list[str]:
    """Return what the parser did not know as overrides ``key=value``.

    Raises:
        ConfigurationError: If something is an unknown flag, or no override at all.
    """
    overrides = []
    for item in rest:
        if item.startswith("-"):
            name = item.split("=", 1)[0]
            if name in NOT_NEEDED:
                raise ConfigurationError(f"{name} is a flag of Isaac Lab's commands, leave it out: {NOT_NEEDED[name]}")
            raise ConfigurationError(f"unknown flag {name}. {nearest(name, flags)}")
        if "=" not in item:
            raise ConfigurationError(f"{item!r} is neither a flag nor an override; write an override as key=value")
        overrides.append(item)
    return overrides


def refuse_overrides(command: str, overrides: Iterable[str]) -> None:
    """Refuse overrides for a command that takes none.

    Raises:
        ConfigurationError: Naming the first one.
    """
    for override in overrides:
        raise ConfigurationError(f"{command} takes no overrides, {override!r} was given")


def non_empty(text: str) -> str:
    """Parse a flag that must not be empty, as it is where a variable of the shell is not set."""
    if not text.strip():
        raise argparse.ArgumentTypeError("an empty text was given; give a value, or leave the flag out")
    return text


def non_empty_path(text: str) -> Path:
    """Parse a flag that is the path of a file or folder."""
    return Path(non_empty(text))


def positive_int(text: str) -> int:
    """Parse a flag that must be a whole number of at least 1."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return value


def positive_float(text: str) -> float:
    """Parse a flag that must be a positive, finite number."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return value


def seed_int(text: str) -> int:
    """Parse a seed, a whole number in [0, 2**31)."""
    try:
        value = int(text)
    except ValueError:
        value = -1
    if not 0 <= value < 2**31:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number in [0, {2**31})")
    return value
