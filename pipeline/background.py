"""Which groups hold nothing: no data, or the bare glass of a slide."""

from collections.abc import Iterable, Iterator
from typing import TypeGuard

import numpy as np

from pipeline.config import BackgroundConfig
from pipeline.extract import Square

CELL_PX = 8


def is_missing(pixels: np.ndarray, *, nodata: float | None) -> np.ndarray:
    """True where a value is the declared nodata, NaN or infinite; shape of `pixels`."""
    if np.issubdtype(pixels.dtype, np.floating):
        gone = ~np.isfinite(pixels)
        return gone if nodata is None or np.isnan(nodata) else gone | (pixels == nodata)
    if not is_possible(nodata, dtype=pixels.dtype):
        return np.zeros(pixels.shape, bool)
    return pixels == pixels.dtype.type(int(nodata))


def is_possible(nodata: float | None, *, dtype: np.dtype) -> TypeGuard[float]:
    """Whether a pixel of an integer dtype can have this value at all."""
    if nodata is None:
        return False
    limits = np.iinfo(dtype)
    return nodata % 1 == 0 and limits.min <= nodata <= limits.max


def leave_out_background(
    squares: Iterable[Square], *, background: BackgroundConfig, nodata: float | None
) -> Iterator[Square]:
    """Stage 4 of 5: groups -> the groups with something in them.

    Takes    what extract_groups gives
    Gives    those that hold content, in the same order
    Runs as  a part of the store task, on what was just read
    Memory   one byte a value of one group, and for glass two 8-byte values a column and 8 rows
    Fails    never; glass is only asked of RGB uint8, which the flow has checked
    Source   nodata: every value of the valid extent is missing. glass: the saturation threshold of
             CLAM (Lu et al. 2021, doi:10.1038/s41551-020-00682-w; 8 of 255), whose 7 px median blur
             is a mean over 8 px cells here, so that a group is judged on its own pixels alone
    """
    for square in squares:
        if _has_content(square.valid, background=background, nodata=nodata):
            yield square


def _has_content(tile: np.ndarray, *, background: BackgroundConfig, nodata: float | None) -> bool:
    if "nodata" in background.leave_out and _is_all_missing(tile, nodata=nodata):
        return False
    if "glass" in background.leave_out:
        return tissue_share(tile, background=background) >= background.min_content_share
    return True


def _is_all_missing(tile: np.ndarray, *, nodata: float | None) -> bool:
    if np.issubdtype(tile.dtype, np.integer) and not is_possible(nodata, dtype=tile.dtype):
        return False
    if not is_missing(tile[:1, :1], nodata=nodata).all():
        return False  # nearly every group with content ends here
    return bool(is_missing(tile, nodata=nodata).all())


def tissue_share(tile: np.ndarray, *, background: BackgroundConfig) -> float:
    """Share of 8 px cells that are coloured or dark.

    saturation = (max - min) / max     value = max / 255     of a cell's mean R, G, B
    tissue where saturation > glass_saturation or value < glass_brightness
    """
    height, width = (max(1, -(-length // CELL_PX)) for length in tile.shape[:2])
    rows = np.arange(height) * CELL_PX
    columns = np.arange(width) * CELL_PX
    sums = np.add.reduceat(np.add.reduceat(tile, rows, 0, np.int64), columns, 1, np.int64)
    areas = np.outer(np.diff([*rows, tile.shape[0]]), np.diff([*columns, tile.shape[1]]))
    cells = sums / areas[..., None]
    high, low = cells.max(-1), cells.min(-1)
    saturation = (high - low) / np.maximum(high, 1e-9)
    tissue = (saturation > background.glass_saturation) | (high / 255 < background.glass_brightness)
    return float((tissue * areas).sum() / areas.sum())
