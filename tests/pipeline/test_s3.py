"""The same road over S3: sources, labels and output behind a real HTTP endpoint."""

import errno
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import requests
import s3fs
from aiohttp import ClientPayloadError
from botocore.exceptions import ClientError, EndpointConnectionError

from pipeline.cache import CacheConfig
from pipeline.config import BackgroundConfig, GroupingConfig, LimitsConfig, PreprocessConfig
from pipeline.dataset import DamagedError, Dataset, open_dataset
from pipeline.flow import preprocess
from pipeline.plan import ShardNames, plan_shards, probe_images, store_tasks
from pipeline.ranges import Ranges, ReadingConfig
from pipeline.readers.open import open_image
from pipeline.readers.protocol import SourceError
from pipeline.sources import find_images
from pipeline.storage import Location
from pipeline.store import store_shards
from pipeline.verify import verify
from tests.pipeline.scenes import in_process

NAMES = ShardNames(job="0123456789ab", settings={})


def to_s3(scans: Path, output: str, **settings: object) -> PreprocessConfig:
    grouping = GroupingConfig(group_side_px=32)
    return PreprocessConfig(sources=str(scans), output=output, grouping=grouping, **settings)


def test_a_dataset_from_s3_to_s3_has_the_digest_and_pixels_of_a_local_one(
    s3: s3fs.S3FileSystem, scans: Path, dataset: Dataset
) -> None:
    s3.put(f"{scans}/", "scans/in/", recursive=True)
    config = to_s3(Path("-"), "s3://scans/out")
    config = PreprocessConfig(**{**vars(config), "sources": "s3://scans/in"})
    report = preprocess(config, run_stage=in_process)
    assert report.digest == dataset.info.digest
    remote = open_dataset("s3://scans/out")
    assert verify(remote) == []
    assert not s3.exists("scans/out/unfinished.json")
    for here, there in zip(dataset.images(), remote.images(), strict=True):
        assert there.uri.startswith("s3://scans/in/")
        local, far = dataset.read(here), remote.read(there)
        assert all(map(np.array_equal, local.pixels, far.pixels))


def test_groups_of_an_image_come_in_one_ranged_read_a_part(
    s3: s3fs.S3FileSystem, scans: Path, caplog: pytest.LogCaptureFixture
) -> None:
    preprocess(to_s3(scans, "s3://scans/ranges"), run_stage=in_process)
    remote = open_dataset("s3://scans/ranges")
    record = remote.images()[0]
    with caplog.at_level("INFO", logger="werkzeug"):
        caplog.clear()
        some = remote.read(record, groups=slice(2, 5))
        sent = [each.getMessage() for each in caplog.records]
    assert len(sent) == 1
    assert "GET" in sent[0]
    assert " 206 " in sent[0]  # partial content
    assert some.group.tolist() == list(record.groups[2:5])


