"""Cover an image with square groups: pure geometry over integers.

    rows    = ceil(height / side)          columns = ceil(width / side)
    group i = (i // columns, i % columns)  row-major, from the top left corner
    valid extent of group (r, c) = min(side, height - r side) x min(side, width - c side)

The grid starts at the image's origin, so wherever the source's tile side divides the group side,
every window cuts the source between its tiles. Elsewhere the tiles that groups share are kept until
the last of them has been read.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Window:
    """A rectangle inside an image, in px of the level being read."""

    top_px: int
    left_px: int
    height_px: int
    width_px: int

    def __str__(self) -> str:
        bottom, right = self.top_px + self.height_px, self.left_px + self.width_px
        return f"rows {self.top_px}-{bottom}, columns {self.left_px}-{right}"


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The groups of one image; only the last row and column may stick out of it."""

    height_px: int
    width_px: int
    side_px: int

    def __post_init__(self) -> None:
        if min(self.height_px, self.width_px, self.side_px) < 1:
            raise ValueError(
                f"a grid over {self.height_px} x {self.width_px} px with side {self.side_px} px "
                f"has no group: all three must be positive"
            )

    @property
    def rows(self) -> int:
        """Groups from top to bottom."""
        return -(-self.height_px // self.side_px)

    @property
    def columns(self) -> int:
        """Groups from left to right."""
        return -(-self.width_px // self.side_px)

    @property
    def num_groups(self) -> int:
        """Groups that cover the image."""
        return self.rows * self.columns

    def place(self, group: int) -> tuple[int, int]:
        """Row and column of a group."""
        return divmod(group, self.columns)

    def window(self, group: int) -> Window:
        """The valid extent of a group: what of its square lies inside the image."""
        return self.span(group, 1)

    def span(self, first: int, count: int) -> Window:
        """The valid extent of `count` neighbours in one row, from group `first` to the right."""
        row, column = self.place(first)
        if not 0 <= row < self.rows or column + count > self.columns:
            raise IndexError(f"{count} group(s) from {first} leave {self} or their row")
        top, left = row * self.side_px, column * self.side_px
        return Window(
            top_px=top,
            left_px=left,
            height_px=min(self.side_px, self.height_px - top),
            width_px=min(count * self.side_px, self.width_px - left),
        )

    def runs(self, first: int, count: int, *, most: int) -> Iterator[tuple[int, int]]:
        """Split groups first .. first + count into (start, length) runs that stay in one row."""
        start, end = first, first + count
        while start < end:
            row_end = (start // self.columns + 1) * self.columns
            length = min(most, row_end - start, end - start)
            yield start, length
            start += length


def kept_tiles(grid: Grid, *, tile_height_px: int, tile_width_px: int) -> int:
    """How many tiles to keep, the last used, so that groups read in order decode each one once.

    A tile is used again by the next group of the row where groups and tiles do not end together
    across, and by the next row of groups where they do not end together down: then a whole row of
    groups lies in between.
    """
    columns = -(-grid.width_px // tile_width_px)
    down = _touched(grid.side_px, tile_height_px)
    across = min(columns, _touched(grid.side_px, tile_width_px))
    if grid.side_px % tile_height_px == 0 or grid.rows == 1:
        return down * across
    return down * (columns + 2 * across)


def _touched(side_px: int, tile_px: int) -> int:
    """The most tiles that a group touches in one direction."""
    return side_px // tile_px if side_px % tile_px == 0 else (side_px - 2) // tile_px + 2


def cut(
    grid: Grid, *, most: int, tile_height_px: int, tile_width_px: int
) -> Iterator[tuple[int, int]]:
    """Split an image into (first, count) pieces of about `most` groups, for several workers.

    They end where a row of groups and a row of tiles end together; such a piece may hold half again
    as many. Where that is not enough they end with a row of groups, and the tiles across that
    border, at most one row of them a border, are decoded for both pieces. Rows of more groups than
    `most` are split themselves.
    """
    side = grid.side_px
    together = math.lcm(side, tile_height_px) // side * grid.columns
    if together <= most:
        count = most // together * together
    elif together <= most * 3 // 2:
        count = together
    elif grid.columns <= most:
        count = most // grid.columns * grid.columns
    else:
        across = math.lcm(side, tile_width_px) // side
        for row in range(0, grid.num_groups, grid.columns):
            yield from grid.runs(row, grid.columns, most=most // across * across or most)
        return
    for first in range(0, grid.num_groups, count):
        yield first, min(count, grid.num_groups - first)
