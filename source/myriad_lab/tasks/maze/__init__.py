"""Mazes for point robots and ants; importing this package registers them."""

from __future__ import annotations

from myriad_lab.tasks.maze.ant_maze import register_ant_mazes
from myriad_lab.tasks.maze.point_maze import register_point_mazes

register_point_mazes()
register_ant_mazes()
