"""GeoTIFF, COG, BigTIFF, JPEG 2000, PNG and JPEG through rasterio (GDAL).

Bands are kept as they are, an alpha band included. What marks missing pixels is the declared nodata
value; alpha and the mask inside a file tell which groups hold nothing, where that is asked for.
Sidecar files (.aux.xml, .ovr, .msk) are never looked for: the pixels of an image are a function of
its own bytes.
"""

import warnings
from contextlib import ExitStack
from functools import partial
from types import TracebackType
from typing import Any, Self

import numpy as np
import rasterio
from affine import Affine
from rasterio.enums import MaskFlags
from rasterio.env import setenv
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.windows import Window as RasterWindow

from pipeline.grid import Window
from pipeline.readers.complaints import complaints
from pipeline.readers.deflated_tiles import DeflatedTiles
from pipeline.readers.protocol import (
    MAX_KEPT_BYTES,
    ImageHeader,
    SourceError,
    StreamError,
    check_level,
)
from pipeline.readers.watched import WatchedFile
from pipeline.storage import Location

DRIVERS = {
    ".tif": "GTiff",
    ".tiff": "GTiff",
    ".btf": "GTiff",
    ".jp2": "JP2OpenJPEG",
    ".j2k": "JP2OpenJPEG",
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
}
# GDAL's own default takes 5 % of the machine for decoded tiles, in every worker.
CACHE_BYTES = 8_000_000
ONE_STREAM = (".png", ".jpg", ".jpeg")
"""Decoded from the top: damage may show only long after the pixels that it falsified."""
MICRONS = {"2": 25_400.0, "3": 10_000.0}  # TIFF resolution units: inch, centimetre


