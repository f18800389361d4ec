"""Settings of backend ``mujoco_warp``; importing it needs no simulator."""

from __future__ import annotations

from dataclasses import dataclass

from myriad_lab.errors import ConfigurationError


@dataclass
class CapacityCfg:
    """Room for contacts on backend ``mujoco_warp``, allocated once for all envs; the other backends have no such limit.

    What does not fit is dropped, so it must never be too small: the simulator says which of the numbers to raise.
    ``None`` is what the geometry of robot and arena can come to, see ``capacity_of``.
    """

    nconmax: int | None = None
    """Contacts per env on average; all envs share the room of ``num_envs * nconmax``."""
    njmax: int | None = None
    """Rows of constraints in any one env: four for each contact with friction, one for each joint at its limit."""
    nccdmax: int | None = None
    """Pairs of geoms per env that go through the general convex collision, as all pairs with a height field do."""

    def validate(self) -> None:
        """Raise ``ConfigurationError`` where a number is not positive."""
        for name, value in vars(self).items():
            if value is not None and value < 1:
                raise ConfigurationError(f"capacity.{name}={value}; expected at least 1, or null for the default")
