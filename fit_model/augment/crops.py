"""A rectangle of whole groups, anywhere in the grid of an image that something is stored of."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Grid = NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Crop:
    """Lengths and places in groups."""

    top: int
    left: int
    rows: int
    columns: int


def crop_of(stored: Grid, *, rows: int, columns: int, chance: float, least: int, unit: str) -> Crop:
    """The rectangle that `chance`, from 0 to 1, picks among all that hold a stored group.

    Each is as likely. One that holds too little for the workers that share it gives way to the next
    one; so the choice depends on their number only where it must.

    Args:
        stored: true where the grid has a stored group.
        rows: of the rectangle; no more than the grid has.
        columns: likewise.
        chance: at least 0, less than 1.
        least: how much it must hold.
        unit: of what, a name of COUNTS.

    Raises:
        ValueError: no rectangle of the grid holds so much.
    """
    counts = COUNTS[unit](stored, rows, columns)
    found = np.flatnonzero(counts)
    picked = int(chance * len(found))
    enough = np.flatnonzero(np.roll(counts.flat[found], -picked) >= least)
    if not len(enough):
        raise ValueError(
            f"{rows} x {columns} groups of a grid of {stored.shape[0]} x {stored.shape[1]} nowhere "
            f"hold {least} {unit} with something stored, one a worker: take fewer parallel.groups, "
            "a larger augment.crop_groups, or no quarter turns"
        )
    top, left = divmod(int(found[(picked + enough[0]) % len(found)]), counts.shape[1])
    return Crop(top=top, left=left, rows=rows, columns=columns)


def sums(grid: Grid, rows: int, columns: int) -> Grid:
    """The sum over every rectangle of that size, by its upper left corner."""
    total = np.pad(grid.astype(np.int64), ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    low, high = total[:-rows], total[rows:]
    return high[:, columns:] - high[:, :-columns] - low[:, columns:] + low[:, :-columns]


def _occupied_rows(stored: Grid, rows: int, columns: int) -> Grid:
    return sums(sums(stored, 1, columns) > 0, rows, 1)


def _occupied_columns(stored: Grid, rows: int, columns: int) -> Grid:
    return sums(sums(stored, rows, 1) > 0, 1, columns)


COUNTS: dict[str, Callable[[Grid, int, int], Grid]] = {
    "groups": sums,
    "rows": _occupied_rows,
    "columns": _occupied_columns,
}
"""What workers divide an image into, counted in every rectangle."""
