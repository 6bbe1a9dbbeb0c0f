"""What says of a px whether it counts: a mask file beside the image, or the image's own alpha."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import numpy as np
import pyarrow as pa

from pipeline.config import BackgroundConfig, LimitsConfig
from pipeline.grid import Grid, Window
from pipeline.identity import identities_below
from pipeline.readers.open import open_image
from pipeline.readers.protocol import ImageReader, SourceError
from pipeline.readers.rasterio_reader import DRIVERS
from pipeline.storage import Location

READ_PX = 1 << 24
"""The most px of a mask in memory: it may be far finer than the level that is read."""


def mask_of(image_id: str, *, folder: str) -> str:
    """The mask of an image: the file of its name in `folder`, with any suffix of a raster.

    SourceError where there is none. Costs a request a suffix until it is found.
    """
    place = Location.of(folder)
    for suffix in DRIVERS:
        if (found := place.child(f"{image_id}{suffix}")).exists():
            return str(found)
    raise SourceError(f"no mask {place}/{image_id} with any of {', '.join(DRIVERS)}")


def with_masks(images: pa.Table, *, background: BackgroundConfig) -> pa.Table:
    """SOURCES whose tags tell the version of each image's mask, too; as they are without masks.

    Costs what listing the folder of masks does.
    """
    if background.masks is None:
        return images
    below = identities_below(Location.of(background.masks))
    rows = images.to_pylist()
    for row in rows:
        names = (f"{row['image_id']}{suffix}" for suffix in DRIVERS)
        mask = next((below[name] for name in names if name in below), None)
        if row["source_tag"] is not None:
            told = "none" if mask is None else f"{mask.source_bytes} {mask.source_tag}"
            row["source_tag"] += f" mask {told}"
    return pa.Table.from_pylist(rows, schema=images.schema)


def open_mask(
    image_id: str, *, background: BackgroundConfig, limits: LimitsConfig
) -> AbstractContextManager[ImageReader | None]:
    """The mask of an image, or None where none is asked for."""
    if background.masks is None:
        return nullcontext()
    return open_image(mask_of(image_id, folder=background.masks), bands=[1], limits=limits)


def leave_out_masked(
    groups: Iterable[int],
    *,
    image: ImageReader,
    mask: ImageReader | None,
    grid: Grid,
    background: BackgroundConfig,
) -> Iterator[int]:
    """Stage 3 of 5, before pixels are read: the groups that a mask keeps.

    Takes    groups of one image
    Gives    those whose window has some alpha, and enough of the mask, in the same order
    Runs as  a part of the store task; what is left out here is not decoded for its pixels
    Memory   READ_PX px of a mask, or one row of it; the alpha of one group
    Fails    SourceError that names the mask which cannot be read
    """
    tests: list[Callable[[Window], bool]] = []
    if "alpha" in background.leave_out:
        tests.append(partial(_has_alpha, image))
    if mask is not None:
        least = background.min_content_share
        tests.append(partial(_has_enough, mask, grid=grid, least=least))
    for group in groups:
        if all(test(grid.window(group)) for test in tests):
            yield group


def _has_alpha(image: ImageReader, window: Window) -> bool:
    try:
        alpha = image.alpha(window)
    except SourceError:
        return True  # its pixels cannot be read either, and that is told where they are
    return alpha is None or bool(alpha.any())


def _has_enough(mask: ImageReader, window: Window, *, grid: Grid, least: float) -> bool:
    try:
        share = kept_share(mask, window, grid=grid)
    except SourceError as error:
        raise SourceError(f"its mask: {error.cause}", window=window) from error
    return 0 < share >= least


def kept_share(mask: ImageReader, window: Window, *, grid: Grid) -> float:
    """Share of a window's px at which the mask is not 0.

    The mask spans the same picture with h rows for its H: row r is looked up in
    floor((r + 1/2) h / H), and so are columns.
    """
    header = mask.header
    top, down = _looked_up(window.top_px, window.height_px, grid.height_px, header.height_px)
    left, across = _looked_up(window.left_px, window.width_px, grid.width_px, header.width_px)
    step = max(1, READ_PX // len(across))
    kept = 0
    for start in range(0, len(down), step):
        times = down[start : start + step]
        part = Window(top_px=top + start, left_px=left, height_px=len(times), width_px=len(across))
        kept += int(times @ ((mask.read(part)[..., 0] != 0) @ across))
    return kept / (window.height_px * window.width_px)


def _looked_up(start: int, count: int, length: int, mask_length: int) -> tuple[int, np.ndarray]:
    """The first place of the mask that is looked up, and how often this and the next ones are."""
    places = (2 * np.arange(start, start + count) + 1) * mask_length // (2 * length)
    return int(places[0]), np.bincount(places - places[0])
