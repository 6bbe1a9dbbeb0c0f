"""What cannot be read is put aside as the policy says: an image, or only the groups that fail."""

import errno
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from rasterio.errors import RasterioError

from pipeline.config import BackgroundConfig, GroupingConfig, PreprocessConfig
from pipeline.dataset import open_dataset
from pipeline.flow import preprocess
from pipeline.grid import Window
from pipeline.readers import faults
from pipeline.readers.protocol import SourceError
from pipeline.readers.rasterio_reader import RasterioReader
from tests.pipeline.scenes import backwards, in_process, noise, write_raster

SIDE_PX = 128


def with_damaged_tiles(path: Path, *, tiles: list[tuple[int, int]]) -> np.ndarray:
    """A tiled deflate TIFF of 5 x 7 tiles of which some cannot be inflated; gives its pixels."""
    pixels = noise(5 * SIDE_PX - 50, 7 * SIDE_PX - 20, 3)
    tiled = {"tiled": True, "blockxsize": SIDE_PX, "blockysize": SIDE_PX, "compress": "deflate"}
    write_raster(path, pixels, **tiled)
    with rasterio.open(path) as source:
        places = [
            source.get_tag_item(f"BLOCK_OFFSET_{column}_{row}", "TIFF", bidx=1)
            for row, column in tiles
        ]
    content = bytearray(path.read_bytes())
    for place in map(int, places):
        content[place : place + 64] = bytes(64)
    path.write_bytes(content)
    return pixels


@pytest.fixture
def config(tmp_path: Path) -> PreprocessConfig:
    return PreprocessConfig(
        sources=str(tmp_path / "in"),
        output=str(tmp_path / "out"),
        grouping=GroupingConfig(group_side_px=SIDE_PX),
        on_error="quarantine_groups",
    )


@pytest.mark.parametrize("shard_mb", [1, 64])
def test_only_the_groups_that_rasterio_cannot_read_are_lost(
    tmp_path: Path, config: PreprocessConfig, shard_mb: int
) -> None:
    pixels = with_damaged_tiles(tmp_path / "in" / "a.tif", tiles=[(0, 3), (2, 0), (4, 6)])
    write_raster(tmp_path / "in" / "b.tif", noise(100, 100, 3))
    report = preprocess(replace(config, shard_mb=shard_mb), run_stage=backwards)
    bare = {}
    with rasterio.open(tmp_path / "in" / "a.tif") as source:
        for group in range(35):
            top, left = group // 7 * SIDE_PX, group % 7 * SIDE_PX
            try:
                window = ((top, min(590, top + SIDE_PX)), (left, min(876, left + SIDE_PX)))
                bare[group] = np.moveaxis(source.read(window=window), 0, -1)
            except RasterioError:
                pass
    assert sorted({*range(35)} - {*bare}) == [3, 14, 34]
    stored = open_dataset(report.output)
    image = stored.images()[0]
    assert image.groups == tuple(bare)
    for group, square in zip(image.groups, stored.read(image).pixels, strict=True):
        height, width = bare[group].shape[:2]
        assert np.array_equal(square[:height, :width], bare[group])
        top, left = group // 7 * SIDE_PX, group % 7 * SIDE_PX
        assert np.array_equal(bare[group], pixels[top : top + height, left : left + width])
    assert [(row["image_id"], row["group"], row["window"]) for row in stored.quarantine()] == [
        ("a", 3, "rows 0-128, columns 384-512"),
        ("a", 14, "rows 256-384, columns 0-128"),
        ("a", 34, "rows 512-590, columns 768-876"),
    ]
    assert all("Decod" in row["cause"] for row in stored.quarantine())
    assert (report.images, report.groups, report.left_out_groups) == (2, 33, 0)
    assert (stored.info.quarantined, stored.info.bad_groups) == (0, 3)
    assert [window for _, window, _ in report.bad_groups] == [
        row["window"] for row in stored.quarantine()
    ]


