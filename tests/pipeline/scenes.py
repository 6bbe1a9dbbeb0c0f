"""Images that the pipeline's tests cut: large ones written tile by tile, small ones whole."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import rasterio
from affine import Affine
from rasterio.windows import Window

from pipeline.flow import Stage
from pipeline.sources import SOURCES


def in_process(stage: Stage, tasks: list[pa.Table]) -> Iterator[pa.Table]:
    """Run a stage without Ray, task after task."""
    yield from map(stage, tasks)


def backwards(stage: Stage, tasks: list[pa.Table]) -> Iterator[pa.Table]:
    """Run a stage as an unlucky cluster would: the last task ends first."""
    yield from reversed(list(in_process(stage, tasks)))


def stores(tasks: list[pa.Table]) -> bool:
    """Whether these are tasks of the second stage."""
    return "shard" in tasks[0].column_names


def sources(uris: dict[str, str]) -> pa.Table:
    """Image id -> uri as a table of sources whose identity nobody looked at."""
    rows = [{"image_id": image, "uri": uri} for image, uri in uris.items()]
    return pa.Table.from_pylist(rows, schema=SOURCES)


@contextmanager
def raster(path: Path, *, height: int, width: int, bands: int, **profile: Any) -> Iterator[Any]:
    """A GeoTIFF open for writing, in UTM 33N at 0.5 m unless told otherwise."""
    options = {
        "driver": "GTiff",
        "dtype": "uint8",
        "crs": "EPSG:32633",
        "transform": Affine(0.5, 0, 500_000, 0, -0.5, 5_800_000),
        **profile,
    }
    with rasterio.open(path, "w", height=height, width=width, count=bands, **options) as target:
        yield target


def write_raster(path: Path, pixels: np.ndarray, **profile: Any) -> Path:
    """Store [height, width, bands] in the dtype it has."""
    height, width, bands = pixels.shape
    path.parent.mkdir(parents=True, exist_ok=True)
    profile = {"dtype": str(pixels.dtype), **profile}
    with raster(path, height=height, width=width, bands=bands, **profile) as target:
        target.write(np.moveaxis(pixels, -1, 0))
    return path


def noise(*shape: int, seed: int = 0, dtype: str = "uint8") -> np.ndarray:
    """Reproducible pixels over the whole range of an integer dtype, or normal floats."""
    generator = np.random.default_rng(seed)
    if np.issubdtype(np.dtype(dtype), np.floating):
        return generator.normal(3.0, 2.0, shape).astype(dtype)
    limits = np.iinfo(dtype)
    return generator.integers(limits.min, limits.max, shape, dtype, endpoint=True)


def write_large_scene(path: Path, *, side_px: int = 6400, tile_px: int = 512) -> Path:
    """A tiled BigTIFF like an aerial scene: fields, haze, and texture down to the pixel."""
    profile = {"tiled": True, "blockxsize": tile_px, "blockysize": tile_px, "BIGTIFF": "YES"}
    profile |= {"compress": "deflate", "zlevel": 1, "predictor": 2}
    texture = noise(tile_px, tile_px, 3) // 16
    with raster(path, height=side_px, width=side_px, bands=3, **profile) as target:
        for top in range(0, side_px, tile_px):
            for left in range(0, side_px, tile_px):
                height, width = min(tile_px, side_px - top), min(tile_px, side_px - left)
                tile = _land(top, left, height, width) + texture[:height, :width]
                target.write(np.moveaxis(tile, -1, 0), window=Window(left, top, width, height))
    return path


def _land(top: int, left: int, height: int, width: int) -> np.ndarray:
    rows = np.arange(top, top + height)[:, None]
    columns = np.arange(left, left + width)[None, :]
    field = (rows // 300 * 7 + columns // 420 * 13) % 5 * 25
    haze = 40 * (1 + np.sin(rows / 700) * np.cos(columns / 900))
    return np.stack([40 + field + haze, 60 + field / 2 + haze, 30 + haze], -1).astype(np.uint8)
