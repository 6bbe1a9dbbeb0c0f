"""Images of a dataset made small, with their groups: what is stored, left out, and damaged."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from pipeline.dataset import Dataset
from pipeline.grid import Grid
from pipeline.records import ImageRecord
from pipeline.schema import PixelFormat
from pipeline.verify import READ_BYTES

GREY, DARK_GREY, RED = (205, 205, 205), (160, 160, 160), (220, 40, 40)
STRIPE_PX = 4
DEVIATIONS = 2.5
"""From black to white: so many standard deviations on both sides of a band's mean."""
LEAST_CELL_PX = 5
"""Lines between groups are drawn where they lie at least so far apart."""
INCHES = 2.6


@dataclass(frozen=True, kw_only=True)
class Thumbnail:
    """Every `step`-th pixel of an image."""

    pixels: NDArray
    """[height, width, bands] in the dtype of the image; 0 where nothing is stored."""
    stored: NDArray[np.bool_]
    """[height, width]"""
    step: int


def thumbnail(dataset: Dataset, record: ImageRecord, *, side_px: int) -> Thumbnail:
    """An image no larger than side_px, read a few groups at a time.

    Groups that hold none of its pixels are not read. Memory: the thumbnail and READ_BYTES.
    """
    step = max(1, -(-max(record.height_px, record.width_px) // side_px))
    height, width = -(-record.height_px // step), -(-record.width_px // step)
    pixels = np.zeros((height, width, record.bands), record.dtype)
    stored = np.zeros((height, width), bool)
    grid = _grid(dataset, record)
    for run in _runs(record, grid=grid, step=step):
        found = dataset.read(record, groups=run, check=False)
        for group, square in zip(found.group.tolist(), found.pixels, strict=True):
            window = grid.window(group)
            down, right = -window.top_px % step, -window.left_px % step
            part = square[down : window.height_px : step, right : window.width_px : step]
            top, left = (window.top_px + down) // step, (window.left_px + right) // step
            pixels[top : top + part.shape[0], left : left + part.shape[1]] = part
            stored[top : top + part.shape[0], left : left + part.shape[1]] = True
    return Thumbnail(pixels=pixels, stored=stored, step=step)


def _grid(dataset: Dataset, record: ImageRecord) -> Grid:
    side = dataset.info.group_side_px
    return Grid(height_px=record.height_px, width_px=record.width_px, side_px=side)


def _runs(record: ImageRecord, *, grid: Grid, step: int) -> Iterator[slice]:
    """Neighbours among the stored groups of which at least one pixel is wanted."""
    item = np.dtype(record.dtype).itemsize * record.bands
    most = max(1, READ_BYTES // (grid.side_px * grid.side_px * item))
    start = end = 0
    for place, group in enumerate(record.groups):
        window = grid.window(group)
        if -window.top_px % step >= window.height_px or -window.left_px % step >= window.width_px:
            continue
        if place > end or place - start >= most:
            if end > start:
                yield slice(start, end)
            start = place
        end = place + 1
    if end > start:
        yield slice(start, end)


def drawn(
    small: Thumbnail, kept: PixelFormat, *, grid: Grid, bad_groups: list[int]
) -> NDArray[np.uint8]:
    """[height, width, 3]: the pixels, grey stripes for what was left out, red for what is bad."""
    picture = _stretched(small.pixels, kept)
    rows, columns = np.ogrid[: small.stored.shape[0], : small.stored.shape[1]]
    stripes = ((rows + columns) // STRIPE_PX % 2 == 0)[..., None]
    picture = np.where(small.stored[..., None], picture, np.where(stripes, GREY, DARK_GREY))
    if bad_groups:
        cells = (rows * small.step // grid.side_px) * grid.columns
        cells = cells + columns * small.step // grid.side_px
        is_bad = np.isin(cells, bad_groups)[..., None]
        picture = np.where(is_bad, np.where(stripes, RED, GREY), picture)
    return picture.astype(np.uint8)


def _stretched(pixels: NDArray, kept: PixelFormat) -> NDArray[np.float64]:
    bands = [0, 1, 2] if pixels.shape[2] >= 3 else [0, 0, 0]
    values = pixels[..., bands].astype(np.float64)
    if pixels.dtype != np.uint8:
        mean = np.array(kept.band_mean)[bands]
        reach = DEVIATIONS * np.maximum(np.array(kept.band_std)[bands], 1e-12)
        values = (values - mean + reach) / (2 * reach) * 255
    return np.nan_to_num(values, nan=0.0, posinf=255.0, neginf=0.0).clip(0, 255)


def sheet_of(
    dataset: Dataset,
    records: list[ImageRecord],
    *,
    most: int,
    side_px: int,
    outlined: Mapping[str, Sequence[int]] | None = None,
) -> Figure:
    """At most `most` of the images, from the first to the last, each with its grid of groups.

    Some groups of some images, by their ids, are outlined in red.
    """
    count = min(most, len(records))
    chosen = [
        records[place] for place in np.linspace(0, len(records) - 1, count).round().astype(int)
    ]
    bad: dict[str, list[int]] = {}
    for row in dataset.quarantine():
        if row["group"] is not None:
            bad.setdefault(row["image_id"], []).append(row["group"])
    formats = {(kept.bands, kept.dtype): kept for kept in dataset.info.formats}
    across = min(count, max(1, round((1.4 * count) ** 0.5)))
    down = -(-count // across)
    figure = Figure(figsize=(INCHES * across, (INCHES + 0.3) * down), layout="constrained")
    places: Any = figure.subplots(down, across, squeeze=False)
    for axes in places.flat:
        axes.axis("off")
    for axes, record in zip(places.flat, chosen, strict=False):
        small, grid = thumbnail(dataset, record, side_px=side_px), _grid(dataset, record)
        picture = drawn(
            small,
            formats[record.bands, record.dtype],
            grid=grid,
            bad_groups=bad.get(record.image_id, []),
        )
        _draw(axes, picture, record, grid=grid, step=small.step)
        _outline(axes, (outlined or {}).get(record.image_id, ()), grid=grid)
    return figure


def _outline(axes: Any, groups: Sequence[int], *, grid: Grid) -> None:
    for window in map(grid.window, groups):
        corner = (window.left_px, window.top_px)
        axes.add_patch(
            Rectangle(corner, window.width_px, window.height_px, fill=False, color="red", lw=1.5)
        )


def _draw(
    axes: Any, picture: NDArray[np.uint8], record: ImageRecord, *, grid: Grid, step: int
) -> None:
    height, width = picture.shape[0] * step, picture.shape[1] * step
    axes.imshow(picture, extent=(0, width, height, 0), interpolation="nearest")
    if grid.side_px / step >= LEAST_CELL_PX:
        line = {"colors": "white", "linewidth": 0.6, "alpha": 0.7}
        down = [row * grid.side_px for row in range(1, grid.rows)]
        right = [column * grid.side_px for column in range(1, grid.columns)]
        axes.hlines(down, 0, record.width_px, **line)
        axes.vlines(right, 0, record.height_px, **line)
    name = record.image_id if len(record.image_id) <= 30 else f"...{record.image_id[-27:]}"
    stored = f"{len(record.groups)} of {grid.num_groups} groups"
    axes.set_title(f"{name}\n{record.width_px} x {record.height_px} px, {stored}", fontsize=7)
