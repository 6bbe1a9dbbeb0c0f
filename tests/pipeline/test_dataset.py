"""What was stored comes back: the same pixels, without a copy, and never damaged unnoticed."""

import json
import shutil
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import rasterio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.cache import CacheConfig
from pipeline.config import GroupingConfig, PreprocessConfig
from pipeline.content_settings import settings_in
from pipeline.dataset import DamagedError, Dataset, open_dataset
from pipeline.extract import Square
from pipeline.flow import preprocess
from pipeline.grid import Window
from pipeline.messages import Kind, StrangeBatchError, read_run
from pipeline.ranges import ReadingConfig
from pipeline.records import (
    DatasetInfo,
    ImageGroups,
    ImageRecord,
    Part,
    records_of,
    stored_table,
)
from pipeline.schema import IMAGES
from pipeline.shard_writer import ShardWriter
from pipeline.storage import Location
from pipeline.verify import verify
from tests.pipeline.scenes import in_process, noise, write_raster


def assembled(record: ImageRecord, groups: ImageGroups, *, side_px: int) -> np.ndarray:
    """The image put together again from its groups."""
    image = np.zeros((record.height_px, record.width_px, record.bands), record.dtype)
    for place, square in enumerate(groups.pixels):
        top, left = int(groups.row[place]) * side_px, int(groups.column[place]) * side_px
        height, width = int(groups.valid_height_px[place]), int(groups.valid_width_px[place])
        assert not square[height:].any()
        assert not square[:, width:].any()
        image[top : top + height, left : left + width] = square[:height, :width]
    return image


@pytest.fixture
def copied(dataset: Dataset, tmp_path: Path) -> Path:
    """A copy of the dataset that a test may damage."""
    return Path(shutil.copytree(dataset.place.path, tmp_path / "copied"))


def test_groups_put_together_are_the_image_that_rasterio_reads(dataset: Dataset) -> None:
    for record in dataset.images():
        with rasterio.open(record.uri) as source:
            expected = np.moveaxis(source.read(), 0, -1)
        assert np.array_equal(assembled(record, dataset.read(record), side_px=32), expected)
    assert verify(dataset) == []


@pytest.mark.parametrize("shard_mb", [1, 64])
def test_an_image_in_a_run_of_shards_reads_like_one_in_a_single_shard(
    tmp_path: Path, shard_mb: int
) -> None:
    pixels = noise(900, 1100, 3)
    write_raster(tmp_path / "in" / "a.tif", pixels)
    config = PreprocessConfig(
        sources=str(tmp_path / "in"),
        output=str(tmp_path / "out"),
        grouping=GroupingConfig(group_side_px=128),
        shard_mb=shard_mb,
    )
    preprocess(config, run_stage=in_process)
    stored = open_dataset(str(tmp_path / "out"))
    (record,) = stored.images()
    assert len(record.parts) == (4 if shard_mb == 1 else 1)
    assert np.array_equal(assembled(record, stored.read(record), side_px=128), pixels)
    across = stored.read(record, groups=slice(18, 45))  # from one shard into the next
    assert across.group.tolist() == list(range(18, 45))


def test_local_pixels_are_views_on_the_memory_map(dataset: Dataset) -> None:
    record = dataset.images()[0]
    found = dataset.read(record)
    mapped = dataset._map(record.parts[0].shard)
    for square in found.pixels:
        assert mapped.address <= square.ctypes.data < mapped.address + mapped.size
        assert not square.flags.owndata
        assert not square.flags.writeable
        assert square.flags.aligned
    again = dataset.read(record)
    assert again.pixels[0].ctypes.data == found.pixels[0].ctypes.data


def test_a_shard_is_an_arrow_file_that_others_can_open(dataset: Dataset) -> None:
    record = dataset.images()[0]
    (part,) = record.parts
    with pa.memory_map(dataset.place.child(part.shard).path) as source:
        file = pa.ipc.open_file(source)
        batch = file.get_batch(part.first_batch + 1)
    assert batch.num_rows == 1
    assert batch["image_id"].to_pylist() == [record.image_id]
    assert batch.schema.field("pixels").type.shape == [32, 32, 3]
    assert np.array_equal(batch["pixels"].to_numpy_ndarray()[0], dataset.read(record).pixels[1])


def test_threads_may_read_at_the_same_time(dataset: Dataset) -> None:
    records = dataset.images() * 20
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda record: len(dataset.read(record).pixels), records))
    assert found == [len(record.groups) for record in records]


