"""Stages called as plain functions: what is planned is read, what is read is stored."""

import shutil
import tempfile
import zlib
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import BackgroundConfig, GroupingConfig, LimitsConfig
from pipeline.extract import Square, extract_groups
from pipeline.grid import Grid
from pipeline.plan import (
    PROBED,
    ShardNames,
    grid_of,
    group_bytes,
    header_of,
    plan_shards,
    probe_images,
)
from pipeline.readers.open import open_image
from pipeline.readers.protocol import ImageHeader, SourceError
from pipeline.shard_writer import ShardWriter
from pipeline.storage import Location
from pipeline.store import store_shards
from tests.pipeline.scenes import noise, sources, write_raster

NAMES = ShardNames(job="0123456789ab", settings={})
GROUPING = GroupingConfig(group_side_px=64)


def probed(sizes: list[tuple[int, int, str]]) -> pa.Table:
    """Headers of images that nobody made."""
    rows = []
    for number, (height, width, dtype) in enumerate(sizes):
        header = ImageHeader(
            width_px=width,
            height_px=height,
            bands=3,
            dtype=dtype,
            num_levels=1,
            tile_height_px=256,
            tile_width_px=256,
        )
        rows.append({"image_id": f"{number:03d}", "uri": "x.tif", "header": asdict(header)})
    return pa.Table.from_pylist(rows, schema=PROBED)


SIZES = st.lists(
    st.tuples(st.integers(1, 1500), st.integers(1, 1500), st.sampled_from(["uint8", "float32"])),
    min_size=1,
    max_size=8,
)


@given(SIZES, st.integers(1, 5), st.randoms())
def test_every_group_is_planned_exactly_once_in_shards_of_bounded_size_and_one_format(
    sizes: list[tuple[int, int, str]], shard_mb: int, random: object
) -> None:
    table = probed(sizes)
    shards = plan_shards(table, side_px=64, shard_mb=shard_mb, names=NAMES)
    planned: dict[str, list[int]] = {row["image_id"]: [] for row in table.to_pylist()}
    for shard in shards.to_pylist():
        headers = [header_of(piece) for piece in shard["pieces"]]
        assert len({(header.bands, header.dtype) for header in headers}) == 1
        groups = sum(piece["num_groups"] for piece in shard["pieces"])
        most = shard_mb * 1_000_000 // group_bytes(headers[0], side_px=64)
        assert groups <= most * 3 // 2
        assert shard["whole_images"] or len(shard["pieces"]) == 1
        for piece in shard["pieces"]:
            first = piece["first_group"]
            planned[piece["image_id"]] += range(first, first + piece["num_groups"])
    for row in table.to_pylist():
        whole = grid_of(header_of(row), side_px=64).num_groups
        assert planned[row["image_id"]] == list(range(whole))
    mixed = list(range(table.num_rows))
    random.shuffle(mixed)
    again = plan_shards(table.take(mixed), side_px=64, shard_mb=shard_mb, names=NAMES)
    assert again.equals(shards)


def test_extracted_squares_hold_the_image_and_zeros_beyond_it(tmp_path: Path) -> None:
    pixels = noise(100, 150, 2, dtype="int16")
    path = write_raster(tmp_path / "a.tif", pixels)
    with open_image(str(path)) as image:
        grid = grid_of(image.header, side_px=64)
        found = extract_groups([3, 4, 5], image=image, grid=grid)
        squares = np.stack([square.pixels.copy() for square in found])
    assert np.array_equal(squares[1, :36], pixels[64:100, 64:128])
    assert np.array_equal(squares[2, :36, :22], pixels[64:, 128:])
    assert not squares[:, 36:].any()
    assert not squares[2, :, 22:].any()


def test_what_cannot_be_opened_becomes_a_cause_and_the_rest_goes_on(tmp_path: Path) -> None:
    write_raster(tmp_path / "a.tif", noise(10, 10, 1))
    (tmp_path / "b.tif").write_bytes(b"II*\0 nothing")
    uris = [str(tmp_path / f"{name}.tif") for name in "abc"]
    images = sources(dict(zip("abc", uris, strict=True)))
    found = probe_images(images, grouping=GROUPING, limits=LimitsConfig()).to_pylist()
    assert [row["header"] is not None for row in found] == [True, False, False]
    assert found[0]["cause"] is None
    assert "b.tif" in found[1]["cause"]
    assert "No such file" in found[2]["cause"]


