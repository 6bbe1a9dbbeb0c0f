"""`farreach bench ingest`: everybody reads the groups that are stored; who does not is named."""

import json
import sys
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet
from typer.testing import CliRunner

from jobs import ingest_bench, ingest_environment, ingest_ray, ingest_stage
from jobs.cli import app
from jobs.ingest_child import ACTIONS, Task
from jobs.ingest_data import ScenesConfig, write_scenes
from jobs.ingest_epochs import Delivery, Source, Tally, Timed, differs, digest_of, timed
from jobs.ingest_processes import in_process
from jobs.ingest_ranges import runs_of
from jobs.ingest_report import Point, Report
from jobs.ingest_systems import SYSTEMS
from jobs.operator_costs import LeftOut
from pipeline.dataset import open_dataset

SCENES = ScenesConfig(images=3, side_px=70, group_side_px=32, bands=3)
SMALL = ["scenes.images=3", "scenes.side_px=70", "scenes.group_side_px=32", "s3_images=2"]
SMALL += ["rounds=2", "batch_groups=4", "range_groups=4", "s3_range_groups=5"]
OF_SHARDS = [name for name, system in SYSTEMS.items() if not system.copies]


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A dataset of 3 images with 9 groups each."""
    place = tmp_path_factory.mktemp("scenes") / "dataset"
    write_scenes(SCENES, place)
    return str(place)


@pytest.fixture
def source(stored, tmp_path):
    return Source(
        dataset=stored, copy="", scratch=str(tmp_path), workers=2, batch_groups=4, range_groups=4
    )


def of_files(dataset: str) -> list[tuple[str, int, bytes]]:
    """Image, group and bytes of every group, by Arrow's own reader of files."""
    rows = []
    for shard in sorted(Path(dataset).glob("shards/*.arrow")):
        table = pa.ipc.open_file(shard).read_all()
        pixels = table["pixels"].combine_chunks().to_numpy_ndarray()
        for place, row in enumerate(table.select(["image_id", "group"]).to_pylist()):
            rows.append((row["image_id"], row["group"], pixels[place].tobytes()))
    return rows


def summary_of(rows: list[tuple[str, int, bytes]]) -> dict[str, int | str]:
    """The tally of these groups, by a plain loop."""
    words = [np.frombuffer(pixels, "<u8") for _, _, pixels in rows]
    return {
        "num_groups": len(rows),
        "num_bytes": sum(len(pixels) for _, _, pixels in rows),
        "sum": sum(int(word) for each in words for word in each) % 2**64,
        "names": digest_of([(image, group) for image, group, _ in rows]),
        "checksums": digest_of([(image, group, zlib.crc32(p)) for image, group, p in rows]),
    }


def test_the_tally_that_all_are_held_against_is_of_every_stored_group(stored):
    assert len(of_files(stored)) == 27
    assert ingest_stage.tally_of(stored) == summary_of(of_files(stored))


@pytest.mark.parametrize("system", OF_SHARDS)
@pytest.mark.parametrize("action", ["warm", "cold"])
def test_who_reads_the_shards_delivers_every_group_once(system, action, source, stored):
    found = ACTIONS[action](SYSTEMS[system], source)
    assert found.seconds > 0.0
    expected = summary_of(of_files(stored))
    if action == "cold":
        del expected["checksums"]
    assert found.arrived == expected