def test_a_flipped_bit_a_short_shard_and_another_table_are_noticed(copied: Path) -> None:
    stored = open_dataset(str(copied))
    record = stored.images()[0]
    (part,) = record.parts
    shard = copied / part.shard
    whole = bytearray(shard.read_bytes())
    whole[part.start_byte + part.num_bytes // part.num_batches - 100] ^= 1
    shard.write_bytes(whole)
    with pytest.raises(ValueError, match=r"group 0 of image .* is damaged \(checksum\)"):
        open_dataset(str(copied)).read(record)
    assert len(verify(open_dataset(str(copied)))) == 1
    shard.write_bytes(whole[: part.start_byte + 100])
    with pytest.raises(ValueError, match="is cut short"):
        open_dataset(str(copied)).read(record)
    shard.unlink()
    with pytest.raises(FileNotFoundError, match=r"[0-9a-f]\.arrow: not found"):
        open_dataset(str(copied)).read(record)
    (images,) = copied.glob("images-*.parquet")
    with images.open("ab") as table:
        table.write(b"more")
    with pytest.raises(ValueError, match=r"images-.*parquet is damaged"):
        open_dataset(str(copied))


def test_any_byte_of_a_group_that_is_damaged_is_noticed_and_names_its_image(
    dataset: Dataset, copied: Path
) -> None:
    record = dataset.images()[0]
    (part,) = record.parts
    shard, good = copied / part.shard, dataset.read(record)
    whole, size = shard.read_bytes(), part.num_bytes // part.num_batches
    noticed: list[DamagedError] = []
    unnoticed: list[ImageGroups] = []
    for place in range(0, size, 7):
        at = part.start_byte + (place % part.num_batches) * size + place
        shard.write_bytes(whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :])
        try:
            unnoticed.append(open_dataset(str(copied)).read(record))
        except DamagedError as error:
            noticed.append(error)
            continue
        # padding, or the name of the image, which nothing reads
        for name in ("group", "row", "column", "valid_height_px", "valid_width_px", "crc32"):
            assert np.array_equal(getattr(unnoticed[-1], name), getattr(good, name))
        assert all(map(np.array_equal, unnoticed[-1].pixels, good.pixels))
    assert len(noticed) > 10 * len(unnoticed)
    assert {error.image_id for error in noticed} == {record.image_id}
    assert all(str(error).endswith("preprocess again") for error in noticed)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_bytes_that_pretend_to_be_groups_are_refused_or_read_within_bounds(
    dataset: Dataset, data: st.DataObject
) -> None:
    record = dataset.images()[0]
    (part,) = record.parts
    kind = Kind(side_px=32, bands=3, dtype="uint8")
    size = part.num_bytes // part.num_batches
    content = bytearray(dataset._map(part.shard)[part.start_byte :][: 2 * size])
    metadata = int.from_bytes(content[4:8], "little")
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, metadata))
        value = data.draw(st.integers(0, 255))
        content[at] = content[size + at] = value  # alike in both messages
    held = pa.py_buffer(bytes(content))
    try:
        run = read_run(held, count=2, kind=kind)
    except StrangeBatchError:
        return
    assert run.pixels.shape == (2, 32, 32, 3)
    for array in (run.pixels, *run.columns.values()):
        first = array.ctypes.data - held.address
        last = first + size + array[1].nbytes
        assert 0 <= first < last <= held.size


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_damaged_groups_are_those_whose_own_checksum_is_wrong(
    dataset: Dataset, data: st.DataObject
) -> None:
    record = max(dataset.images(), key=lambda record: record.parts[0].num_batches)
    part, count = record.parts[0], record.parts[0].num_batches
    content = bytearray(dataset._map(part.shard)[part.start_byte :][: part.num_bytes])
    kind = Kind(side_px=32, bands=record.bands, dtype=record.dtype)
    metadata = 8 + int.from_bytes(content[4:8], "little")
    size = len(content) // count
    for _ in range(data.draw(st.integers(0, 3))):
        at = data.draw(st.integers(metadata, size - 1))
        content[data.draw(st.integers(0, count - 1)) * size + at] ^= data.draw(st.integers(1, 255))
    run = read_run(pa.py_buffer(bytes(content)), count=count, kind=kind)
    right = [zlib.crc32(np.ascontiguousarray(square)) for square in run.pixels]
    assert count > 1
    assert run.damaged().tolist() == (run.columns["crc32"] != right).tolist()


