"""Every tile of a source is decoded once, wherever its borders lie."""

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import rasterio

from pipeline import store
from pipeline.config import BackgroundConfig, GroupingConfig, LimitsConfig
from pipeline.plan import grid_of, store_tasks
from pipeline.readers import rasterio_reader, watched
from pipeline.readers.open import LastImage
from pipeline.readers.protocol import ImageReader
from pipeline.readers.rasterio_reader import RasterioReader
from pipeline.storage import Location
from tests.pipeline.scenes import noise, write_raster

SIDE_PX = 160
TILED = {"tiled": True, "compress": "deflate"}
SOURCES = {
    "tiles that no group shares": {**TILED, "blockxsize": 32, "blockysize": 80},
    "tiles smaller than groups": {**TILED, "blockxsize": 128, "blockysize": 128},
    "tiles larger than groups": {**TILED, "blockxsize": 256, "blockysize": 512},
    "bands apart": {**TILED, "blockxsize": 256, "blockysize": 256, "interleave": "band"},
    "strips of one row": {"blockysize": 1, "compress": "deflate"},
    "strips of 128 rows": {"blockysize": 128, "compress": "deflate"},
}


class OneImage(LastImage):
    """Opens the one image there is."""

    def __init__(self, image: ImageReader) -> None:
        super().__init__()
        self._image = image

    def open(self, uri: str, **options: Any) -> ImageReader:
        assert self._image is not None
        return self._image


@pytest.fixture
def read_at(monkeypatch: pytest.MonkeyPatch) -> Counter[int]:
    """Where reads of remote files begin, and how often."""
    seen: Counter[int] = Counter()

    class Counted(watched._WatchedStream):
        def read(self, size: int = -1) -> bytes:
            seen[self.tell()] += 1
            return super().read(size)

    monkeypatch.setattr(watched, "_WatchedStream", Counted)
    return seen


@pytest.mark.parametrize("leave_out", ["nodata", "mask"])
@pytest.mark.parametrize("kind", SOURCES)
def test_a_piece_reads_each_tile_once(
    kind: str,
    leave_out: str,
    tmp_path: Path,
    read_at: Counter[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rasterio_reader, "CACHE_BYTES", 500_000)  # too little without keep_tiles
    pixels = noise(1500, 2100, 3)
    path = write_raster(tmp_path / "a.tif", pixels, **SOURCES[kind])
    place = Location(scheme="memory", path=f"/{kind}.tif")
    fsspec.filesystem("memory").pipe_file(place.path, path.read_bytes())
    grouping = GroupingConfig(group_side_px=SIDE_PX)
    write_raster(tmp_path / "masks" / "a.tif", np.ones((15, 21, 1), np.uint8))
    masks = str(tmp_path / "masks") if leave_out == "mask" else None
    with RasterioReader(place, suffix=".tif", level=0, bands=None) as image:
        piece = {"image_id": "a", "uri": "a.tif", "header": asdict(image.header)}
        num_groups = grid_of(image.header, side_px=SIDE_PX).num_groups
        groups = store._content(
            {**piece, "first_group": 0, "num_groups": num_groups},
            grouping=grouping,
            background=BackgroundConfig(leave_out=(leave_out,), masks=masks),
            limits=LimitsConfig(),
            images=OneImage(image),
            on_error="fail",
            bad_groups={},
        )
        assert len(list(groups)) == num_groups
    tiles = tile_starts(path)
    assert {start: read_at[start] for start in tiles} == dict.fromkeys(tiles, 1)


def tile_starts(path: Path) -> list[int]:
    """Where the tiles or strips of a TIFF begin."""
    with rasterio.open(path) as source:
        bands = source.indexes if source.interleaving.name == "band" else [1]
        rows, columns = (
            -(-length // block)
            for length, block in zip(source.shape, source.block_shapes[0], strict=True)
        )
        return [
            int(source.get_tag_item(f"BLOCK_OFFSET_{column}_{row}", "TIFF", bidx=band))
            for band in bands
            for row in range(rows)
            for column in range(columns)
        ]


def test_files_that_are_read_from_the_start_are_one_task_and_others_are_not() -> None:
    piece = {"image_id": "a", "header": None, "first_group": 0, "num_groups": 1}
    names = ["a.png", "a.png", "b.jpg", "b.jpg", "c.tif", "c.tif"]
    rows = [
        {"shard": "s", "whole_images": False, "pieces": [{**piece, "uri": name}]} for name in names
    ]
    shards = store.pa.Table.from_pylist(rows)
    assert [task.num_rows for task in store_tasks(shards)] == [2, 2, 1, 1]


def test_pieces_of_one_image_in_a_task_open_it_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_raster(tmp_path / "a.tif", noise(9, 9, 1))
    opened = []
    start = RasterioReader.__init__

    def counted(self: RasterioReader, *place: Any, **options: Any) -> None:
        opened.append(place)
        start(self, *place, **options)

    monkeypatch.setattr(RasterioReader, "__init__", counted)
    with LastImage() as images:
        for _ in range(3):
            images.open(str(path), level=0, bands=None, limits=LimitsConfig())
    assert len(opened) == 1