def test_a_group_that_can_be_read_the_second_time_is_not_lost(
    tmp_path: Path, config: PreprocessConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_raster(tmp_path / "in" / "a.tif", noise(300, 300, 3))
    read = RasterioReader.read
    failed = []

    def once(self: RasterioReader, window: Window, **options: Any) -> np.ndarray:
        if window.left_px == SIDE_PX and window not in failed:
            failed.append(window)
            raise SourceError("a moment's weakness", window=window)
        return read(self, window, **options)

    monkeypatch.setattr(RasterioReader, "read", once)
    report = preprocess(config, run_stage=in_process)
    assert len(failed) == 3
    assert (report.groups, report.bad_groups) == (9, [])


def test_a_store_that_fails_at_the_second_try_costs_no_group_but_ends_the_job(
    tmp_path: Path, config: PreprocessConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_raster(tmp_path / "in" / "a.tif", noise(300, 300, 3))
    told = [SourceError(f"cannot decode {number}") for number in range(4)]  # of two groups
    told[1].__cause__ = OSError(errno.ENOMEM, "Cannot allocate memory")
    read = RasterioReader.read

    def twice(self: RasterioReader, window: Window, **options: Any) -> np.ndarray:
        if window.left_px == SIDE_PX and told:
            raise told.pop(0)
        return read(self, window, **options)

    monkeypatch.setattr(RasterioReader, "read", twice)
    with pytest.raises(OSError, match="Cannot allocate memory"):
        preprocess(config, run_stage=in_process)


def test_what_a_decoder_made_up_is_bad_also_where_alpha_was_looked_at_first(
    tmp_path: Path, config: PreprocessConfig
) -> None:
    pixels = noise(600, 600, 4)
    pixels[..., 3] = 255
    path = tmp_path / "in" / "a.tif"
    tiled = {"tiled": True, "blockxsize": SIDE_PX, "blockysize": SIDE_PX, "compress": "jpeg"}
    write_raster(path, pixels, photometric="RGB", alpha="yes", **tiled)
    content = bytearray(path.read_bytes())
    for start in (len(content) // 3, len(content) // 2):
        content[start : start + 300] = b"\xff\xd9" * 150
    path.write_bytes(content)
    lost = []
    for number, leave_out in enumerate([(), ("alpha",)]):
        background = BackgroundConfig(leave_out=leave_out)
        output = str(tmp_path / f"out{number}")
        report = preprocess(
            replace(config, output=output, background=background), run_stage=in_process
        )
        lost.append([window for _, window, _ in report.bad_groups])
    assert lost[0] == lost[1] != []


def test_an_image_of_which_no_group_can_be_read_is_put_aside_whole(
    tmp_path: Path, config: PreprocessConfig
) -> None:
    every = [(row, column) for row in range(5) for column in range(7)]
    with_damaged_tiles(tmp_path / "in" / "a.tif", tiles=every)
    write_raster(tmp_path / "in" / "b.tif", noise(100, 100, 3))
    report = preprocess(config, run_stage=in_process)
    stored = open_dataset(report.output)
    assert [record.image_id for record in stored.images()] == ["b"]
    (row,) = stored.quarantine()
    assert (row["image_id"], row["group"], row["window"]) == (
        "a",
        None,
        "rows 0-128, columns 0-128",
    )
    assert (len(report.quarantined), report.bad_groups) == (1, [])


def test_the_digest_knows_which_groups_are_missing(
    tmp_path: Path, config: PreprocessConfig
) -> None:
    digests = set()
    for number, tiles in enumerate([[], [(0, 0)], [(0, 1)]]):
        with_damaged_tiles(tmp_path / "in" / "a.tif", tiles=tiles)
        output = str(tmp_path / f"out{number}")
        digests.add(preprocess(replace(config, output=output), run_stage=in_process).digest)
    assert len(digests) == 3


def test_past_a_limit_the_job_fails_and_names_the_first(
    tmp_path: Path, config: PreprocessConfig
) -> None:
    with_damaged_tiles(tmp_path / "in" / "a.tif", tiles=[(1, 2), (3, 3)])
    preprocess(replace(config, max_bad_groups=2, max_bad_images=0), run_stage=in_process)
    again = replace(config, output=str(tmp_path / "again"), max_bad_groups=1)
    with pytest.raises(ValueError, match="2 groups cannot be read, more than max_bad_g") as caught:
        preprocess(again, run_stage=in_process)
    assert f"the first: {tmp_path}/in/a.tif at rows 128-256, columns 256-384: " in str(caught.value)
    write_raster(tmp_path / "in" / "b.tif", noise(100, 100, 3))
    for name in ("x.tif", "y.tif"):
        (tmp_path / "in" / name).write_bytes(b"II*\0 nothing")
    images = replace(again, on_error="quarantine", max_bad_groups=None)
    preprocess(replace(images, output=str(tmp_path / "3"), max_bad_images=3), run_stage=in_process)
    counts = {1: r"2 images .* max_bad_images 1; the f", 2: r"3 images .* 2; the first: .*x.tif: "}
    for limit, says in counts.items():
        with pytest.raises(ValueError, match=says):
            preprocess(replace(images, max_bad_images=limit), run_stage=in_process)
    assert not (tmp_path / "again" / "dataset.json").exists()


def test_a_file_with_damage_in_every_piece_is_read_through_once(
    tmp_path: Path, config: PreprocessConfig
) -> None:
    every = [(row, column) for row in range(5) for column in range(7)]
    with_damaged_tiles(tmp_path / "in" / "a.tif", tiles=every)
    write_raster(tmp_path / "in" / "b.tif", noise(100, 100, 3))
    before = faults._read_once.cache_info().misses
    preprocess(replace(config, shard_mb=1, on_error="quarantine"), run_stage=in_process)
    assert len(open_dataset(config.output).quarantine()) == 1
    assert faults._read_once.cache_info().misses == before + 1
    assert faults._read_once.cache_info().hits > 0


def test_a_disk_that_fails_below_a_bad_group_ends_the_job(
    tmp_path: Path, config: PreprocessConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_damaged_tiles(tmp_path / "in" / "a.tif", tiles=[(1, 2)])

    def fails(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(faults, "_read_through", fails)
    with pytest.raises(OSError, match=r"a.tif: \[Errno 5\] Input/output error"):
        preprocess(config, run_stage=in_process)
    assert not (tmp_path / "out" / "dataset.json").exists()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"on_error": "skip"}, "'skip' is unknown: take quarantine, quarantine_groups, fail"),
        ({"max_bad_images": -1}, "max_bad_images -1 is negative"),
        ({"on_error": "quarantine", "max_bad_groups": 3}, "3 needs on_error=quarantine_groups"),
        ({"on_error": "fail", "max_bad_images": 3}, "3 needs another on_error than fail"),
        ({"changed": "store_again"}, "store_again needs if_exists=append"),
    ],
)
def test_policies_that_cannot_be_are_refused(
    config: PreprocessConfig, settings: dict[str, object], says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        replace(config, **settings)