class RasterioReader:
    """One raster at one level, from the local disk or from a store."""

    def __init__(
        self, place: Location, *, suffix: str, level: int, bands: list[int] | None
    ) -> None:
        path = place.path
        self._error = StreamError if suffix in ONE_STREAM else SourceError
        self._remote = None if place.is_local else WatchedFile(place)
        self._stack = ExitStack()
        self._stack.enter_context(
            rasterio.Env(
                GDAL_CACHEMAX=CACHE_BYTES,
                GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR",
                GDAL_PAM_ENABLED="NO",
                GDAL_NUM_THREADS="1",
                GDAL_ERROR_ON_LIBJPEG_WARNING="YES",
                # the short cut to a whole PNG takes zeros for what is missing at its end
                GDAL_PNG_WHOLE_IMAGE_OPTIM="NO",
            )
        )
        options: dict[str, Any] = {"driver": DRIVERS[suffix]}
        if self._remote is not None:
            options["opener"] = self._remote
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", NotGeoreferencedWarning)
                whole = self._stack.enter_context(rasterio.open(path, **options))
                self._factors = whole.overviews(1)
                num_levels = 1 + len(self._factors)
                check_level(level, num_levels=num_levels)
                self._source = whole
                if level:
                    options["overview_level"] = level - 1
                    self._source = self._stack.enter_context(rasterio.open(path, **options))
            self._open = partial(rasterio.open, path, **options)
            self._bands = bands or list(whole.indexes)
            self.header = self._describe(whole, num_levels=num_levels, level=level)
            self._check_store()
            self._tiles: DeflatedTiles | None = None
            if place.is_local and level == 0:
                self._tiles = DeflatedTiles.of(whole, path=path, bands=self._bands)
            if self._tiles:
                self._stack.callback(self._tiles.close)
        except (RasterioError, OSError) as error:
            self._stack.close()
            raise SourceError(self._told(error)) from self._failure or error
        except BaseException:
            self._stack.close()
            raise

    def _describe(
        self, whole: rasterio.DatasetReader, *, num_levels: int, level: int
    ) -> ImageHeader:
        source = self._source
        if max(self._bands) > source.count:
            raise SourceError(f"band {max(self._bands)} does not exist: it has {source.count}")
        kept = [band - 1 for band in self._bands]
        dtypes = {source.dtypes[band] for band in kept}
        if len(dtypes) > 1:
            raise SourceError(
                f"bands of different types {sorted(dtypes)}: choose bands of one type"
            )
        nodata = {repr(source.nodatavals[band]): source.nodatavals[band] for band in kept}
        if len(nodata) > 1:
            raise SourceError(f"bands with different nodata values {sorted(nodata)}")
        tile_height, tile_width = source.block_shapes[0]
        # An overview's own transform is not kept by every writer; the whole image's is.
        down = (whole.width / source.width, whole.height / source.height)
        mpp_x, mpp_y = (None, None) if whole.crs else _spacing(whole.tags(), down)
        return ImageHeader(
            width_px=source.width,
            height_px=source.height,
            bands=len(kept),
            dtype=dtypes.pop(),
            num_levels=num_levels,
            level=level,
            tile_height_px=tile_height,
            tile_width_px=tile_width,
            nodata=next(iter(nodata.values())),
            mpp_x=mpp_x,
            mpp_y=mpp_y,
            crs=whole.crs.to_wkt() if whole.crs else None,
            transform=_scaled(whole.transform, down),
        )

    def read(self, window: Window, *, out: np.ndarray | None = None) -> np.ndarray:
        """[height, width, bands] of the chosen bands."""
        if out is None:
            shape = (window.height_px, window.width_px, self.header.bands)
            out = np.empty(shape, self.header.dtype)
        place = RasterWindow(window.left_px, window.top_px, window.width_px, window.height_px)
        try:
            if self._tiles and self._tiles.read(window, out=out):
                return out
            with complaints() as heard:
                self._source.read(self._bands, window=place, out=out.transpose(2, 0, 1))
            self._check_store()
        except (RasterioError, OSError) as error:
            raise self._error(self._told(error), window=window) from self._failure or error
        self._require_quiet(heard, window=window)
        return out

    def alpha(self, window: Window) -> np.ndarray | None:
        """The alpha band, or the mask inside the file."""
        if MaskFlags.per_dataset not in self._source.mask_flag_enums[0]:
            return None
        place = RasterWindow(window.left_px, window.top_px, window.width_px, window.height_px)
        try:
            with complaints() as heard:
                shown = self._source.read_masks(1, window=place)
            self._check_store()
        except (RasterioError, OSError) as error:
            raise SourceError(self._told(error), window=window) from self._failure or error
        self._require_quiet(heard, window=window)
        return shown

    def keep_tiles(self, num_tiles: int) -> None:
        """GDAL has one cache for all that a process has open, and counts its own notes in."""
        header = self.header
        # A tile brings all bands that lie in it, asked for or not; a mask is one more.
        values = header.tile_height_px * header.tile_width_px * (self._source.count + 1)
        needed = num_tiles * values * np.dtype(header.dtype).itemsize
        setenv(GDAL_CACHEMAX=min(MAX_KEPT_BYTES, CACHE_BYTES + needed * 11 // 10))

    @property
    def downsamples(self) -> list[float]:
        """From the factors that GDAL finds in the sizes of overviews."""
        return [1.0, *map(float, self._factors)]

    def _require_quiet(self, heard: list[str], *, window: Window) -> None:
        """GDAL keeps a tile that was complained of, and would give it without a word next time."""
        if not heard:
            return
        self._tiles = None
        self._source.close()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            self._source = self._stack.enter_context(self._open())
        raise SourceError(heard[0], window=window)

    @property
    def _failure(self) -> OSError | None:
        return None if self._remote is None else self._remote.failure

    def _told(self, error: BaseException) -> str:
        return str(self._failure) if self._failure else _deepest(error)

    def _check_store(self) -> None:
        """Some decoders fill up with grey what they could not read."""
        if self._failure is not None:
            raise self._failure

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()


def _deepest(error: BaseException) -> str:
    """Rasterio says 'See previous exception': this is the previous one."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error) or type(error).__name__


def _scaled(transform: Affine, down: tuple[float, float]) -> tuple[float, ...] | None:
    """From px of a level to the CRS: a column of it spans down[0] columns of the whole image."""
    a, b, c, d, e, f = transform[:6]
    if transform.is_identity:
        return None
    return (a * down[0], b * down[1], c, d * down[0], e * down[1], f)


def _spacing(
    tags: dict[str, str], down: tuple[float, float]
) -> tuple[float, float] | tuple[None, None]:
    """Microns per px from TIFF resolution tags, as openslide reads them."""
    microns = MICRONS.get(tags.get("TIFFTAG_RESOLUTIONUNIT", "")[:1])
    try:
        per_unit = [float(tags[f"TIFFTAG_{axis}RESOLUTION"]) for axis in "XY"]
    except (KeyError, ValueError):
        return None, None
    if microns is None or min(per_unit) <= 0:
        return None, None
    return down[0] * microns / per_unit[0], down[1] * microns / per_unit[1]
