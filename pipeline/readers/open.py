"""Choose the reader by the file's suffix, and open one image wherever it lies."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import PurePosixPath
from typing import Any, Self

from pipeline.config import LimitsConfig
from pipeline.readers.copies import LocalCopies
from pipeline.readers.openslide_reader import SUFFIXES as SLIDES
from pipeline.readers.openslide_reader import OpenSlideReader
from pipeline.readers.protocol import ImageReader, SourceError, check_expansion, check_header
from pipeline.readers.rasterio_reader import DRIVERS, RasterioReader
from pipeline.storage import Location

SUFFIXES = (*DRIVERS, *SLIDES)
"""Only these are opened: what a file claims to be inside never chooses the decoder."""


def suffix_of(uri: str) -> str:
    """The last suffix in lower case, dot included."""
    return PurePosixPath(uri).suffix.lower()


def is_copied(uri: str) -> bool:
    """Whether it is a slide afar: openslide reads local files only."""
    return suffix_of(uri) in SLIDES and not Location.of(uri).is_local


def is_sequential(uri: str) -> bool:
    """Whether a row is decoded only after all rows above it."""
    return DRIVERS.get(suffix_of(uri)) in ("PNG", "JPEG")


@contextmanager
def open_image(
    uri: str,
    *,
    level: int = 0,
    bands: list[int] | None = None,
    limits: LimitsConfig | None = None,
    copies: LocalCopies | None = None,
) -> Iterator[ImageReader]:
    """One image at one level, its header checked; SourceError says why it cannot be had.

    A remote slide's local copy ends with the block, or with `copies` where they are given.
    """
    limits = limits or LimitsConfig()
    suffix = suffix_of(uri)
    place = Location.of(uri)
    if place.is_local and os.path.exists(place.path) and not os.path.isfile(place.path):
        raise SourceError("is no regular file")  # a pipe would be waited for without end
    if suffix in DRIVERS:
        with RasterioReader(place, suffix=suffix, level=level, bands=bands) as raster:
            check_header(raster.header, limits=limits)
            check_expansion(raster.header, place=place, limits=limits)
            yield raster
    elif suffix in SLIDES:
        with (
            LocalCopies() if copies is None else nullcontext(copies) as kept,
            OpenSlideReader(kept.path_of(place, limits=limits), level=level, bands=bands) as slide,
        ):
            check_header(slide.header, limits=limits)
            yield slide
    else:
        raise SourceError(f"suffix {suffix!r} is none of {', '.join(SUFFIXES)}")


class LastImage:
    """Keeps the last image open, so that pieces of it share one download and what was decoded."""

    def __init__(self) -> None:
        self._copies = LocalCopies()
        self._held = ExitStack()
        self._asked: Any = None
        self._image: ImageReader | None = None

    def open(
        self, uri: str, *, level: int, bands: list[int] | None, limits: LimitsConfig
    ) -> ImageReader:
        """The image, until another one is opened or the block ends."""
        asked = (uri, level, bands, limits)
        if self._image is None or asked != self._asked:
            self.close()
            self._image = self._held.enter_context(
                open_image(uri, level=level, bands=bands, limits=limits, copies=self._copies)
            )
            self._asked = asked
        return self._image

    def close(self) -> None:
        """Let the image go; the copy of a slide stays until another one is copied."""
        self._image = None
        self._held.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()
        self._copies.close()