def test_one_checksum_of_all_bytes_follows_from_those_that_are_stored(tmp_path: Path) -> None:
    """Of groups of 75 bytes, which Arrow pads."""
    pixels = noise(5, 5, 3, dtype="uint8")
    window = Window(top_px=0, left_px=0, height_px=5, width_px=5)
    with ShardWriter(Location.of(str(tmp_path)), "a.arrow") as writer:
        for group in range(3):
            writer.write("a", Square(group, window, pixels + group))
        part = writer.part_since((0, 0))
    assert part is not None
    content = (tmp_path / "a.arrow").read_bytes()[part["start_byte"] :][: part["num_bytes"]]
    kind = Kind(side_px=5, bands=3, dtype="uint8")
    run = read_run(pa.py_buffer(content), count=3, kind=kind)
    assert len(content) // 3 > run.first_pixel + 75
    assert run._expected(75) == zlib.crc32(content)
    assert not run.damaged().any()


def test_records_are_the_rows_of_the_table_also_where_they_are_many(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = stored_table(dataset.place, dataset.info, "images")
    monkeypatch.setattr("pipeline.records.ROWS_TOGETHER", 2)
    many = pa.concat_tables([images] * 3)
    for row, record in zip(many.to_pylist(), records_of(many), strict=True):
        told = asdict(record)
        labels = told.pop("labels")
        assert {name: row[name] for name in labels} == labels
        assert all(each in labels for each in row if each not in IMAGES.names)
        assert told["parts"] == tuple(row["parts"])
        assert told["groups"] == tuple(row["groups"])
        assert list(told["transform"] or []) == (row["transform"] or [])
        plain = [name for name in told if name not in ("parts", "groups", "transform")]
        assert repr([told[name] for name in plain]) == repr([row[name] for name in plain])


@pytest.mark.parametrize("column", ["groups", "parts"])
def test_a_table_with_an_image_without_groups_is_refused(dataset: Dataset, column: str) -> None:
    images = stored_table(dataset.place, dataset.info, "images")
    nothing = pa.nulls(images.num_rows, images[column].type)
    images = images.set_column(images.column_names.index(column), column, nothing)
    with pytest.raises(ValueError, match="without groups or parts: preprocess again"):
        records_of(images)


@pytest.mark.parametrize("num_bytes", [0, 8, 32 * 32 * 3, 10**15])
def test_a_part_that_claims_another_size_than_its_pixels_have_is_refused_unread(
    dataset: Dataset, num_bytes: int
) -> None:
    record = dataset.images()[0]
    (part,) = record.parts
    claims = replace(part, num_bytes=num_bytes * part.num_batches)
    with pytest.raises(DamagedError, match=f"claims {num_bytes} bytes a group") as caught:
        dataset.read(replace(record, parts=(claims,)))
    assert caught.value.image_id == record.image_id


def test_groups_are_read_as_arrow_reads_them(dataset: Dataset) -> None:
    for record in dataset.images():
        (part,) = record.parts
        found = dataset.read(record)
        with pa.memory_map(dataset.place.child(part.shard).path) as source:
            file = pa.ipc.open_file(source)
            batches = [file.get_batch(part.first_batch + n) for n in range(part.num_batches)]
        for name in ("group", "row", "column", "valid_height_px", "valid_width_px", "crc32"):
            values = [batch[name][0].as_py() for batch in batches]
            assert getattr(found, name).tolist() == values
        for batch, square in zip(batches, found.pixels, strict=True):
            assert np.array_equal(batch["pixels"].to_numpy_ndarray()[0], square)
            assert batch["crc32"][0].as_py() == zlib.crc32(square.tobytes())


@pytest.mark.parametrize(
    "name", ["../secret.arrow", "/etc/passwd", "shards/../../x.arrow", "s3://b/x", "shards/x.arrow"]
)
def test_a_shard_outside_the_dataset_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="which no dataset of ours holds"):
        Part(shard=name, first_batch=0, num_batches=1, start_byte=0, num_bytes=8)


@pytest.mark.parametrize(
    "claim", [{"grid_columns": 0}, {"dtype": "object"}, {"bands": -1}, {"height_px": None}], ids=str
)
def test_an_image_that_cannot_be_is_refused_by_its_name(dataset: Dataset, claim: dict) -> None:
    record = dataset.images()[0]
    with pytest.raises(ValueError, match=f"image {record.image_id!r} claims .*preprocess again"):
        replace(record, **claim)


