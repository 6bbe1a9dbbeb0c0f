"""Whole-slide images (SVS, NDPI, MRXS, SCN, VMS, BIF, DICOM) through openslide: RGB uint8."""

from types import TracebackType
from typing import Self

import numpy as np
import openslide

from pipeline.grid import Window
from pipeline.readers.protocol import ImageHeader, SourceError, check_level

SUFFIXES = (".svs", ".ndpi", ".mrxs", ".scn", ".vms", ".vmu", ".bif", ".dcm")


class OpenSlideReader:
    """One slide at one level, from a local file."""

    def __init__(self, path: str, *, level: int, bands: list[int] | None) -> None:
        if bands and max(bands) > 3:
            raise SourceError(f"band {max(bands)} does not exist: a slide is RGB")
        self._bands = [band - 1 for band in bands or (1, 2, 3)]
        self._level = level
        try:
            self._slide = openslide.OpenSlide(path)
        except (openslide.OpenSlideError, OSError) as error:
            raise SourceError(str(error)) from error
        try:
            check_level(level, num_levels=self._slide.level_count)
            self.header = self._describe()
        except BaseException:
            self._slide.close()
            raise

    def _describe(self) -> ImageHeader:
        slide, level = self._slide, self._level
        width, height = slide.level_dimensions[level]
        properties = slide.properties
        down = slide.level_downsamples[level] / slide.level_downsamples[0]
        self._paper = tuple(
            bytes.fromhex(properties.get(openslide.PROPERTY_NAME_BACKGROUND_COLOR, "FFFFFF"))
        )
        return ImageHeader(
            width_px=width,
            height_px=height,
            bands=len(self._bands),
            dtype="uint8",
            num_levels=slide.level_count,
            level=level,
            tile_height_px=int(properties.get(f"openslide.level[{level}].tile-height", 1)),
            tile_width_px=int(properties.get(f"openslide.level[{level}].tile-width", width)),
            mpp_x=_microns(properties.get(openslide.PROPERTY_NAME_MPP_X), down),
            mpp_y=_microns(properties.get(openslide.PROPERTY_NAME_MPP_Y), down),
        )

    def read(self, window: Window, *, out: np.ndarray | None = None) -> np.ndarray:
        """[height, width, bands]; what the scanner skipped shows the slide's background colour."""
        down = self._slide.level_downsamples[self._level]
        corner = (round(window.left_px * down), round(window.top_px * down))
        try:
            region = self._slide.read_region(
                corner, self._level, (window.width_px, window.height_px)
            )
        except (openslide.OpenSlideError, OSError) as error:
            raise SourceError(str(error), window=window) from error
        pixels = np.asarray(region)
        colour, alpha = pixels[..., :3], pixels[..., 3:]
        if alpha.min() < 255:
            share = alpha.astype(np.float32) / 255
            paper = np.array(self._paper, np.float32)
            colour = np.rint(colour * share + paper * (1 - share)).astype(np.uint8)
        if out is None:
            return colour[..., self._bands]
        out[...] = colour[..., self._bands]
        return out

    def keep_tiles(self, num_bytes: int) -> None:
        """Decoded tiles of this slide."""
        self._slide.set_cache(openslide.OpenSlideCache(num_bytes))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._slide.close()


def _microns(declared: str | None, down: float) -> float | None:
    try:
        spacing = float(declared) * down if declared else 0.0
    except ValueError:
        return None
    return spacing if spacing > 0 else None
