"""Whole pictures cut into groups, groups put together again, and images as a view shows them."""

from dataclasses import replace

import numpy as np
import torch
from hypothesis import strategies as st

from fit_model.augment.config import AugmentConfig
from fit_model.augment.views import View, draw_view
from fit_model.groups import GroupBatch
from fit_model.stored_pixels import StoredPixels

SIDE_PX = 5
DTYPES = (np.uint8, np.uint16, np.int16, np.float32)


def lengths(total_px: int, side_px: int = SIDE_PX) -> list[int]:
    """What each row, or column, of groups holds of an image of so many px."""
    return [min(side_px, total_px - start) for start in range(0, total_px, side_px)]


def cut(picture: np.ndarray, numbers: list[int], *, side_px: int = SIDE_PX) -> GroupBatch:
    """These groups of a picture as they are stored, with noise beyond the picture."""
    heights, widths = (lengths(total_px, side_px) for total_px in picture.shape[:2])
    noise = np.random.default_rng(0)
    squares, extents = [], []
    for number in numbers:
        row, column = divmod(number, len(widths))
        square = noise.integers(1, 99, (side_px, side_px, picture.shape[2])).astype(picture.dtype)
        part = picture[row * side_px :, column * side_px :][: heights[row], : widths[column]]
        square[: heights[row], : widths[column]] = part
        square.flags.writeable = False
        squares.append(square)
        extents.append((heights[row], widths[column]))
    number, extent = torch.tensor(numbers), torch.tensor(extents)
    return GroupBatch(
        pixels=StoredPixels(squares),
        image=torch.zeros_like(number),
        row=number // len(widths),
        column=number % len(widths),
        valid_height_px=extent[:, 0],
        valid_width_px=extent[:, 1],
        grid_rows=torch.tensor([len(heights)]),
        grid_columns=torch.tensor([len(widths)]),
        nodata=torch.tensor([float("nan")], dtype=torch.float64),
    )


def put_together(batch: GroupBatch, heights: list[int], widths: list[int]) -> np.ndarray:
    """The picture that an image's groups make; 0 where none is stored."""
    pixels = batch.pixels.to("cpu").numpy()
    picture = np.zeros((sum(heights), sum(widths), pixels.shape[3]), pixels.dtype)
    for group, square in enumerate(pixels):
        row, column = int(batch.row[group]), int(batch.column[group])
        height, width = int(batch.valid_height_px[group]), int(batch.valid_width_px[group])
        assert (height, width) == (heights[row], widths[column])
        top, left = sum(heights[:row]), sum(widths[:column])
        picture[top : top + height, left : left + width] = square[:height, :width]
    return picture


def only(picture: np.ndarray, numbers: list[int]) -> np.ndarray:
    """The picture with 0 where its groups are not among these."""
    columns = len(lengths(picture.shape[1]))
    shown = np.zeros_like(picture)
    for number in numbers:
        row, column = divmod(number, columns)
        place = np.s_[
            row * SIDE_PX : (row + 1) * SIDE_PX, column * SIDE_PX : (column + 1) * SIDE_PX
        ]
        shown[place] = picture[place]
    return shown


def seen(view: View, image: GroupBatch) -> GroupBatch:
    """The view of an image, of which just the groups are read that it needs."""
    read = view.stored.sort().values
    per_group = ("pixels", "image", "row", "column", "valid_height_px", "valid_width_px")
    return view.of(replace(image, **{name: getattr(image, name)[read] for name in per_group}))


def augmented(image: GroupBatch, config: AugmentConfig, *, seed: int) -> GroupBatch:
    """An image as a training sees it, its pixels as they are stored until they are needed."""
    view = draw_view(
        image.places.number.tolist(),
        rows=int(image.grid_rows),
        columns=int(image.grid_columns),
        bands=image.pixels.shape[3],
        config=config,
        seed=seed,
    )
    return seen(view, replace(image, pixels=StoredPixels(list(image.pixels.numpy()))))


@st.composite
def pictures(draw) -> tuple[np.ndarray, list[int]]:
    """A picture of any size, bands and dtype, and which of its groups are stored."""
    height, width = draw(st.integers(1, 22)), draw(st.integers(1, 22))
    bands, dtype = draw(st.integers(1, 4)), draw(st.sampled_from(DTYPES))
    random = np.random.default_rng(draw(st.integers(0, 99)))
    picture = random.integers(1, 120, (height, width, bands)).astype(dtype)
    groups = len(lengths(height)) * len(lengths(width))
    numbers = draw(st.sets(st.integers(0, groups - 1), min_size=1))
    return picture, sorted(numbers)
