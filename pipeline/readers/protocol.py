"""What every reader offers: a header, and the pixels of a window."""

from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np

from pipeline.config import LimitsConfig
from pipeline.grid import Window
from pipeline.schema import DTYPES


class SourceError(Exception):
    """A source that cannot be read, with the cause and, when known, where in the image."""

    def __init__(self, cause: str, *, window: Window | None = None) -> None:
        super().__init__(cause)
        self.cause = " ".join(cause.split())[:500]
        self.window = window

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (self.cause, self.window))


def _rebuild(cause: str, window: Window | None) -> SourceError:
    return SourceError(cause, window=window)


class MachineError(OSError):
    """The machine or the store failed, not the source: the job ends instead of going on."""


@dataclass(frozen=True, kw_only=True)
class ImageHeader:
    """What is known before a pixel is read; lengths in px of the opened level."""

    width_px: int
    height_px: int
    bands: int
    dtype: str
    num_levels: int
    level: int = 0
    """The one opened; 0 is full resolution."""
    tile_height_px: int
    tile_width_px: int
    nodata: float | None = None
    mpp_x: float | None = None
    """Microns per px."""
    mpp_y: float | None = None
    crs: str | None = None
    """WKT."""
    transform: tuple[float, ...] | None = None
    """a b c d e f, from px of this level to the CRS."""


class ImageReader(Protocol):
    """One image at one level, open."""

    @property
    def header(self) -> ImageHeader:
        """What is known before a pixel is read."""
        ...

    def read(self, window: Window, *, out: np.ndarray | None = None) -> np.ndarray:
        """[height, width, bands] in the source's dtype; SourceError when it cannot be decoded.

        With `out`, of that shape and dtype, the pixels are written there: strides may be any.
        """
        ...

    def keep_tiles(self, num_bytes: int) -> None:
        """Keep so much of what was decoded, the last used: what is read again costs nothing."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


def check_level(level: int, *, num_levels: int) -> None:
    """A level that the file has."""
    if level >= num_levels:
        raise SourceError(f"level {level} does not exist: the file has {num_levels} level(s)")


def check_header(header: ImageHeader, *, limits: LimitsConfig) -> None:
    """Refuse what a header declares before memory is spent on it."""
    width, height, bands = header.width_px, header.height_px, header.bands
    if min(width, height, bands) < 1:
        raise SourceError(f"declares {width} x {height} px and {bands} band(s): nothing to read")
    if header.dtype not in DTYPES:
        raise SourceError(f"pixels of type {header.dtype}: only {', '.join(DTYPES)} can be stored")
    if max(width, height) > limits.max_side_px:
        raise SourceError(
            f"declares {width} x {height} px, beyond limits.max_side_px {limits.max_side_px}"
        )
    if width * height > limits.max_gigapixels * 1e9:
        raise SourceError(
            f"declares {width * height / 1e9:.0f} gigapixels, "
            f"beyond limits.max_gigapixels {limits.max_gigapixels:g}"
        )
    if bands > limits.max_bands:
        raise SourceError(f"declares {bands} bands, beyond limits.max_bands {limits.max_bands}")
    item = np.dtype(header.dtype).itemsize * bands
    tile_mb = header.tile_height_px * header.tile_width_px * item / 1e6
    if tile_mb > limits.max_tile_mb:
        raise SourceError(
            f"holds tiles of {tile_mb:.0f} MB, beyond limits.max_tile_mb {limits.max_tile_mb}"
        )
