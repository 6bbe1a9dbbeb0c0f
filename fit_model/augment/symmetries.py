"""The eight symmetries of the square, on images that lie in groups.

    image       [[a b c]   columns reversed [[c b a]   transposed [[a d]
                 [d e f]]                    [f e d]]              [b e]
                                                                   [c f]]

Groups change their places, and the pixels of each change theirs inside it. Where the group side
does not divide the image, a reversed image begins with the group that holds less; what it holds
lies in the upper left corner of its square again, so neighbours meet without a gap.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, product
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor

from fit_model.shapes import PerGroup


@dataclass(frozen=True, kw_only=True)
class Symmetry:
    """Rows and columns change places, if they do; then either may run backwards."""

    transposed: bool = False
    rows_reversed: bool = False
    columns_reversed: bool = False

    def extent(self, rows: Any, columns: Any) -> tuple[Any, Any]:
        """Rows and columns afterwards, of a grid, a square's valid part, or anything."""
        return (columns, rows) if self.transposed else (rows, columns)

    def places(
        self, row: PerGroup, column: PerGroup, *, rows: int, columns: int
    ) -> tuple[PerGroup, PerGroup]:
        """Where what lies at these places of a grid of rows x columns lies afterwards."""
        row, column = self.extent(row, column)
        rows, columns = self.extent(rows, columns)
        return (
            rows - 1 - row if self.rows_reversed else row,
            columns - 1 - column if self.columns_reversed else column,
        )

    def pictures(self, pictures: Shaped[Tensor, "g _ _ bands"]) -> Shaped[Tensor, "g _ _ bands"]:
        """Pixels as they lie afterwards."""
        if self.transposed:
            pictures = pictures.transpose(1, 2)
        backwards = [
            axis
            for axis, reverse in ((1, self.rows_reversed), (2, self.columns_reversed))
            if reverse
        ]
        return pictures.flip(backwards) if backwards else pictures


IDENTITY = Symmetry()
MIRRORED = Symmetry(columns_reversed=True)
UPSIDE_DOWN = Symmetry(rows_reversed=True)
HALF_TURN = Symmetry(rows_reversed=True, columns_reversed=True)
SYMMETRIES: dict[str, tuple[Symmetry, ...]] = {
    "none": (IDENTITY,),
    "mirror": (IDENTITY, MIRRORED),
    "flips": (IDENTITY, MIRRORED, UPSIDE_DOWN, HALF_TURN),
    "turns": (
        IDENTITY,
        Symmetry(transposed=True, rows_reversed=True),
        HALF_TURN,
        Symmetry(transposed=True, columns_reversed=True),
    ),
    "all": tuple(
        Symmetry(transposed=first, rows_reversed=second, columns_reversed=third)
        for first, second, third in product((False, True), repeat=3)
    ),
}
"""Each a group: whatever is done after one of them is another one."""

SIGNED = {torch.uint16: torch.int16, torch.uint32: torch.int32}
"""What takes the place of those that PyTorch cannot reverse."""


@dataclass(frozen=True, kw_only=True)
class Turn:
    """What is done to the valid part of a square, of so many px from its upper left corner."""

    symmetry: Symmetry
    height_px: int
    width_px: int


def turned(
    squares: Shaped[Tensor, "g side side bands"], turns: Sequence[Turn | None]
) -> Shaped[Tensor, "g side side bands"]:
    """Each square after its turn, None for none; what was not valid becomes 0.

    Neighbours that turn alike do it in one operation.
    """
    if not any(turns):
        return squares
    pixels = squares.view(SIGNED.get(squares.dtype, squares.dtype))
    made, first = torch.zeros_like(pixels), 0
    for turn, alike in groupby(turns):
        run = slice(first, first := first + len(list(alike)))
        if turn is None:
            made[run] = pixels[run]
        else:
            valid = turn.symmetry.pictures(pixels[run, : turn.height_px, : turn.width_px])
            made[run, : valid.shape[1], : valid.shape[2]] = valid
    return made.view(squares.dtype)
