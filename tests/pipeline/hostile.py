"""Files to break, and what the two stages make of one file, without Ray."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import rasterio
from PIL import Image
from rasterio.shutil import copy

from pipeline.config import BackgroundConfig, GroupingConfig, LimitsConfig
from pipeline.plan import ShardNames, plan_shards, probe_images, store_tasks
from pipeline.sources import SOURCES
from pipeline.store import store_shards
from tests.pipeline.scenes import noise, write_raster

SIDE_PX = 64
TILED = {"tiled": True, "blockxsize": 64, "blockysize": 64}
JPEG = {"compress": "jpeg", "photometric": "ycbcr"}
DEFLATE = {"compress": "deflate"}
RASTERS: dict[str, dict[str, Any]] = {
    "strips.tif": {"blockysize": 16},
    "deflate-strips.tif": {"blockysize": 16, **DEFLATE},
    "deflate-tiles.tif": {**TILED, **DEFLATE},
    "jpeg-strips.tif": {"blockysize": 16, **JPEG},
    "jpeg-tiles.tif": {**TILED, **JPEG},
    "lzw-planes.tif": {**TILED, "compress": "lzw", "interleave": "band"},
}
COPIES: dict[str, dict[str, Any]] = {
    "cog.tif": {"driver": "COG", "blocksize": 128, **DEFLATE},
    "one-tile.jp2": {"driver": "JP2OpenJPEG"},
    "tiles.jp2": {"driver": "JP2OpenJPEG", "BLOCKXSIZE": 64, "BLOCKYSIZE": 64},
}
PICTURES: dict[str, dict[str, Any]] = {
    "a.png": {},
    "a.jpg": {"quality": 90},
    "progressive.jpg": {"quality": 90, "progressive": True},
    "restarts.jpg": {"quality": 90, "restart_marker_rows": 1},
}
KINDS = (*RASTERS, *COPIES, *PICTURES, "slide.svs")


def picture() -> np.ndarray:
    """200 x 260 px: slopes with a little noise, so that JPEG has something to do."""
    rows, columns = np.mgrid[:200, :260]
    slopes = np.stack([columns * 255 // 260, rows * 255 // 200, (rows + columns) % 256], -1)
    return (slopes // 2 + noise(200, 260, 3) // 4).astype(np.uint8)


def write(folder: Path, kind: str) -> Path:
    """A whole file of one of KINDS."""
    path, pixels = folder / kind, picture()
    if kind in RASTERS:
        return write_raster(path, pixels, **RASTERS[kind])
    if kind in PICTURES:
        Image.fromarray(pixels).save(path, **PICTURES[kind])
        return path
    if kind in COPIES:
        copy(str(write_raster(folder / "whole.tif", pixels)), str(path), **COPIES[kind])
        return path
    slide = {"crs": None, "transform": None, **TILED, **JPEG}
    write_raster(folder / "slide.tif", pixels, **slide)
    with rasterio.open(folder / "slide.tif", "r+") as source:
        source.update_tags(TIFFTAG_IMAGEDESCRIPTION="Aperio Image Library\r\n|MPP = 0.5")
    return (folder / "slide.tif").rename(path)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one file."""

    header: dict[str, Any] | None
    groups: dict[int, np.ndarray]
    """Stored: the valid extent of each."""
    causes: dict[int | None, str]
    """Put aside: group, or None for the whole image."""


def outcome(path: Path, output: Path, *, limits: LimitsConfig | None = None) -> Outcome:
    """Both stages on one file, groups of 64 px put aside one by one."""
    limits, grouping = limits or LimitsConfig(), GroupingConfig(group_side_px=SIDE_PX)
    images = pa.Table.from_pylist([{"image_id": "x", "uri": str(path)}], schema=SOURCES)
    probed = probe_images(images, grouping=grouping, limits=limits)
    (row,) = probed.to_pylist()
    assert row["fault"] is None
    if row["header"] is None:
        return Outcome(header=None, groups={}, causes={None: row["cause"]})
    names = ShardNames(job="0123456789ab", settings={})
    shards = plan_shards(probed, side_px=SIDE_PX, shard_mb=64, names=names)
    groups, causes = {}, {}
    for task in store_tasks(shards):
        stored = store_shards(
            task,
            output=str(output),
            grouping=grouping,
            background=BackgroundConfig(leave_out=()),
            limits=limits,
            on_error="quarantine_groups",
        )
        for piece in stored.to_pylist():
            assert piece["fault"] is None
            if piece["cause"] is not None:
                causes[None] = piece["cause"]
            causes |= {bad["group"]: bad["cause"] for bad in piece["bad_groups"] or []}
            if piece["part"] is not None:
                groups |= _content(output / piece["part"]["shard"])
    return Outcome(header=row["header"], groups=groups, causes=causes)


def _content(shard: Path) -> dict[int, np.ndarray]:
    found = {}
    with pa.memory_map(str(shard)) as source:
        for row in pa.ipc.open_file(source).read_all().to_batches():
            extent = row["valid_height_px"][0].as_py(), row["valid_width_px"][0].as_py()
            square = row["pixels"].to_numpy_ndarray()[0]
            found[row["group"][0].as_py()] = square[: extent[0], : extent[1]].copy()
    return found
