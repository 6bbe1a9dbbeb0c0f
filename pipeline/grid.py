"""Cover an image with square groups: pure geometry over integers.

    rows    = ceil(height / side)          columns = ceil(width / side)
    group i = (i // columns, i % columns)  row-major, from the top left corner
    valid extent of group (r, c) = min(side, height - r side) x min(side, width - c side)

The grid starts at the image's origin, so wherever the source's tile side divides the group side,
every window cuts the source between its tiles and no tile is decoded twice.
"""

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
        """Split groups first .. first + count into (start, length) runs that stay in one row.

        A run is one read of the source; `most` bounds its memory.
        """
        start, end = first, first + count
        while start < end:
            row_end = (start // self.columns + 1) * self.columns
            length = min(most, row_end - start, end - start)
            yield start, length
            start += length


def groups_per_read(*, side_px: int, tile_px: int, most: int) -> int:
    """The largest run of groups, at most `most`, that ends where a source tile ends.

    With tiles wider than groups (or not dividing them) a run of any length would decode the tile
    under its right edge twice; where no run up to `most` fits, `most` stands.
    """
    for count in range(most, 0, -1):
        if count * side_px % tile_px == 0:
            return count
    return most
