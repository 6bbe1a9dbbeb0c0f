"""A job killed at any moment and begun again ends as if it had never been killed."""

import json
import os
import random
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import s3fs

from pipeline.config import (
    BackgroundConfig,
    GroupingConfig,
    LimitsConfig,
    PreprocessConfig,
    SplitConfig,
)
from pipeline.dataset import Dataset, open_dataset
from pipeline.flow import PreprocessReport, Stage, preprocess
from pipeline.verify import verify
from tests.pipeline.killing import killed_at
from tests.pipeline.scenes import backwards, in_process, noise, stores, write_raster
from tests.pipeline.test_faults import away
from tests.pipeline.test_output import changed, dies_after, files, files_of
from tests.pipeline.test_quarantine import with_damaged_tiles

KILLS = 10
DEEDS = 70
"""Files opened, renamed and deleted below the output by an undisturbed job, about."""


@pytest.fixture
def config(tmp_path: Path) -> PreprocessConfig:
    """One image of several shards, six that share some, and one that cannot be read."""
    for number, side in enumerate([900, 200, 250, 120, 60, 310, 280]):
        pixels = noise(side, side + 40, 3, seed=number)
        write_raster(tmp_path / "in" / f"{number}.tif", pixels)
    (tmp_path / "in" / "bad.tif").write_bytes(b"II*\0 nothing")
    return PreprocessConfig(
        sources=str(tmp_path / "in"),
        output=str(tmp_path / "out"),
        grouping=GroupingConfig(group_side_px=64),
        shard_mb=1,
    )


def undisturbed(config: PreprocessConfig) -> Dataset:
    """The dataset of one run over the same sources."""
    output = f"{config.output}-undisturbed"
    shutil.rmtree(output, ignore_errors=True)
    preprocess(replace(config, output=output, if_exists="refuse"), run_stage=in_process)
    return open_dataset(output)


def assert_same(config: PreprocessConfig, expected: Dataset) -> None:
    """Nothing but one whole dataset, with the content and statistics of the other one."""
    stored = open_dataset(config.output)
    assert stored.info.digest == expected.info.digest
    assert stored.info.formats == expected.info.formats
    assert verify(stored) == []
    assert files(Path(config.output)) == files_of(stored)
    assert [bad["image_id"] for bad in stored.quarantine()] == [
        bad["image_id"] for bad in expected.quarantine()
    ]


def counted(tasks: list[int]) -> Any:
    """A runner that notes how many rows each stage is given."""

    def run(stage: Stage, each: list[Any]) -> Iterator[Any]:
        tasks.append(sum(task.num_rows for task in each))
        yield from in_process(stage, each)

    return run


def test_a_job_killed_at_ten_random_moments_ends_like_one_that_never_was(
    config: PreprocessConfig,
) -> None:
    expected = undisturbed(config)
    chance = random.Random(3)
    ended = set()
    for _ in range(KILLS):
        # a run that goes on has less to do than the first one, and may end before its moment
        while not killed_at(config, chance.randint(1, DEEDS)):
            assert_same(config, expected)
            shutil.rmtree(config.output)
        ended.add(found_after_a_kill(config))
        if is_finished(config):
            assert_same(config, expected)
            shutil.rmtree(config.output)
    preprocess(config, run_stage=in_process)
    assert_same(config, expected)
    assert len(ended) >= 3, "the moments do not spread over the job"


def found_after_a_kill(config: PreprocessConfig) -> str:
    """How far the job had come; a dataset that can be opened is whole at any moment."""
    left = files(Path(config.output))
    if "dataset.json" in left:
        assert verify(open_dataset(config.output)) == []
        return "published"
    with pytest.raises(ValueError, match="not a finished dataset"):
        open_dataset(config.output)
    return f"{sum(name.startswith('shards/') for name in left)} shards"


def is_finished(config: PreprocessConfig) -> bool:
    """Whether the kill came when there was nothing left to do but to end."""
    out = Path(config.output)
    return (out / "dataset.json").exists() and files(out) == files_of(open_dataset(config.output))


@pytest.mark.parametrize("if_exists", ["append", "replace"])
def test_a_job_killed_over_a_finished_dataset_leaves_it_whole_and_ends_like_one_run(
    config: PreprocessConfig, tmp_path: Path, if_exists: str
) -> None:
    preprocess(config, run_stage=in_process)
    first = open_dataset(config.output)
    write_raster(tmp_path / "in" / "later.tif", noise(700, 500, 3, seed=9))
    write_raster(tmp_path / "in" / "0" / "early.tif", noise(70, 50, 3, seed=10))
    expected = undisturbed(config)
    again = replace(config, if_exists=if_exists)
    chance = random.Random(3)
    for _ in range(3):
        if killed_at(again, chance.randint(5, 60)):
            stored = open_dataset(config.output)
            assert verify(stored) == []
            assert stored.info.digest in (first.info.digest, expected.info.digest)
    preprocess(again, run_stage=in_process)
    assert_same(config, expected)


