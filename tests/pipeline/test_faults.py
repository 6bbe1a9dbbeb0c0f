"""A damaged source is put aside; a machine or a store that fails ends the job."""

import errno
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import Mock

import pyarrow as pa
import pytest
import s3fs
from PIL import Image

from pipeline.config import GroupingConfig, LimitsConfig, PreprocessConfig
from pipeline.flow import Stage, preprocess
from pipeline.grid import Window
from pipeline.plan import probe_images
from pipeline.readers.faults import fault_of
from pipeline.readers.open import open_image
from pipeline.readers.protocol import SourceError
from tests.pipeline.scenes import in_process, noise, sources, stores, write_raster

GROUPING = GroupingConfig(group_side_px=32)
NOWHERE = "http://127.0.0.1:1"


def probe(*uris: str) -> list[dict[str, object]]:
    images = sources({str(number): uri for number, uri in enumerate(uris)})
    return probe_images(images, grouping=GROUPING, limits=LimitsConfig()).to_pylist()


@contextmanager
def no_more_open_files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = os.open(os.devnull, os.O_RDONLY)
    os.close(used)
    resource.setrlimit(resource.RLIMIT_NOFILE, (used, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def away(monkeypatch: pytest.MonkeyPatch) -> None:
    """The store does not answer any more."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", NOWHERE)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.mark.parametrize("name", ["a.tif", "small.svs"])
def test_a_process_out_of_files_does_not_take_good_images_for_damaged(
    tmp_path: Path, shared: Path, name: str
) -> None:
    write_raster(tmp_path / "a.tif", noise(64, 64, 3))
    (tmp_path / "small.svs").symlink_to(shared / "data" / "small.svs")
    uri = str(tmp_path / name)
    assert probe(uri)[0]["cause"] is None
    with no_more_open_files():
        rows = probe(uri, uri)
    assert len(rows) == 1  # the next one would only wait for the same fault
    assert "Too many open files" in str(rows[0]["fault"])
    assert uri in str(rows[0]["fault"])


def test_a_disk_that_cannot_be_read_is_no_damaged_image(tmp_path: Path) -> None:
    uri = tmp_path / "a.tif"
    uri.symlink_to("/proc/self/mem")  # opens, and answers a read with EIO
    (row,) = probe(str(uri))
    assert row["fault"] == f"{uri}: [Errno {errno.EIO}] Input/output error"


def test_damaged_missing_and_forbidden_files_are_no_faults(tmp_path: Path) -> None:
    (tmp_path / "bad.tif").write_bytes(b"II*\0 nothing")
    rows = probe(str(tmp_path / "bad.tif"), str(tmp_path / "gone.tif"), str(tmp_path / "gone.svs"))
    assert [row["fault"] for row in rows] == [None] * 3
    assert all(row["cause"] for row in rows)
    assert fault_of(PermissionError("x: access refused"), uri=str(tmp_path / "bad.tif")) is None


@pytest.mark.parametrize("name", ["a.tif", "b.png", "small.svs"])
def test_a_store_that_falls_silent_ends_the_job_and_publishes_nothing(
    s3: s3fs.S3FileSystem,
    scans: Path,
    shared: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    Image.fromarray(noise(200, 200, 3)).save(tmp_path / "b.png")
    local = {"a.tif": scans / "part0" / "scan0.tif", "small.svs": shared / "data" / "small.svs"}
    s3.put_file(str(local.get(name, tmp_path / "b.png")), f"scans/in/{name}")

    def silent_later(stage: Stage, tasks: list[pa.Table]) -> Iterator[pa.Table]:
        if stores(tasks):
            away(monkeypatch)
        yield from in_process(stage, tasks)

    out = tmp_path / "out"
    config = PreprocessConfig(sources="s3://scans/in", output=str(out), grouping=GROUPING)
    with pytest.raises(OSError, match=rf"^s3://scans/in/{name}: .*onnect") as caught:
        preprocess(config, run_stage=silent_later)
    assert type(caught.value) is OSError  # exit code 1, not the user's mistake
    assert "\n" not in str(caught.value)
    assert {path.name for path in out.rglob("*") if path.is_file()} == {"unfinished.json"}


def test_the_line_names_the_source_also_where_the_output_is_out_of_reach(
    s3: s3fs.S3FileSystem, scans: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3.put_file(str(scans / "part0" / "scan0.tif"), "scans/in/a.tif")

    def silent_later(stage: Stage, tasks: list[pa.Table]) -> Iterator[pa.Table]:
        if stores(tasks):
            away(monkeypatch)
        yield from in_process(stage, tasks)

    config = PreprocessConfig(
        sources="s3://scans/in", output="s3://scans/out", grouping=GROUPING, shard_mb=1
    )
    with pytest.raises(OSError, match=r"^s3://scans/in/a.tif: .*onnect"):
        preprocess(config, run_stage=silent_later)


def test_a_store_that_falls_silent_before_a_header_is_read_is_a_fault(
    s3: s3fs.S3FileSystem, scans: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3.put_file(str(scans / "part0" / "scan0.tif"), "scans/in/a.tif")
    away(monkeypatch)
    (row,) = probe("s3://scans/in/a.tif")
    assert str(row["fault"]).startswith("s3://scans/in/a.tif: ")


@pytest.mark.parametrize("suffix", [".tif", ".jpg"])
def test_a_read_that_the_store_breaks_off_is_told_with_its_cause_and_its_window(
    s3: s3fs.S3FileSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    Image.fromarray(noise(800, 800, 3)).save(tmp_path / f"a{suffix}")
    s3.put_file(str(tmp_path / f"a{suffix}"), f"scans/a{suffix}")
    s3.copy(f"scans/a{suffix}", f"scans/b{suffix}")
    top = Window(top_px=0, left_px=0, height_px=10, width_px=800)
    bottom = Window(top_px=790, left_px=0, height_px=10, width_px=800)
    fetch, broken = s3fs.core.S3File._fetch_range, []

    def breaks_off(*arguments: object) -> bytes:
        if broken:
            raise ConnectionResetError("reset by the store")
        return fetch(*arguments)

    monkeypatch.setattr("s3fs.core.S3File._fetch_range", breaks_off)
    monkeypatch.setattr("s3fs.S3FileSystem.default_block_size", 2**15)
    s3fs.S3FileSystem.clear_instance_cache()
    with open_image(f"s3://scans/a{suffix}") as image:
        assert image.read(top).any()
        broken.append(True)
        with pytest.raises(SourceError, match="reset by the store") as caught:
            image.read(bottom)
    assert caught.value.window == bottom
    broken.clear()
    # and what a decoder made of a read that ended short is never taken for pixels
    with open_image(f"s3://scans/b{suffix}") as image:
        monkeypatch.setattr(image, "_remote", Mock(failure=ConnectionError("broken off")))
        with pytest.raises(SourceError, match="broken off"):
            image.read(top)
    fault = fault_of(caught.value, uri=f"s3://scans/a{suffix}")
    assert fault == f"s3://scans/a{suffix}: reset by the store"
    s3fs.S3FileSystem.clear_instance_cache()


def test_one_missing_object_is_put_aside_and_the_rest_goes_on(
    s3: s3fs.S3FileSystem, scans: Path
) -> None:
    s3.put_file(str(scans / "part0" / "scan0.tif"), "scans/in/a.tif")
    rows = probe("s3://scans/in/gone.tif", "s3://scans/in/gone.svs", "s3://scans/in/a.tif")
    assert [row["fault"] for row in rows] == [None] * 3
    assert [row["header"] is not None for row in rows] == [False, False, True]
    assert rows[0]["cause"] == "s3://scans/in/gone.tif: not found (no such bucket or key)"


def test_a_full_disk_under_a_slide_s_copy_is_a_fault(
    s3: s3fs.S3FileSystem, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3.put_file(str(shared / "data" / "small.svs"), "scans/small.svs")

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("shutil.copyfileobj", full)
    (row,) = probe("s3://scans/small.svs")
    assert "s3://scans/small.svs: " in str(row["fault"])
    assert "No space left on device" in str(row["fault"])
    assert row["header"] is None


def test_a_fault_is_told_through_what_a_decoder_made_of_it(tmp_path: Path) -> None:
    error = SourceError("cannot decode")
    error.__cause__ = OSError(errno.ENOMEM, "Cannot allocate memory")
    assert fault_of(error, uri="s3://b/x.tif") == "s3://b/x.tif: [Errno 12] Cannot allocate memory"
    assert fault_of(SourceError("cannot decode"), uri="s3://b/x.tif") is None
