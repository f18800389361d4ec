"""Locomotion of ant, humanoid and quadruped; importing this package registers the tasks."""

from __future__ import annotations

from myriad_lab.tasks.locomotion.ant import register_ant
from myriad_lab.tasks.locomotion.humanoid import register_humanoid
from myriad_lab.tasks.locomotion.velocity import register_velocity

register_ant()
register_humanoid()
register_velocity()
