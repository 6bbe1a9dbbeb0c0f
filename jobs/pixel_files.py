"""Pictures as files with the values that they have: PNG where it holds them, else TIFF."""

import warnings

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.errors import NotGeoreferencedWarning
from rasterio.io import MemoryFile

PNG_HOLDS = {("uint8", 1), ("uint8", 3), ("uint16", 1)}
"""(dtype, bands) that every reader of PNG reads alike."""


def suffix_of(*, dtype: str, bands: int) -> str:
    """What the names of files with such pixels end with."""
    return ".png" if (dtype, bands) in PNG_HOLDS else ".tif"


def encoded(pixels: NDArray) -> bytes:
    """[height, width, bands] as the bytes of a file."""
    height, width, bands = pixels.shape
    dtype = str(pixels.dtype)
    profile: dict[str, object] = {"driver": "PNG"}
    if suffix_of(dtype=dtype, bands=bands) == ".tif":
        profile = {"driver": "GTiff", "compress": "deflate"}
    with warnings.catch_warnings(), MemoryFile() as file:
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # made pictures lie nowhere
        with file.open(height=height, width=width, count=bands, dtype=dtype, **profile) as target:
            target.write(np.moveaxis(pixels, -1, 0))
        return bytes(file.getbuffer())


def decoded(content: bytes) -> NDArray:
    """The inverse of encoded."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(MemoryFile(content)) as source:
            return np.moveaxis(source.read(), 0, -1)