def test_what_is_no_finished_dataset_is_refused(copied: Path, tmp_path: Path) -> None:
    info = json.loads((copied / "dataset.json").read_text())
    for change, says in [
        ({"schema_version": 99}, "schema version 99"),
        (
            {"tables": {**info["tables"], "images": {"name": "../x", "sha256": ""}}},
            "names a table '../x'",
        ),
        ({"formats": [{"wrong": 1}]}, "dataset.json is damaged"),
        *(({"group_side_px": px}, "dataset.json is damaged") for px in ("32", 0, None, 3.5)),
    ]:
        (copied / "dataset.json").write_text(json.dumps({**info, **change}))
        with pytest.raises(ValueError, match=says):
            open_dataset(str(copied))
    (copied / "dataset.json").write_bytes(b'{"schema_version": "\xff"}')
    with pytest.raises(ValueError, match=r"dataset\.json is damaged"):
        open_dataset(str(copied))
    (copied / "dataset.json").unlink()
    with pytest.raises(ValueError, match="not a finished dataset"):
        open_dataset(str(copied))
    with pytest.raises(ValueError, match="no such folder, so not a finished dataset"):
        open_dataset(str(tmp_path / "absent"))


def test_a_cache_of_a_dataset_that_lies_here_is_refused(copied: Path, tmp_path: Path) -> None:
    reading = ReadingConfig(cache=CacheConfig(folder=str(tmp_path), limit_gb=1.0))
    with pytest.raises(ValueError, match=r"reading.cache .* keeps what comes from afar"):
        open_dataset(str(copied), reading=reading)


def places_in(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where the values of a JSON document lie."""
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield (*at, key)
            yield from places_in(value[key], (*at, key))


def told(read: Callable[..., object], *given: object) -> str:
    """What a user is told; anything but these two errors would be a traceback."""
    try:
        read(*given)
    except (ValueError, FileNotFoundError) as error:
        return str(error)
    return "nothing is wrong"


def verified(folder: Path) -> None:
    verify(open_dataset(str(folder)))


def read_settings(content: bytes) -> None:
    settings_in(DatasetInfo.from_json(content, of="x").settings)


@pytest.mark.parametrize("other", [None, "x", {}])
def test_whatever_is_wrong_in_dataset_json_is_told_in_a_line(copied: Path, other: Any) -> None:
    text = (copied / "dataset.json").read_text()
    for *above, key in places_in(json.loads(text)):
        for change in ("replaced", "missing"):
            info = json.loads(text)
            inner = reduce(getitem, above, info)
            inner[key] = other
            if change == "missing":
                del inner[key]
            content = json.dumps(info).encode()
            (copied / "dataset.json").write_bytes(content)
            for said in (told(verified, copied), told(read_settings, content)):
                assert len(said.splitlines()) == 1, (above, key, change)


def test_several_formats_are_refused_where_one_is_needed(dataset: Dataset) -> None:
    assert (dataset.format.bands, dataset.format.dtype) == (3, "uint8")
    other = replace(dataset.format, dtype="uint16")
    both = Dataset(dataset.place, info=replace(dataset.info, formats=(dataset.format, other)))
    with pytest.raises(ValueError, match=r"several formats \(3 x uint8, 3 x uint16\)"):
        _ = both.format


READ = """
import os, sys
import pyarrow.csv, pyarrow.parquet
from pipeline.dataset import open_dataset
from pipeline.storage import Location
from pipeline.tables import read_table
from pipeline.verify import verify
def threads(): return len(os.listdir("/proc/self/task"))
before = threads()
open_dataset(sys.argv[1]).images()
read_table(Location.of(sys.argv[2]), text_columns=("image",))
print(threads() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts threads as Linux does")
def test_reading_tables_starts_no_threads_that_could_outlive_the_process(
    dataset: Dataset, tmp_path: Path
) -> None:
    table = tmp_path / "labels.parquet"
    columns = {f"column{number}": np.arange(1000) for number in range(20)}
    pa.parquet.write_table(pa.table(columns | {"image": [str(n) for n in range(1000)]}), table)
    done = subprocess.run(
        [sys.executable, "-c", READ, dataset.place.path, str(table)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).resolve().parents[2],
    )
    assert done.stdout.strip() == "0"
