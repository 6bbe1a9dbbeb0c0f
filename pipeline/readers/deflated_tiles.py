"""Tiles of a local TIFF inflated straight into px of all bands: what GDAL gives, in less time.

GDAL keeps the bands of a tile apart, and a group wants them together again. So where a window is
made of whole tiles, and these hold nothing but deflated px, they go past GDAL, which still reads
the header and says where each tile lies. Whatever is unusual, or does not inflate to a whole tile,
is left to GDAL: what is damaged, and how that is told, is its word alone.
"""

import math
import os
import sys
from typing import Self

import deflate
import numpy as np
import rasterio

from pipeline.grid import Window

BYTE_ORDER_MARK = {"little": b"II", "big": b"MM"}


class DeflatedTiles:
    """The tiles of one open image at full resolution."""

    def __init__(self, source: rasterio.DatasetReader, *, path: str) -> None:
        self._source = source
        self._shape = (*source.block_shapes[0], source.count)
        self._dtype = np.dtype(source.dtypes[0])
        self._num_bytes = math.prod(self._shape) * self._dtype.itemsize
        self._file = os.open(path, os.O_RDONLY)

    @classmethod
    def of(cls, source: rasterio.DatasetReader, *, path: str, bands: list[int]) -> Self | None:
        """None where tiles hold anything but all bands of each px, deflated."""
        stored = source.tags(ns="IMAGE_STRUCTURE")
        plain = (
            source.driver == "GTiff"
            and stored.get("COMPRESSION") == "DEFLATE"
            and (source.count == 1 or stored.get("INTERLEAVE") == "PIXEL")
            and "PREDICTOR" not in stored
            and "NBITS" not in source.tags(1, ns="IMAGE_STRUCTURE")
            and bands == list(source.indexes)
            and len(set(source.dtypes)) == 1
        )
        if not plain:
            return None
        with open(path, "rb") as file:
            native = file.read(2) == BYTE_ORDER_MARK[sys.byteorder]
        return cls(source, path=path) if native else None

    def read(self, window: Window, *, out: np.ndarray) -> bool:
        """Fill `out`, [height, width, bands], where the window is made of whole tiles; False where
        GDAL has to.
        """
        tile_height, tile_width, _ = self._shape
        bottom, right = window.top_px + window.height_px, window.left_px + window.width_px
        if (
            window.top_px % tile_height
            or window.left_px % tile_width
            or (bottom % tile_height and bottom != self._source.height)
            or (right % tile_width and right != self._source.width)
        ):
            return False
        for top in range(window.top_px, bottom, tile_height):
            for left in range(window.left_px, right, tile_width):
                tile = self._tile(top // tile_height, left // tile_width)
                if tile is None:
                    return False
                place = out[top - window.top_px :, left - window.left_px :][
                    :tile_height, :tile_width
                ]
                place[:] = tile[: len(place), : place.shape[1]]
        return True

    def _tile(self, row: int, column: int) -> np.ndarray | None:
        """[tile height, tile width, bands], or None where it is not such a tile."""
        start, size = (
            int(self._source.get_tag_item(f"BLOCK_{what}_{column}_{row}", "TIFF", bidx=1) or 0)
            for what in ("OFFSET", "SIZE")
        )
        # nobody's deflate makes px larger by more than a few bytes in a thousand
        if not 0 < size <= 2 * self._num_bytes + 1024:
            return None
        try:
            stream = os.pread(self._file, size, start)
            pixels = deflate.zlib_decompress(stream, self._num_bytes)
        except (OSError, MemoryError, OverflowError, deflate.DeflateError):
            return None
        if len(pixels) != self._num_bytes:
            return None
        return np.frombuffer(pixels, self._dtype).reshape(self._shape)

    def close(self) -> None:
        """Let the file go."""
        os.close(self._file)
