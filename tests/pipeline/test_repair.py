"""A repaired dataset is the one that was published; where it cannot be, nothing is touched."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from pipeline.config import GroupingConfig, LimitsConfig, PreprocessConfig
from pipeline.dataset import open_dataset
from pipeline.flow import preprocess
from pipeline.repair import repair
from pipeline.verify import verify
from tests.pipeline.scenes import in_process, noise, write_raster
from tests.pipeline.test_quarantine import with_damaged_tiles


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four images of which one has a bad group, and a file that is none; published."""
    for number in range(3):
        write_raster(tmp_path / "in" / f"scan{number}.tif", noise(200, 230, 3, seed=number))
    with_damaged_tiles(tmp_path / "in" / "torn.tif", tiles=[(1, 1)])
    (tmp_path / "in" / "bad.tif").write_bytes(b"II*\0 nothing")
    names = ("bad", "scan0", "scan1", "scan2", "torn")
    (tmp_path / "labels.csv").write_text(
        "image,kind,size\n" + "".join(f"{name},{name[0]},{n / 7}\n" for n, name in enumerate(names))
    )
    config = PreprocessConfig(
        sources=str(tmp_path / "in"),
        output=str(tmp_path / "out"),
        labels=str(tmp_path / "labels.csv"),
        grouping=GroupingConfig(group_side_px=64),
        on_error="quarantine_groups",
        shard_mb=1,
    )
    preprocess(config, run_stage=in_process)
    return tmp_path / "out"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def damage(folder: Path, place: int) -> str:
    record = open_dataset(str(folder)).images()[place]
    shard = folder / record.parts[0].shard
    content = bytearray(shard.read_bytes())
    content[record.parts[0].start_byte + 800] ^= 1
    shard.write_bytes(content)
    return record.image_id


def mend(folder: Path) -> None:
    dataset = open_dataset(str(folder))
    damaged = {problem.image_id for problem in verify(dataset) if problem.image_id}
    repair(dataset, damaged, limits=LimitsConfig(), run_stage=in_process)


@pytest.mark.parametrize("places", [[0], [1, 3], [0, 1, 2, 3]])
def test_damaged_images_come_back_with_the_digest_and_every_pixel(
    folder: Path, places: list[int]
) -> None:
    before = open_dataset(str(folder))
    pixels = [[square.copy() for square in before.read(each).pixels] for each in before.images()]
    table, info = before.quarantine(), before.info
    del before
    for place in places:
        damage(folder, place)
    mend(folder)
    after = open_dataset(str(folder))
    assert verify(after) == []
    assert (after.info.digest, after.info.formats) == (info.digest, info.formats)
    assert after.quarantine() == table
    for record, squares in zip(after.images(), pixels, strict=True):
        assert np.array_equal(after.read(record).pixels, squares)
    assert not (folder / "unfinished.json").exists()


def test_a_lost_shard_and_a_stray_one_are_made_good(folder: Path) -> None:
    dataset = open_dataset(str(folder))
    lost = folder / dataset.images()[0].parts[0].shard
    lost.rename(lost.with_name(lost.name.replace(lost.stem[-4:], "0000")))
    mend(folder)
    assert verify(open_dataset(str(folder))) == []
    assert open_dataset(str(folder)).info.digest == dataset.info.digest


def test_a_source_that_has_changed_or_is_gone_is_refused_with_a_line(folder: Path) -> None:
    damage(folder, 1)
    before = contents(folder)
    source = folder.parent / "in" / "scan1.tif"
    os.utime(source, (1, 1))
    with pytest.raises(ValueError, match=r"scan1.tif: has changed since image 'scan1' was stored"):
        mend(folder)
    source.unlink()
    with pytest.raises(ValueError, match=r"scan1.tif: not found, so image 'scan1' cannot be"):
        mend(folder)
    assert contents(folder) == before


def test_a_source_that_gives_other_pixels_under_its_old_tag_replaces_nothing(folder: Path) -> None:
    damage(folder, 1)
    before = contents(folder)
    source = folder.parent / "in" / "scan1.tif"
    status, right = source.stat(), source.read_bytes()
    write_raster(source, noise(200, 230, 3, seed=77))
    os.utime(source, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert source.stat().st_size == status.st_size
    with pytest.raises(ValueError, match="does not give the pixels of image 'scan1' again"):
        mend(folder)
    assert contents(folder) == before
    source.write_bytes(right)
    os.utime(source, ns=(status.st_atime_ns, status.st_mtime_ns))
    mend(folder)
    assert verify(open_dataset(str(folder))) == []


def test_a_dataset_that_another_job_has_replaced_meanwhile_is_left_to_it(folder: Path) -> None:
    damage(folder, 1)
    dataset = open_dataset(str(folder))
    config = PreprocessConfig(
        sources=str(folder.parent / "in"),
        output=str(folder),
        grouping=GroupingConfig(group_side_px=64),
        if_exists="replace",
    )
    tables = {name: (folder / name).read_bytes() for name in os.listdir(folder) if "-" in name}
    preprocess(config, run_stage=in_process)
    for name, content in tables.items():  # a job killed right after it has published
        (folder / name).write_bytes(content)
    before = contents(folder)
    with pytest.raises(ValueError, match="another job has just finished here"):
        repair(dataset, {"scan1"}, limits=LimitsConfig(), run_stage=in_process)
    assert contents(folder) == before


def test_a_dataset_whose_tables_do_not_add_up_is_not_repaired(folder: Path) -> None:
    damage(folder, 0)
    info = (folder / "dataset.json").read_text()
    digest = open_dataset(str(folder)).info.digest
    (folder / "dataset.json").write_text(info.replace(digest, "sha256:" + "0" * 64))
    with pytest.raises(ValueError, match="its tables are damaged"):
        mend(folder)
    shutil.rmtree(folder)
