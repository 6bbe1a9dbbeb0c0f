"""Choose the reader by the file's suffix, and open one image wherever it lies."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from pipeline.config import LimitsConfig
from pipeline.readers.openslide_reader import SUFFIXES as SLIDES
from pipeline.readers.openslide_reader import OpenSlideReader
from pipeline.readers.protocol import ImageReader, SourceError, check_header
from pipeline.readers.rasterio_reader import DRIVERS, RasterioReader
from pipeline.storage import Location

SUFFIXES = (*DRIVERS, *SLIDES)
"""Only these are opened: what a file claims to be inside never chooses the decoder."""


def suffix_of(uri: str) -> str:
    """The last suffix in lower case, dot included."""
    return PurePosixPath(uri).suffix.lower()


@contextmanager
def open_image(
    uri: str, *, level: int = 0, bands: list[int] | None = None, limits: LimitsConfig | None = None
) -> Iterator[ImageReader]:
    """One image at one level, its header checked; SourceError says why it cannot be had."""
    limits = limits or LimitsConfig()
    suffix = suffix_of(uri)
    place = Location.of(uri)
    if suffix in DRIVERS:
        opener = None if place.is_local else place.filesystem
        with RasterioReader(
            place.path, suffix=suffix, level=level, bands=bands, opener=opener
        ) as raster:
            check_header(raster.header, limits=limits)
            yield raster
    elif suffix in SLIDES:
        with (
            _on_disk(place, limits=limits) as path,
            OpenSlideReader(path, level=level, bands=bands) as slide,
        ):
            check_header(slide.header, limits=limits)
            yield slide
    else:
        raise SourceError(f"suffix {suffix!r} is none of {', '.join(SUFFIXES)}")


@contextmanager
def _on_disk(place: Location, *, limits: LimitsConfig) -> Iterator[str]:
    """A path openslide can open: the file itself, or a copy that lasts as long as it is open."""
    if place.is_local:
        yield place.path
        return
    if suffix_of(place.path) in (".mrxs", ".vms", ".vmu"):
        raise SourceError("a slide of several files can only be read from a local folder")
    size = place.size()
    if size > limits.max_download_gb * 1e9:
        raise SourceError(
            f"is {size / 1e9:.1f} GB, beyond limits.max_download_gb {limits.max_download_gb:g}"
        )
    with tempfile.TemporaryDirectory(prefix="farreach-") as folder:
        copy = Path(folder) / f"slide{suffix_of(place.path)}"
        with place.reader() as source, copy.open("wb") as target:
            shutil.copyfileobj(source, target, length=1 << 22)
        yield str(copy)