def test_too_many_or_too_large_groups_become_a_cause(tmp_path: Path) -> None:
    images = sources({"a": str(write_raster(tmp_path / "a.tif", noise(5000, 5000, 1)))})
    tiny = GroupingConfig(group_side_px=1, patch_px=1)
    (row,) = probe_images(images, grouping=tiny, limits=LimitsConfig()).to_pylist()
    assert "make 25000000 groups of 1 px" in row["cause"]
    huge = GroupingConfig(group_side_px=40_000)
    (row,) = probe_images(images, grouping=huge, limits=LimitsConfig()).to_pylist()
    assert "is over 1 GiB: choose a smaller group_side_px" in row["cause"]


def test_a_source_that_changed_after_it_was_planned_is_damaged(tmp_path: Path) -> None:
    images = sources({"a": str(write_raster(tmp_path / "a.tif", noise(100, 100, 1)))})
    found = probe_images(images, grouping=GROUPING, limits=LimitsConfig())
    shards = plan_shards(found, side_px=64, shard_mb=1, names=NAMES)
    write_raster(tmp_path / "a.tif", noise(90, 100, 1))
    (row,) = store_shards(
        shards,
        output=str(tmp_path / "out"),
        grouping=GROUPING,
        background=BackgroundConfig(),
        limits=LimitsConfig(),
    ).to_pylist()
    assert row["cause"] == "changed while it was being preprocessed"
    assert row["part"] is None
    assert not any(path.is_file() for path in (tmp_path / "out" / "shards").rglob("*"))


def squares_of(*groups: int) -> list[Square]:
    """Groups of one row of an image of 64 px, all in the same memory."""
    pixels = np.zeros((64, 64, 1), np.uint8)
    row = Grid(height_px=64, width_px=64 * (1 + max(groups)), side_px=64)
    return [Square(group, row.window(group), pixels) for group in groups]


def test_a_shard_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    place = Location.of(str(tmp_path / "out"))

    def left() -> list[str]:
        return [each.name for each in (tmp_path / "out").rglob("*") if each.is_file()]

    def write(writer: ShardWriter) -> None:
        for square in squares_of(0, 1):
            writer.write("a", square)

    def write_and_die() -> None:
        with ShardWriter(place, "shards/a-000000.arrow") as writer:
            write(writer)
            raise SourceError("gone")

    with pytest.raises(SourceError):
        write_and_die()
    assert left() == []
    with ShardWriter(place, "shards/a-000000.arrow") as writer:
        write(writer)
        writer.discard()
    assert left() == []
    with ShardWriter(place, "shards/a-000000.arrow") as writer:
        write(writer)
    assert left() == ["a-000000.arrow"]


def test_a_shard_holds_what_lay_in_the_memory_when_each_group_was_written(tmp_path: Path) -> None:
    squares = squares_of(0, 3)
    with ShardWriter(Location.of(str(tmp_path)), "a.arrow") as writer:
        for image_id in ("a", "b"):
            for square in squares:
                square.pixels[:] = 10 * square.group + ord(image_id)
                writer.write(image_id, square)
    with pa.ipc.open_file(str(tmp_path / "a.arrow")) as file:
        rows = file.read_all()
    assert rows["image_id"].to_pylist() == ["a", "a", "b", "b"]
    assert rows["group"].to_pylist() == rows["column"].to_pylist() == [0, 3, 0, 3]
    assert rows["left_px"].to_pylist() == [0, 192, 0, 192]
    for row, first in zip(rows["pixels"].combine_chunks(), (97, 127, 98, 128), strict=True):
        pixels = np.array(row.as_py(), np.uint8)
        assert (pixels == first).all()
    assert rows["crc32"].to_pylist() == [
        zlib.crc32(bytes([value]) * 4096) for value in (97, 127, 98, 128)
    ]


def test_room_that_was_asked_for_and_not_used_goes_back(tmp_path: Path) -> None:
    held = []
    with ShardWriter(Location.of(str(tmp_path)), "a.arrow", planned_bytes=3_000_000) as writer:
        (square,) = squares_of(0)
        writer.write("a", square)
        (draft,) = (each for each in tmp_path.iterdir() if each.suffix.startswith(".partial"))
        held.append(draft.stat().st_blocks * 512)
    size = (tmp_path / "a.arrow").stat()
    assert held[0] >= 3_000_000
    assert size.st_size < 10_000
    assert size.st_blocks * 512 < 50_000


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="a disk of known size")
def test_a_disk_with_less_room_than_was_planned_takes_what_there_is() -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        disk = shutil.disk_usage(folder)
        with ShardWriter(Location.of(folder), "a.arrow", planned_bytes=2 * disk.total) as writer:
            writer.write("a", squares_of(0)[0])
            assert disk.free - shutil.disk_usage(folder).free < disk.free / 2
        assert Path(folder, "a.arrow").stat().st_size > 4096
