"""Myriad Lab: populations of robot policies, from pre-training to the robot."""

from __future__ import annotations

__all__ = ["__version__"]


def __getattr__(name: str) -> str:
    """Read the version from the installed distribution on demand, so that the import stays cheap."""
    if name == "__version__":
        from importlib.metadata import version

        return version("myriad-lab")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