def test_ray_data_delivers_every_group_once(ray_local, source, stored, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    ingest_ray.write(open_dataset(stored), copy)
    found = ACTIONS["warm"](SYSTEMS["ray data"], replace(source, copy=str(copy)))
    assert found.arrived == summary_of(of_files(stored))


def test_the_parquet_copy_holds_the_same_groups_uncompressed(stored, tmp_path, monkeypatch):
    monkeypatch.setattr(ingest_ray, "SHARD_BYTES", 5 * 32 * 32 * 3)
    ingest_ray.write(open_dataset(stored), tmp_path)
    assert len(list(tmp_path.iterdir())) == 6
    rows = parquet.read_table(tmp_path).to_pylist()
    assert sorted((r["image"], r["group"], r["pixels"]) for r in rows) == sorted(of_files(stored))
    assert all(zlib.crc32(row["pixels"]) == row["crc32"] for row in rows)
    column = parquet.read_metadata(next(tmp_path.iterdir())).row_group(0).column(5)
    assert (column.path_in_schema, column.compression) == ("pixels", "UNCOMPRESSED")


@pytest.mark.parametrize("range_groups", [1, 2, 4, 9, 100])
def test_an_epoch_is_images_in_another_order_and_their_groups_in_theirs(stored, range_groups):
    dataset = open_dataset(stored)
    orders = []
    for epoch in range(4):
        runs = list(runs_of(dataset, epoch, range_groups=range_groups))
        groups = [(run.record.image_id, group) for run in runs for group in run.groups]
        assert all(run.count <= range_groups for run in runs)
        orders.append(list(dict.fromkeys(image for image, _ in groups)))
        assert groups == [(image, group) for image in orders[-1] for group in range(9)]
    assert len({tuple(order) for order in orders}) > 1


def without_one(deliveries):
    yield from list(deliveries)[1:]


def with_one_twice(deliveries):
    first, *others = deliveries
    yield from [first, first, *others[1:]]


def with_a_bit_turned(deliveries):
    for number, each in enumerate(deliveries):
        pixels = np.array(each.pixels)
        pixels.reshape(-1)[0] ^= number == 1
        yield replace(each, pixels=pixels, crc32s=None)


def with_names_exchanged(deliveries):
    first, second, *others = deliveries
    yield replace(first, images=second.images, groups=second.groups, crc32s=None)
    yield replace(second, images=first.images, groups=first.groups, crc32s=None)
    yield from others


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (without_one, "delivered 26 of 27 groups"),
        (with_one_twice, "delivered groups twice or others than are stored"),
        (with_a_bit_turned, "delivered other pixels than are stored"),
        (with_names_exchanged, "delivered pixels of other groups than it said"),
    ],
)
def test_other_groups_than_are_stored_are_noticed(spoil, said, source, stored):
    expected = summary_of(of_files(stored))
    with SYSTEMS["farreach"].opened(replace(source, range_groups=1)) as epoch:
        assert differs(timed(epoch, 0, check=True), expected) == ""
        spoiled = timed(lambda number: spoil(epoch(number)), 0, check=True)
    assert differs(spoiled, expected) == said


def test_checksums_of_others_are_noticed_at_once():
    one = Delivery(images=["a"], groups=[0], crc32s=[1], pixels=np.zeros((1, 8), np.uint8))
    with pytest.raises(ValueError, match="checksums of others"):
        Tally().check(one)


def in_this_process(task, **given):
    """What a process of its own would answer."""
    return ACTIONS[task.action](SYSTEMS[task.system], task.source)


def run(tmp_path, *settings):
    return CliRunner().invoke(
        app,
        ["bench", "ingest", *SMALL, f"output={tmp_path}/made", f"cache={tmp_path}/kept", *settings],
    )


def test_a_system_that_delivers_other_groups_is_named_and_the_bench_ends_with_1(
    tmp_path, monkeypatch
):
    def forgetful(task, **given):
        found = in_this_process(task)
        if task.system == "raw bytes":
            return found
        return Timed(seconds=found.seconds, arrived={**found.arrived, "num_groups": 26})

    monkeypatch.setattr(ingest_bench, "apart", forgetful)
    found = run(tmp_path, "places=[warm]", "systems=[raw bytes, farreach]")
    assert found.exit_code == 1
    assert "not the stored groups came from farreach (warm: delivered 26 of 27 groups" in " ".join(
        found.output.split()
    )
    points = json.loads((tmp_path / "made" / "ingest.json").read_text())["points"]
    assert [point["wrong"] for point in points] == [False, True]


def test_others_that_cannot_be_installed_are_named_and_the_rest_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(ingest_bench, "apart", in_this_process)
    monkeypatch.setattr(ingest_environment, "run", lambda command: "No matching distribution")
    found = run(tmp_path, "places=[warm]", "systems=[raw bytes, webdataset, litdata]")
    assert found.exit_code == 0, found.output
    assert found.output.count("its environment cannot be made: No matching distribution") == 2
    points = json.loads((tmp_path / "made" / "ingest.json").read_text())["points"]
    assert [len(point["seconds"]) for point in points] == [2, 0, 0]


