"""Read pixels: the groups of one image in, their squares of pixels out, one at a time."""

from collections.abc import Iterable, Iterator, MutableMapping
from dataclasses import dataclass

import numpy as np
from blake3 import blake3

from pipeline.grid import Grid, Window
from pipeline.readers.faults import told_fault
from pipeline.readers.protocol import ImageReader, SourceError, StreamError
from pipeline.schema import flat_bytes


@dataclass(frozen=True, slots=True)
class Square:
    """One group as it is stored."""

    group: int
    window: Window
    """Its valid extent."""
    pixels: np.ndarray
    """[side, side, bands] in the source's dtype, 0 beyond the valid extent."""

    @property
    def valid(self) -> np.ndarray:
        """[height, width, bands]: the pixels that lie inside the image."""
        return self.pixels[: self.window.height_px, : self.window.width_px]

    def hash(self) -> bytes:
        """group_hash of it."""
        window = self.window
        return group_hash(self.group, window.height_px, window.width_px, self.pixels)


def extract_groups(
    groups: Iterable[int],
    *,
    image: ImageReader,
    grid: Grid,
    bad_groups: MutableMapping[int, SourceError] | None = None,
) -> Iterator[Square]:
    """Stage 3 of 5: groups -> their pixels.

    Takes    groups of one image
    Gives    each of them, in the same order; the next one takes the memory of the one before
    Runs as  a part of the store task: a source is opened once a piece, because opening a
             pyramidal TIFF costs far more than one read; a group is one read into its square, and
             all that has to be done with it is done while it lies in the core's own cache
    Memory   one group: side^2 * bands * bytes a value
    Fails    SourceError with the window that could not be decoded; with `bad_groups` such a group
             that cannot be read a second time either goes there and the rest goes on, unless the
             machine or the store is to blame, or the image is a single stream (PNG, JPEG)
    """
    side, header = grid.side_px, image.header
    pixels = np.empty((side, side, header.bands), header.dtype)
    for group in groups:
        window = grid.window(group)
        height, width = window.height_px, window.width_px
        valid = pixels[:height, :width]
        try:
            image.read(window, out=valid)
        except SourceError as error:
            if bad_groups is None or isinstance(error, StreamError) or told_fault(error):
                raise
            if still := _failure(image, window, out=valid):
                bad_groups[group] = still
                continue
        pixels[height:] = 0
        pixels[:height, width:] = 0
        yield Square(group, window, pixels)


def _failure(image: ImageReader, window: Window, *, out: np.ndarray) -> SourceError | None:
    """Of the source; one of the machine or the store is raised."""
    try:
        image.read(window, out=out)
    except SourceError as error:
        if told_fault(error):
            raise
        return error
    return None


def group_hash(group: int, valid_height_px: int, valid_width_px: int, square: np.ndarray) -> bytes:
    """BLAKE3 over a group's place, valid extent and pixels: what an image's hash is made of."""
    digest = blake3(np.array([group, valid_height_px, valid_width_px], "<i8").tobytes())
    digest.update(flat_bytes(square))
    return digest.digest()
