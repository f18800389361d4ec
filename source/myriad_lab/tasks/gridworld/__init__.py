"""Gridworlds; importing this package registers them."""

from __future__ import annotations

from myriad_lab.tasks.gridworld.gridworld import register_gridworlds

register_gridworlds()