def test_without_moto_s3_is_left_out_and_says_why(tmp_path, monkeypatch):
    monkeypatch.setattr(ingest_bench, "apart", in_this_process)
    monkeypatch.setattr(ingest_bench, "is_installed", lambda: False)
    found = run(tmp_path, "places=[s3, cold]", "systems=[farreach]")
    assert found.exit_code == 0, found.output
    assert "pip install 'moto[server]'" in found.output
    points = json.loads((tmp_path / "made" / "ingest.json").read_text())["points"]
    assert [len(point["seconds"]) for point in points] == [0, 2]


def test_processes_of_their_own_read_from_s3_and_the_files_appear_whole(tmp_path):
    found = run(tmp_path, "places=[s3]", "systems=[raw bytes, farreach]", "rounds=1")
    assert found.exit_code == 0, found.output
    names = sorted(path.name for path in (tmp_path / "made").iterdir())
    assert names == ["ingest.json", "ingest.png", "ingest.txt"]
    points = json.loads((tmp_path / "made" / "ingest.json").read_text())["points"]
    assert [each["left_out"] for each in points] == [None, None]
    assert {each["num_bytes"] for each in points} == {2 * 9 * 32 * 32 * 3}
    assert "s3: farreach at" in found.output
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["2-scenes-70x70x3-in-32px"]
    again = run(tmp_path)
    assert again.exit_code == 2
    assert "exists: choose another output" in again.output


def test_what_goes_wrong_in_a_process_is_one_line_and_what_takes_too_long_is_stopped(source):
    task = Task(system="farreach", action="cold", source=replace(source, dataset="/nowhere"))
    failed = in_process(task, patience_s=100.0)
    assert isinstance(failed, LeftOut)
    assert failed.why.startswith("ValueError: /nowhere: no such folder")
    assert in_process(task, patience_s=0.01) == LeftOut(why="> 0.01 s")
    assert in_process(task, patience_s=9.0, python=Path("/bin/false")) == LeftOut(why="died (1)")


def test_an_environment_of_others_is_made_once_and_sees_the_projects_packages(
    tmp_path, monkeypatch
):
    commands = []

    def made(command):
        commands.append(command)
        if command[1:3] == ["-m", "venv"]:
            ingest_environment.packages_of(Path(command[3])).mkdir(parents=True)
        return ""

    monkeypatch.setattr(ingest_environment, "run", made)
    first = ingest_environment.python_of_others(tmp_path)
    assert ingest_environment.python_of_others(tmp_path) == first
    assert len(commands) == 2
    assert "--no-deps" in commands[1]
    (path_file,) = tmp_path.rglob("*.pth")
    assert set(path_file.read_text().splitlines()) & set(sys.path)


def test_a_ratio_is_the_median_over_rounds_and_held_against_its_bar():
    def point(system, *seconds):
        return Point(system=system, place="s3", megapixels=8.0, num_bytes=10**9, seconds=seconds)

    report = Report(
        points=[point("raw bytes", 1.0, 2.0, 9.0), point("farreach", 2.0, 2.5, 10.0)], setting=""
    )
    (verdict,) = report.verdicts()
    assert str(verdict) == "s3: farreach at 0.80 of raw bytes (0.80 asked for: yes)"
    assert report.points[1].gb_per_s == pytest.approx(0.4)
    assert report.points[1].range_gb_per_s == pytest.approx((0.1, 0.5))
    assert report.points[1].megapixels_per_s == pytest.approx(3.2)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["systems=[tfrecord]"], "systems is 'tfrecord'"),
        (["places=[]"], "places is []"),
        (["places=[warm, warm]"], "places is ['warm', 'warm']"),
        (["workers=0"], "workers is 0"),
        (["limit_s=0"], "limit_s is 0: it must be more than 0"),
        (["cache=s3://bucket/kept"], "cache is 's3://bucket/kept': it must be a local folder"),
        (["scenes.group_side_px=33"], "group_side_px 33 with 3 band(s) is no multiple of 8"),
    ],
)
def test_settings_without_meaning_end_with_2_and_one_line(settings, said):
    found = CliRunner().invoke(app, ["bench", "ingest", *settings])
    assert found.exit_code == 2
    assert said in found.output
    assert len(found.output.strip().splitlines()) == 1
