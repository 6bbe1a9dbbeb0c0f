"""Large images to measure with: smooth land, and noise that does not compress away."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import rasterio.shutil
from rasterio.errors import NotGeoreferencedWarning
from rasterio.windows import Window

STRIP_PX = 512
BIG = {"driver": "GTiff", "tiled": True, "BIGTIFF": "YES", "NUM_THREADS": "2"}


@contextmanager
def quiet() -> Iterator[None]:
    """These images lie nowhere on Earth, and rasterio need not say so."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        yield


def strips(side_px: int, *, bands: int, dtype: str) -> Iterator[tuple[int, np.ndarray]]:
    """(top, [height, side, bands]) from top to bottom; the same at every call."""
    scale = np.iinfo(dtype).max / 255
    generator = np.random.default_rng(0)
    light = generator.normal(0, 9, (STRIP_PX, 2 * STRIP_PX, 1))
    colour = generator.normal(0, 4, (STRIP_PX, 2 * STRIP_PX, bands))
    repeats = (1, -(-side_px // (2 * STRIP_PX)), 1)
    noise = np.tile(np.float32(scale * (light + colour)), repeats)[:, :side_px]
    columns = np.cos(np.arange(side_px, dtype=np.float32) / 410)
    shades = np.linspace(1, 0.6, bands, dtype=np.float32)
    for top in range(0, side_px, STRIP_PX):
        rows = np.sin(np.arange(top, min(top + STRIP_PX, side_px), dtype=np.float32) / 300)
        land = np.float32(scale) * (128 + 50 * rows[:, None] * columns)
        yield top, (land[..., None] * shades + noise[: len(rows)]).astype(dtype)


def write(
    path: Path, side_px: int, *, bands: int = 3, dtype: str = "uint8", **profile: Any
) -> None:
    """A tiled BigTIFF, a strip at a time."""
    size = {"height": side_px, "width": side_px, "count": bands, "dtype": dtype}
    with ExitStack() as held:
        held.enter_context(quiet())
        target = held.enter_context(rasterio.open(path, "w", **BIG, **size, **profile))
        for top, strip in strips(side_px, bands=bands, dtype=dtype):
            place = Window(0, top, side_px, len(strip))
            target.write(np.moveaxis(strip, -1, 0), window=place)


def jpeg_bigtiff(path: Path, side_px: int) -> None:
    """As scanners and drones write them: JPEG tiles of 256 px, YCbCr."""
    write(
        path,
        side_px,
        compress="jpeg",
        photometric="ycbcr",
        JPEG_QUALITY="85",
        blockxsize=256,
        blockysize=256,
    )


def deflate_cog(path: Path, side_px: int) -> None:
    """As GDAL writes it: tiles of 512 px, overviews."""
    whole = path.with_suffix(".plain.tif")
    write(whole, side_px, blockxsize=STRIP_PX, blockysize=STRIP_PX)
    options = {"COMPRESS": "DEFLATE", "BIGTIFF": "YES", "NUM_THREADS": "2"}
    with quiet():
        rasterio.shutil.copy(whole, path, driver="COG", **options)
    whole.unlink()


def uint16_bigtiff(path: Path, side_px: int) -> None:
    """Four bands of 16 bits, as satellites bring them: deflate with a horizontal predictor."""
    write(
        path,
        side_px,
        bands=4,
        dtype="uint16",
        compress="deflate",
        predictor=2,
        zlevel=6,
        blockxsize=STRIP_PX,
        blockysize=STRIP_PX,
    )


KINDS: dict[str, Callable[[Path, int], None]] = {
    "jpeg": jpeg_bigtiff,
    "deflate": deflate_cog,
    "uint16": uint16_bigtiff,
}
