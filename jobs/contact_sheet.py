"""Many small pictures on one sheet, so that people can look at them."""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

MOST_PICTURES = 100
ACROSS = 10
SIDE_PX = 64
"""Smaller pictures are enlarged to about this."""
LARGEST_PX = 256
"""Larger pictures are thinned out to at most this."""
GAP_PX = 4
PAPER = 127
"""Grey: pictures often end in black or white."""


def sheet_rows(labels: Sequence[str]) -> list[list[int]]:
    """Numbers of the pictures to show, a class after the other, at most ACROSS in a row."""
    classes = list(dict.fromkeys(labels))[:MOST_PICTURES]
    most = MOST_PICTURES // len(classes)
    rows = []
    for name in classes:
        shown = [number for number, label in enumerate(labels) if label == name][:most]
        rows += [shown[start : start + ACROSS] for start in range(0, len(shown), ACROSS)]
    return rows


def contact_sheet(
    rows: Iterable[Iterable[NDArray]], *, pixel_range: tuple[float, float]
) -> NDArray[np.uint8]:
    """Rows of pictures [height, width, bands] as one grey or RGB picture.

    Values are stretched from the pixel range to 0..255; of more than three bands the first three
    are shown, of two the first. Pictures are taken one by one, and none is kept at its full size.
    """

    def small(picture: NDArray) -> NDArray[np.uint8]:
        # thinned out before its values are stretched, which takes eight bytes each
        return _stretched(_sized(picture), pixel_range)

    # a loop's variable would hold a picture while the next one is read
    shown = [list(map(small, row)) for row in rows]
    pictures = [picture for row in shown for picture in row]
    height = max(picture.shape[0] for picture in pictures) + GAP_PX
    width = max(picture.shape[1] for picture in pictures) + GAP_PX
    across = max(len(row) for row in shown)
    shape = (len(shown) * height + GAP_PX, across * width + GAP_PX, pictures[0].shape[2])
    sheet = np.full(shape, PAPER, np.uint8)
    for line, row in enumerate(shown):
        for place, picture in enumerate(row):
            top, left = line * height + GAP_PX, place * width + GAP_PX
            sheet[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    return sheet


def _stretched(pixels: NDArray, pixel_range: tuple[float, float]) -> NDArray[np.uint8]:
    low, high = pixel_range
    bands = 3 if pixels.shape[2] >= 3 else 1
    shares = (pixels[:, :, :bands].astype(np.float64) - low) / (high - low)
    return np.round(shares.clip(0.0, 1.0) * 255).astype(np.uint8)


def _sized(picture: NDArray) -> NDArray:
    """Nearest neighbours: a pixel stays a pixel."""
    longest = max(picture.shape[:2])
    if longest > LARGEST_PX:
        step = -(-longest // LARGEST_PX)
        return picture[::step, ::step]
    times = max(1, round(SIDE_PX / longest))
    return picture.repeat(times, axis=0).repeat(times, axis=1)
