"""Verify: what is intact has no problem, and every kind of damage has a line that names it."""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import s3fs

from pipeline.config import BackgroundConfig, GroupingConfig, PreprocessConfig
from pipeline.dataset import Dataset, open_dataset
from pipeline.flow import preprocess
from pipeline.records import Part
from pipeline.verify import Problem, runs, verify
from tests.pipeline.scenes import in_process, noise, write_raster


@pytest.fixture
def copied(dataset: Dataset, tmp_path: Path) -> Path:
    return Path(shutil.copytree(dataset.place.path, tmp_path / "copied"))


def part_of(folder: Path, image: int) -> tuple[str, Path, Part]:
    record = open_dataset(str(folder)).images()[image]
    return record.image_id, folder / record.parts[0].shard, record.parts[0]


def lines(problems: list[Problem]) -> str:
    return "\n".join(problem.line for problem in problems)


def test_an_intact_dataset_has_no_problem_and_every_group_is_counted(dataset: Dataset) -> None:
    heard: list[tuple[int, int]] = []
    assert verify(dataset, progress=lambda done, total: heard.append((done, total))) == []
    assert heard[-1] == (dataset.info.groups, dataset.info.groups)


@pytest.mark.parametrize("image", [0, 1, 2])
def test_a_flipped_bit_names_its_image_and_no_other(copied: Path, image: int) -> None:
    name, shard, part = part_of(copied, image)
    whole = bytearray(shard.read_bytes())
    whole[part.start_byte + part.num_bytes - 200] ^= 1
    shard.write_bytes(whole)
    (problem,) = verify(open_dataset(str(copied)))
    assert problem.image_id == name
    assert f"of image {name!r} is damaged (checksum)" in problem.line


def test_pixels_with_checksums_of_their_own_are_still_other_content(
    copied: Path, tmp_path: Path
) -> None:
    """A group of one image laid over that of another: every crc32 fits."""
    record = open_dataset(str(copied)).images()[0]
    (part,) = record.parts
    size = part.num_bytes // part.num_batches
    shard = copied / part.shard
    whole = bytearray(shard.read_bytes())
    other = tmp_path / "in" / f"{record.image_id}.tif"
    write_raster(other, noise(record.height_px, record.width_px, 3, seed=9))
    config = PreprocessConfig(
        sources=str(tmp_path / "in"),
        output=str(tmp_path / "o"),
        grouping=GroupingConfig(group_side_px=32),
    )
    preprocess(config, run_stage=in_process)
    (foreign,) = open_dataset(str(tmp_path / "o")).images()
    assert foreign.parts[0].num_bytes // foreign.parts[0].num_batches == size
    strange = (tmp_path / "o" / foreign.parts[0].shard).read_bytes()
    begin = foreign.parts[0].start_byte
    whole[part.start_byte : part.start_byte + size] = strange[begin : begin + size]
    shard.write_bytes(whole)
    (problem,) = verify(open_dataset(str(copied)))
    assert problem.image_id == record.image_id