def test_only_what_is_missing_is_read_again(config: PreprocessConfig, tmp_path: Path) -> None:
    expected = undisturbed(config)
    with pytest.raises(KeyboardInterrupt):
        preprocess(config, run_stage=dies_after(3))
    shards = files(Path(config.output) / "shards")
    assert len(shards) == 4
    heard: list[tuple[int, int]] = []
    tasks: list[int] = []
    write_raster(tmp_path / "in" / "0" / "early.tif", noise(70, 50, 3, seed=10))
    report = preprocess(config, run_stage=counted(tasks), progress=lambda *done: heard.append(done))
    assert tasks[0] == 2  # the header of the new image, and of the one that could not be read
    assert shards < files(Path(config.output) / "shards")
    assert heard[0][0] == report.resumed_groups > 0
    assert tasks[1] + 4 == len(files(Path(config.output) / "shards"))
    assert heard[-1][0] == heard[-1][1]
    assert expected.info.digest != report.digest
    assert_same(config, undisturbed(config))


@pytest.mark.parametrize(
    "damage", ["half an entry", "no shard", "a short shard", "another's entry"]
)
def test_a_journal_that_does_not_fit_its_shards_is_not_believed(
    config: PreprocessConfig, damage: str
) -> None:
    expected = undisturbed(config)
    with pytest.raises(KeyboardInterrupt):
        preprocess(config, run_stage=dies_after(3))
    out = Path(config.output)
    shards = sorted((out / "shards").iterdir())
    entry = out / "journal" / shards[0].name
    if damage == "half an entry":
        entry.write_bytes(entry.read_bytes()[:-200])
    elif damage == "no shard":
        shards[0].unlink()
    elif damage == "a short shard":
        os.truncate(shards[0], shards[0].stat().st_size // 2)
    else:
        entry.write_bytes((out / "journal" / shards[1].name).read_bytes())
    preprocess(config, run_stage=in_process)
    assert_same(config, expected)


def test_a_source_that_changed_while_the_job_was_dead_is_stored_as_it_is_now(
    config: PreprocessConfig, tmp_path: Path
) -> None:
    empty = np.zeros((640, 640, 3), "uint8")  # leaves an entry and no shard
    write_raster(tmp_path / "in" / "00.tif", empty, nodata=0)
    with pytest.raises(KeyboardInterrupt):
        preprocess(config, run_stage=dies_after(6))
    write_raster(tmp_path / "in" / "00.tif", empty + 1, nodata=0)
    write_raster(tmp_path / "in" / "0.tif", noise(900, 940, 3, seed=78))
    path = write_raster(tmp_path / "in" / "1.tif", noise(210, 250, 3, seed=77))
    (tmp_path / "in" / "2.tif").unlink()
    os.utime(path, ns=(1, 1))
    preprocess(config, run_stage=backwards)
    assert_same(config, undisturbed(config))


def test_the_neighbours_of_a_source_that_vanished_and_came_back_are_counted_once(
    config: PreprocessConfig, tmp_path: Path
) -> None:
    source = tmp_path / "in" / "1.tif"
    shutil.copy2(source, tmp_path / "as it was")

    def dies_before_it_publishes() -> None:
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr("pipeline.flow.publish", dies)
            with pytest.raises(KeyboardInterrupt):
                preprocess(config, run_stage=in_process)

    dies_before_it_publishes()
    source.unlink()
    dies_before_it_publishes()
    shutil.copy2(tmp_path / "as it was", source)
    preprocess(config, run_stage=in_process)
    assert_same(config, undisturbed(config))


def dies(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_a_cause_that_was_mended_without_a_change_of_the_source_is_looked_at_again(
    config: PreprocessConfig,
) -> None:
    narrow = replace(config, limits=LimitsConfig(max_side_px=300))
    with pytest.raises(KeyboardInterrupt):
        preprocess(narrow, run_stage=dies_after(0))
    preprocess(config, run_stage=in_process)
    assert_same(config, undisturbed(config))


@pytest.mark.parametrize(
    ("images", "policy", "said"),
    [
        ([0], {"max_bad_images": 0}, "1 images cannot be read, more than max_bad_images 0"),
        ([0], {"on_error": "fail"}, "on_error=quarantine would go on without it"),
        ([0, 1], {}, r"none of 2 image\(s\) can be read"),
    ],
)
def test_damage_that_ended_a_job_ends_it_again_when_all_of_its_shards_are_there(
    tmp_path: Path, images: list[int], policy: dict[str, Any], said: str
) -> None:
    for number in range(2):
        tiles = [(0, 0)] if number in images else []
        with_damaged_tiles(tmp_path / "in" / f"{number}.tif", tiles=tiles)
    config = PreprocessConfig(
        sources=str(tmp_path / "in"),
        output=str(tmp_path / "out"),
        grouping=GroupingConfig(group_side_px=128),
        **policy,
    )
    for _ in range(2):
        with pytest.raises(ValueError, match=said):
            preprocess(config, run_stage=in_process)
        assert not (tmp_path / "out" / "dataset.json").exists()


def test_limits_that_became_narrower_hold_for_what_was_read_before(
    config: PreprocessConfig,
) -> None:
    with pytest.raises(KeyboardInterrupt):
        preprocess(config, run_stage=dies_after(1))
    narrow = replace(config, limits=LimitsConfig(max_side_px=300))
    preprocess(narrow, run_stage=in_process)
    assert_same(narrow, undisturbed(narrow))


@pytest.mark.parametrize("shard_mb", [2, 64])
def test_shards_of_another_size_may_follow(config: PreprocessConfig, shard_mb: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        preprocess(config, run_stage=dies_after(3))
    larger = replace(config, shard_mb=shard_mb)
    preprocess(larger, run_stage=in_process)
    assert_same(larger, undisturbed(larger))


def test_other_settings_are_refused_by_name_once_a_shard_is_stored(
    config: PreprocessConfig,
) -> None:
    with pytest.raises(KeyboardInterrupt):
        preprocess(config, run_stage=dies_after(2))
    before = files(Path(config.output))
    other = changed(config, grouping=GroupingConfig(group_side_px=32))
    with pytest.raises(ValueError, match=r"grouping.group_side_px 32, was 64.*=replace") as caught:
        preprocess(other, run_stage=in_process)
    assert "\n" not in str(caught.value)
    assert files(Path(config.output)) == before
    over = replace(other, if_exists="replace")
    preprocess(over, run_stage=in_process)
    assert_same(over, undisturbed(over))


def test_headers_alone_stand_in_no_one_s_way(config: PreprocessConfig) -> None:
    def dies_before_the_first_shard(stage: Stage, tasks: list[Any]) -> Iterator[Any]:
        if stores(tasks):
            raise KeyboardInterrupt
        yield from in_process(stage, tasks)

    with pytest.raises(KeyboardInterrupt):
        preprocess(config, run_stage=dies_before_the_first_shard)
    assert any("probed" in name for name in files(Path(config.output)))
    other = changed(config, grouping=GroupingConfig(group_side_px=32))
    preprocess(other, run_stage=in_process)
    assert_same(other, undisturbed(other))


def test_appending_rewrites_no_shard_and_gives_the_dataset_of_one_run(
    config: PreprocessConfig, tmp_path: Path
) -> None:
    labels = tmp_path / "labels.csv"

    def label() -> None:
        names = [str(p.relative_to(tmp_path / "in").with_suffix("")) for p in scans.rglob("*.tif")]
        labels.write_text("image,size\n" + "".join(f"{name},{len(name)}\n" for name in names))

    scans = tmp_path / "in"
    label()
    config = replace(config, labels=str(labels))
    preprocess(config, run_stage=in_process)
    old = {p: (p.stat().st_ino, p.stat().st_mtime_ns) for p in Path(config.output).rglob("*.arrow")}
    reader = open_dataset(config.output)
    record = reader.images()[0]
    pixels = reader.read(record).pixels
    for name in ("1b", "zz"):
        write_raster(scans / f"{name}.tif", noise(300, 500, 3, seed=ord(name[0])))
    label()
    report = preprocess(replace(config, if_exists="append"), run_stage=in_process)
    assert (report.images, report.kept_images, report.vanished) == (9, 7, [])
    assert report.megapixels == 0.3
    assert {p: (p.stat().st_ino, p.stat().st_mtime_ns) for p in old} == old
    assert_same(config, undisturbed(config))
    # who has the old dataset open reads on
    assert all(map(np.array_equal, reader.read(record).pixels, pixels))


def test_an_image_that_changed_since_is_refused_by_name_or_stored_again(
    config: PreprocessConfig, tmp_path: Path
) -> None:
    preprocess(config, run_stage=in_process)
    before = files(Path(config.output))
    write_raster(tmp_path / "in" / "3.tif", noise(120, 160, 3, seed=50))
    append = replace(config, if_exists="append")
    with pytest.raises(ValueError, match=r"in/3.tif: image '3' has changed.*store_again") as caught:
        preprocess(append, run_stage=in_process)
    assert "\n" not in str(caught.value)
    assert files(Path(config.output)) == before
    preprocess(replace(append, changed="store_again"), run_stage=in_process)
    assert_same(config, undisturbed(config))


def test_an_image_that_vanished_from_the_sources_stays_and_is_reported(
    config: PreprocessConfig, tmp_path: Path
) -> None:
    first = preprocess(config, run_stage=in_process)
    (tmp_path / "in" / "3.tif").unlink()
    report = preprocess(replace(config, if_exists="append"), run_stage=in_process)
    assert (report.vanished, report.digest) == (["3"], first.digest)
    assert verify(open_dataset(config.output)) == []


def test_append_is_refused_with_other_settings_and_without_labels(
    config: PreprocessConfig, tmp_path: Path
) -> None:
    append = replace(config, if_exists="append")
    preprocess(append, run_stage=in_process)  # to nothing
    others: dict[str, Any] = {
        "grouping.level 1, was": {"grouping": GroupingConfig(group_side_px=64, level=1)},
        "background.leave_out": {"background": BackgroundConfig(leave_out=())},
        "splits.seed 5, was 0": {"splits": SplitConfig(seed=5)},
    }
    for says, settings in others.items():
        with pytest.raises(ValueError, match=f"the dataset has other settings: {says}"):
            preprocess(replace(append, **settings), run_stage=in_process)
    names = [path.stem for path in (tmp_path / "in").iterdir()]
    (tmp_path / "labels.csv").write_text("image,kind\n" + "".join(f"{n},a\n" for n in names))
    labelled = replace(append, labels=str(tmp_path / "labels.csv"))
    preprocess(labelled, run_stage=in_process)
    with pytest.raises(ValueError, match=r"its images have labels \(kind\); append with labels="):
        preprocess(append, run_stage=in_process)


def test_where_and_when_a_source_was_found_never_reaches_the_digest(
    config: PreprocessConfig, tmp_path: Path
) -> None:
    first = undisturbed(config)
    shutil.copytree(tmp_path / "in", tmp_path / "copies")
    moved = replace(config, sources=str(tmp_path / "copies"))
    for path in (tmp_path / "copies").iterdir():
        os.utime(path, ns=(5, 5))
    assert undisturbed(moved).info.digest == first.info.digest


def test_a_store_that_dies_in_the_middle_ends_the_job_with_a_line_and_is_gone_on_with(
    s3: s3fs.S3FileSystem,
    config: PreprocessConfig,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    s3.put(f"{config.sources}/", "scans/in/", recursive=True)
    far = replace(config, sources="s3://scans/in", output="s3://scans/out")
    expected = undisturbed(replace(config, sources="s3://scans/in"))

    def dies(stage: Stage, tasks: list[Any]) -> Iterator[Any]:
        for number, done in enumerate(in_process(stage, tasks)):
            if stores(tasks) and number == 2:
                away(monkeypatch)
            yield done

    with monkeypatch.context() as monkeypatch, pytest.raises(OSError, match="onnect") as caught:
        preprocess(far, run_stage=dies)
    assert "s3://scans/" in str(caught.value)
    assert "\n" not in str(caught.value)
    s3fs.S3FileSystem.clear_instance_cache()
    report: PreprocessReport = preprocess(far, run_stage=in_process)
    assert report.resumed_groups > 0
    stored = open_dataset("s3://scans/out")
    assert stored.info.digest == expected.info.digest
    assert verify(stored) == []
    assert {name.removeprefix("scans/out/") for name in s3.find("scans/out")} == files_of(stored)


def test_a_job_that_went_on_says_so_in_unfinished_json(config: PreprocessConfig) -> None:
    with pytest.raises(KeyboardInterrupt):
        preprocess(config, run_stage=dies_after(2))
    told = json.loads((Path(config.output) / "unfinished.json").read_text())
    assert told["settings"]["grouping.group_side_px"] == 64
    preprocess(config, run_stage=in_process)
    assert open_dataset(config.output).info.job == told["job"]