def test_a_large_range_comes_in_pieces_and_a_file_that_ends_early_gives_what_it_has(
    s3: s3fs.S3FileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.ranges.PIECE_BYTES", 1000)
    whole = np.random.default_rng(0).bytes(10_000)
    s3.pipe_file("scans/blob", whole)
    ranges, place = Ranges(ReadingConfig(in_flight=3)), Location.of("s3://scans/blob")
    for start, size in [(0, 10_000), (1, 999), (17, 2345), (9_000, 1000), (0, 0)]:
        assert ranges.read(place, start, size).to_pybytes() == whole[start : start + size]
    assert ranges.read(place, 8_500, 4000).to_pybytes() == whole[8_500:]
    assert ranges.read(place, 8_000, 4000).to_pybytes() == whole[8_000:]
    assert ranges.read(place, 12_000, 10).to_pybytes() == b""
    with pytest.raises(FileNotFoundError, match="s3://scans/none: not found"):
        ranges.read(Location.of("s3://scans/none"), 0, 4000)


@pytest.mark.parametrize(
    "fault",
    [
        ConnectionError("refused"),
        TimeoutError("too slow"),
        ClientPayloadError("the body came short"),
        EndpointConnectionError(endpoint_url="http://store"),
        ClientError({"Error": {"Code": "503", "Message": "SlowDown"}}, "GetObject"),
        OSError(errno.EBUSY, "reduce your request rate"),
    ],
    ids=lambda fault: type(fault).__name__,
)
def test_a_store_that_is_away_is_asked_again_with_growing_pauses_until_patience_ends(
    fault: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, pauses, answers = [0.0], [], iter([fault] * 6)

    def ask(*_: object, **__: object) -> bytes:
        for answer in answers:
            raise answer
        return b"here"

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        clock[0] += seconds

    store = SimpleNamespace(cat_file=ask)
    monkeypatch.setattr(Location, "filesystem", store)
    monkeypatch.setattr(
        "pipeline.patience.time", SimpleNamespace(monotonic=lambda: clock[0], sleep=pause)
    )
    monkeypatch.setattr("pipeline.patience.random.uniform", lambda least, most: most)
    place = Location.of("s3://scans/blob")
    assert Ranges(ReadingConfig()).read(place, 0, 4).to_pybytes() == b"here"
    assert pauses == [0.1 * 2**attempt for attempt in range(6)]
    answers = iter(lambda: fault, None)
    said = r"^s3://scans/blob: .*; tried for 5 s \(reading\.patience_s\)$"
    with pytest.raises(TimeoutError, match=said):
        Ranges(ReadingConfig(patience_s=5)).read(place, 0, 4)
    with pytest.raises(TimeoutError, match=r"tried for 20000 s"):
        Ranges(ReadingConfig(patience_s=20_000)).read(place, 0, 4)
    assert len(pauses) > 2_000
    assert max(pauses) == 10.0
    answers = iter([PermissionError("no")])
    with pytest.raises(PermissionError, match="access refused"):
        Ranges(ReadingConfig()).read(place, 0, 4)


def test_what_was_damaged_on_the_way_into_the_cache_is_read_again_past_it(
    s3: s3fs.S3FileSystem, scans: Path, dataset: Dataset, tmp_path: Path
) -> None:
    s3.put(f"{dataset.place.path}/", "scans/cached/", recursive=True)
    cache = CacheConfig(folder=str(tmp_path), limit_gb=1)
    remote = open_dataset("s3://scans/cached", reading=ReadingConfig(cache=cache))
    record = remote.images()[0]
    shard = f"scans/cached/{record.parts[0].shard}"
    whole = s3.cat_file(shard)
    s3.pipe_file(shard, bytes(len(whole)))
    with pytest.raises(DamagedError, match="is damaged") as caught:
        remote.read(record)
    assert caught.value.image_id == record.image_id
    s3.pipe_file(shard, whole)  # the cache holds zeros
    expected = dataset.read(record).pixels
    assert all(map(np.array_equal, remote.read(record).pixels, expected))
    s3.rm(shard)  # now it holds the image
    assert all(map(np.array_equal, remote.read(record).pixels, expected))


def test_a_slide_on_s3_is_copied_read_and_the_copy_removed(
    s3: s3fs.S3FileSystem, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3.put_file(str(shared / "data" / "small.svs"), "scans/small.svs")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with open_image("s3://scans/small.svs") as slide:
        assert slide.header.mpp_x == 0.499
        assert any(tmp_path.rglob("slide.svs"))
    assert not any(tmp_path.rglob("*"))
    limits = LimitsConfig(max_download_gb=1e-6)
    with (
        pytest.raises(SourceError, match="max_download_gb"),
        open_image("s3://scans/small.svs", limits=limits),
    ):
        pass


def test_all_shards_of_a_remote_slide_are_one_task_with_one_copy(
    s3: s3fs.S3FileSystem,
    shared: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    s3.put_file(str(shared / "data" / "small.svs"), "scans/slides/a.svs")
    s3.put_file(str(shared / "data" / "small.svs"), "scans/slides/b.svs")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    given = {"grouping": GroupingConfig(group_side_px=4, patch_px=4), "limits": LimitsConfig()}
    found = find_images("s3://scans/slides").images
    shards = plan_shards(
        probe_images(found, **given),
        side_px=4,
        shard_mb=0,
        names=NAMES,
    )  # a group each
    tasks = store_tasks(shards)
    assert len(tasks) == 2 < shards.num_rows
    assert pa.concat_tables(tasks).equals(shards)
    for task, name in zip(tasks, "ab", strict=True):
        with caplog.at_level("INFO", logger="werkzeug"):
            caplog.clear()
            stored = store_shards(
                task, output=str(tmp_path / "out"), background=BackgroundConfig(), **given
            )
        assert stored["cause"].null_count == stored.num_rows == task.num_rows
        sent = [each.getMessage() for each in caplog.records]
        assert len([line for line in sent if f"GET /scans/slides/{name}.svs" in line]) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_needs_no_copy_is_one_shard_a_task(scans: Path) -> None:
    given = {"grouping": GroupingConfig(group_side_px=32), "limits": LimitsConfig()}
    probed = probe_images(find_images(str(scans)).images, **given)
    shards = plan_shards(probed, side_px=32, shard_mb=0, names=NAMES)
    for uris in ("here.svs", "s3://scans/far.tif"):
        rows = shards.to_pylist()
        for row in rows:
            row["pieces"][0]["uri"] = uris
        moved = pa.Table.from_pylist(rows, schema=shards.schema)
        assert [task.num_rows for task in store_tasks(moved)] == [1] * shards.num_rows


def test_labels_and_a_table_of_uris_may_lie_on_s3(s3: s3fs.S3FileSystem, scans: Path) -> None:
    s3.put_file(str(scans / "part0" / "scan0.tif"), "scans/lists/pictures/a.tif")
    s3.pipe_file("scans/lists/images.csv", b"image,uri\n007,pictures/a.tif\n")
    s3.pipe_file("scans/lists/labels.csv", b"image,kind\n007,oak\n")
    grouping = GroupingConfig(group_side_px=32)
    config = PreprocessConfig(
        sources="s3://scans/lists/images.csv",
        labels="s3://scans/lists/labels.csv",
        output="s3://scans/listed",
        grouping=grouping,
    )
    preprocess(config, run_stage=in_process)
    (record,) = open_dataset("s3://scans/listed").images()
    assert (record.image_id, record.labels) == ("007", {"kind": "oak"})


@pytest.mark.parametrize("where", ["sources", "output"])
def test_a_bucket_that_does_not_exist_is_one_clear_line(
    s3: s3fs.S3FileSystem, scans: Path, tmp_path: Path, where: str
) -> None:
    settings = {"sources": str(scans), "output": str(tmp_path / "out"), where: "s3://nowhere/x"}
    config = PreprocessConfig(**settings, grouping=GroupingConfig(group_side_px=32))
    with pytest.raises(FileNotFoundError, match=r"^s3://nowhere/x: not found") as caught:
        preprocess(config, run_stage=in_process)
    assert "\n" not in str(caught.value)


def test_a_store_that_refuses_or_is_away_is_one_clear_line(
    s3: s3fs.S3FileSystem, s3_endpoint: str, scans: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests.post(f"{s3_endpoint}/moto-api/reset-auth", data="0", timeout=5)
    try:
        with pytest.raises(PermissionError, match=r"^s3://scans/out: access refused .* AWS_"):
            preprocess(to_s3(scans, "s3://scans/out"), run_stage=in_process)
    finally:
        requests.post(f"{s3_endpoint}/moto-api/reset-auth", data="inf", timeout=5)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(ConnectionError, match=r"^s3://scans/out: Could not connect") as caught:
        preprocess(to_s3(scans, "s3://scans/out"), run_stage=in_process)
    assert "\n" not in str(caught.value)