def test_missing_short_and_stray_files_are_named(copied: Path) -> None:
    _, shard, part = part_of(copied, 0)
    whole = shard.read_bytes()
    (copied / "shards" / shard.name.replace(shard.stem[-4:], "0000")).write_bytes(b"stray")
    (copied / "images-000000000000.parquet").write_bytes(b"stray")
    (copied / "shards" / "notes.txt").write_text("not ours")
    table, stray = verify(open_dataset(str(copied)))
    assert "no part of the dataset refers to images-000000000000.parquet" in table.line
    assert "no part of the dataset refers to shards/" in stray.line
    assert (table.image_id, stray.image_id) == (None, None)
    shard.write_bytes(whole[: part.start_byte + part.num_bytes - 8])
    assert "is cut short" in lines(verify(open_dataset(str(copied))))
    shard.unlink()
    problems = verify(open_dataset(str(copied)))
    assert {problem.image_id for problem in problems} >= {
        record.image_id for record in open_dataset(str(copied)).images()
    }
    assert f"{shard.name} is missing" in lines(problems)
    (copied / "unfinished.json").write_text("{}")
    assert "no part of" not in lines(verify(open_dataset(str(copied))))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("images", lambda info: info["images"] + 1),
        ("groups", lambda info: 0),
        ("digest", lambda info: "sha256:" + 64 * "0"),
        ("splits", lambda info: {"train": 1}),
        ("quarantined", lambda info: 7),
        ("bad_groups", lambda info: 7),
        ("formats", lambda info: [{**info["formats"][0], "band_mean": [1.0, 2.0, 3.0]}]),
    ],
)
def test_a_number_in_dataset_json_that_the_tables_deny_is_named(
    copied: Path, name: str, change: Callable[[dict[str, object]], object]
) -> None:
    info = json.loads((copied / "dataset.json").read_text())
    (copied / "dataset.json").write_text(json.dumps({**info, name: change(info)}))
    (problem,) = verify(open_dataset(str(copied)))
    assert f"dataset.json says {name} " in problem.line


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_statistics_that_overflow_are_no_damage(tmp_path: Path) -> None:
    pixels = np.full((64, 128, 1), 1e200)
    pixels[:, :64], pixels[:2, 64:] = np.nan, -1e200
    config = PreprocessConfig(
        sources=str(write_raster(tmp_path / "a.tif", pixels)),
        output=str(tmp_path / "out"),
        grouping=GroupingConfig(group_side_px=64),
        background=BackgroundConfig(leave_out=()),
    )
    preprocess(config, run_stage=in_process)
    dataset = open_dataset(config.output)
    assert not np.isfinite(dataset.format.band_std).any()
    assert verify(dataset) == []


def test_a_damaged_quarantine_table_is_named(copied: Path) -> None:
    (table,) = copied.glob("quarantine*.parquet")
    table.write_bytes(table.read_bytes() + b"more")
    (problem,) = verify(open_dataset(str(copied)))
    assert f"{table.name} is damaged" in problem.line


def test_a_long_image_is_read_in_runs_that_fit_in_memory(dataset: Dataset) -> None:
    record = replace(dataset.images()[0], groups=tuple(range(10_000)))
    slices = list(runs(record, group_side_px=512))
    assert all(each.stop - each.start == 20 for each in slices[:-1])
    assert [each.start for each in slices[1:]] == [each.stop for each in slices[:-1]]
    assert slices[-1].stop == 10_000


def test_damage_in_a_bucket_is_found_as_on_a_disk(
    s3: s3fs.S3FileSystem, dataset: Dataset, scans: Path
) -> None:
    s3.put(dataset.place.path, "scans/there", recursive=True)
    assert verify(open_dataset("s3://scans/there")) == []
    record = dataset.images()[1]
    shard = f"scans/there/{record.parts[0].shard}"
    whole = bytearray(s3.cat_file(shard))
    whole[record.parts[0].start_byte + 600] ^= 4
    s3.pipe_file(shard, bytes(whole))
    (problem,) = verify(open_dataset("s3://scans/there"))
    assert problem.image_id == record.image_id
    s3.rm_file(shard)
    assert "is missing" in lines(verify(open_dataset("s3://scans/there")))


def test_labels_are_part_of_the_digest_that_is_computed_again(tmp_path: Path, scans: Path) -> None:
    names = ["part0/scan0", "part0/scan2", "part1/scan1"]
    (tmp_path / "labels.csv").write_text(
        "image,kind,size\n" + "".join(f"{name},k{n},{n / 3}\n" for n, name in enumerate(names))
    )
    config = PreprocessConfig(
        sources=str(scans),
        output=str(tmp_path / "out"),
        labels=str(tmp_path / "labels.csv"),
        grouping=GroupingConfig(group_side_px=32, bands=[3, 1]),
    )
    report = preprocess(config, run_stage=in_process)
    assert verify(open_dataset(report.output)) == []


def test_a_table_with_another_label_and_its_own_checksum_changes_the_digest(copied: Path) -> None:
    info = json.loads((copied / "dataset.json").read_text())
    path = copied / info["tables"]["images"]["name"]
    table = pa.parquet.read_table(path)
    first, *others = table["split"].to_pylist()
    split = pa.array(["test" if first == "train" else "train", *others])
    table = table.set_column(table.column_names.index("split"), "split", split)
    pa.parquet.write_table(table, path)
    info["tables"]["images"]["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (copied / "dataset.json").write_text(json.dumps(info))
    assert "dataset.json says digest" in lines(verify(open_dataset(str(copied))))
