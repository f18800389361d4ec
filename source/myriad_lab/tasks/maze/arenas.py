"""The maps of the maze tasks, at the size of the ant: 40 m x 24 m, start near the middle.

The drawings were made once by random generators (depth-first maze; elliptic chambers joined by curved passages), then
frozen here, so that a map never changes under a portfolio. Point robots use them through ``Arena.scaled``.
"""

from __future__ import annotations

from collections.abc import Callable

from myriad_lab.envs.arena import Arena, Box, HeightField
from myriad_lab.errors import ConfigurationError, nearest

EXTENT = (-20.0, 20.0, -12.0, 12.0)
"""x_min, x_max, y_min, y_max of every map [m]."""
WALL_HEIGHT = 1.5
"""Height of every wall [m]: taller than an ant can climb."""
WALL_THICKNESS = 0.5
"""Thickness of the walls of the maze and of the border [m]."""

_MAZE_PITCH = 4.0
_MAZE = """
+---+---+---+---+---+---+---+---+---+---+
|       |   |           |               |
+   +---+   +   +---+---+---+   +   +---+
|       |           |       |   |       |
+   +   +   +---+   +---+   +---+---+   +
|   |           |   |                   |
+---+   +---+   +---+---+   +---+---+   +
|           |               |           |
+---+   +---+---+---+   +---+---+---+---+
|       |               |           |   |
+---+   +   +---+   +---+---+   +   +   +
|       |       |               |       |
+---+---+---+---+---+---+---+---+---+---+
"""

_CAVE_PITCH = 1.0
_CAVE = """
########################################
###################....###......########
##################..............########
#######.....#####....................###
######.......####....................###
######.......#####...................###
#######......######....#######.......###
#######....########....######........###
######.....########....####.........####
#####.....########.....###.......#######
##........#######......###.......#######
#........########......###........######
#.......#########......####........#####
#.......########.......#######.......###
##.....########........########.......##
###....#######..........######........##
###................#....#######.......##
##................##....########.....###
##...............###.....###############
##..............####......##############
###....############.......##############
###################.......##############
####################.....###############
########################################
"""


def border(extent: tuple[float, float, float, float] = EXTENT) -> tuple[Box, ...]:
    """Return four walls that stand just outside the extent."""
    x_min, x_max, y_min, y_max = extent
    x, y, half = (x_min + x_max) / 2, (y_min + y_max) / 2, WALL_THICKNESS / 2
    long, wide = (x_max - x_min) / 2 + 2 * half, (y_max - y_min) / 2
    return (
        Box((x, y_min - half), (long, half), WALL_HEIGHT),
        Box((x, y_max + half), (long, half), WALL_HEIGHT),
        Box((x_min - half, y), (half, wide), WALL_HEIGHT),
        Box((x_max + half, y), (half, wide), WALL_HEIGHT),
    )


def empty() -> Arena:
    """Return open ground inside a border."""
    return Arena("empty", EXTENT, border(), start=(0.0, 0.0))


def maze() -> Arena:
    """Return a perfect maze of 10 x 6 cells of 4 m: corridors 3.5 m wide, 18 dead ends, start near the middle."""
    return Arena("maze", EXTENT, border() + _walls(_MAZE, _MAZE_PITCH), start=(-2.0, -2.0))


def cave() -> Arena:
    """Return irregular chambers joined by winding passages at least 2.4 m wide, start in the middle chamber."""
    return Arena("cave", EXTENT, border() + _blocks(_CAVE, _CAVE_PITCH), start=(0.0, 0.0))


def pyramid() -> Arena:
    """Return a pyramid 4 m high with slopes of 22 degrees in the middle of flat ground, start at its western foot."""
    spacing, height, half_base = 0.5, 4.0, 10.0
    x_min, x_max, y_min, y_max = EXTENT
    columns, rows = round((x_max - x_min) / spacing) + 1, round((y_max - y_min) / spacing) + 1

    def ground(row: int, column: int) -> float:
        from_top = max(abs(x_min + column * spacing), abs(y_min + row * spacing))
        return max(0.0, height * (1.0 - from_top / half_base))

    heights = tuple(tuple(ground(row, column) for column in range(columns)) for row in range(rows))
    return Arena("pyramid", EXTENT, border(), HeightField(heights), start=(-14.0, 0.0))


_ARENAS: dict[str, Callable[[], Arena]] = {"empty": empty, "maze": maze, "cave": cave, "pyramid": pyramid}


def get_arena(name: str) -> Arena:
    """Return the map of that name at the size of the ant.

    Raises:
        ConfigurationError: No such map.
    """
    if name not in _ARENAS:
        raise ConfigurationError(f"Unknown arena {name!r}. {nearest(name, _ARENAS)}")
    return _ARENAS[name]()


def _lines(drawing: str) -> list[str]:
    """Return the lines of a drawing from the south to the north."""
    return drawing.strip("\n").split("\n")[::-1]


def _walls(drawing: str, pitch: float) -> tuple[Box, ...]:
    """Return the inner walls of a maze drawn with ``+---+`` and ``|``; straight neighbours become one box."""
    lines = _lines(drawing)
    rows, columns = len(lines) // 2, len(lines[0]) // 4
    x_min, y_min = EXTENT[0], EXTENT[2]
    horizontal = [[lines[2 * row][4 * column + 2] == "-" for column in range(columns)] for row in range(1, rows)]
    vertical = [[lines[2 * row + 1][4 * column] == "|" for row in range(rows)] for column in range(1, columns)]
    half = WALL_THICKNESS / 2
    boxes = []
    for row, line in enumerate(horizontal, start=1):
        for begin, end in _runs(line):
            middle, length = (begin + end) / 2 * pitch, (end - begin) / 2 * pitch + half
            boxes.append(Box((x_min + middle, y_min + row * pitch), (length, half), WALL_HEIGHT))
    for column, line in enumerate(vertical, start=1):
        for begin, end in _runs(line):
            middle, length = (begin + end) / 2 * pitch, (end - begin) / 2 * pitch + half
            boxes.append(Box((x_min + column * pitch, y_min + middle), (half, length), WALL_HEIGHT))
    return tuple(boxes)


def _blocks(drawing: str, pitch: float) -> tuple[Box, ...]:
    """Return the ``#`` cells of a drawing as few boxes: rows of cells, grown to the north while they stay full."""
    solid = [[mark == "#" for mark in line] for line in _lines(drawing)]
    x_min, y_min = EXTENT[0], EXTENT[2]
    boxes = []
    for row in range(len(solid)):
        for begin, end in _runs(solid[row]):
            top = row + 1
            while top < len(solid) and all(solid[top][begin:end]):
                solid[top][begin:end] = [False] * (end - begin)
                top += 1
            center = (x_min + (begin + end) / 2 * pitch, y_min + (row + top) / 2 * pitch)
            boxes.append(Box(center, ((end - begin) / 2 * pitch, (top - row) / 2 * pitch), WALL_HEIGHT))
    return tuple(boxes)


def _runs(flags: list[bool]) -> list[tuple[int, int]]:
    """Return begin and end of each run of true values."""
    edges = [False, *flags, False]
    changes = [index for index in range(len(edges) - 1) if edges[index] != edges[index + 1]]
    return list(zip(changes[::2], changes[1::2], strict=True))
