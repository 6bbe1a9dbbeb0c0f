"""What a user names becomes a table of images, or one line that says why not."""

import os
from pathlib import Path

import pyarrow as pa
import pytest
import s3fs
from pyarrow import parquet

from pipeline.sources import check_id, find_images
from pipeline.storage import Location


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def ids(sources: str | list[str]) -> list[str]:
    return find_images(sources).images["image_id"].to_pylist()


def test_a_folder_is_searched_and_ids_are_paths_without_suffix(tmp_path: Path) -> None:
    touch(tmp_path, "b/RGB.byte.tif", "a.SVS", "notes.txt", "b/slide.dcm")
    found = find_images(str(tmp_path))
    assert found.images["image_id"].to_pylist() == ["a", "b/RGB.byte"]
    assert found.ignored_files == ["b/slide.dcm", "notes.txt"]


def test_a_list_of_files_takes_their_names(tmp_path: Path) -> None:
    touch(tmp_path, "one/z.tif", "two/a.png")
    assert ids([str(tmp_path / "one/z.tif"), str(tmp_path / "two/a.png")]) == ["a", "z"]
    assert ids(str(tmp_path / "one/z.tif")) == ["z"]


def test_a_table_may_name_its_images_and_counts_paths_from_itself(tmp_path: Path) -> None:
    touch(tmp_path, "far/x.tif", "far/y.tif")
    (tmp_path / "list.csv").write_text("uri,image\nfar/x.tif,007\nfar/y.tif,\n")
    found = find_images(str(tmp_path / "list.csv")).images
    assert found["image_id"].to_pylist() == ["007", "y"]
    assert found["uri"].to_pylist() == [str(tmp_path / "far/x.tif"), str(tmp_path / "far/y.tif")]
    parquet.write_table(pa.table({"uri": ["far/y.tif"]}), tmp_path / "list.parquet")
    assert ids(str(tmp_path / "list.parquet")) == ["y"]


def test_two_images_of_one_name_are_refused_naming_both(tmp_path: Path) -> None:
    touch(tmp_path, "one/a.tif", "two/a.tif", "same/b.tif", "same/b.png")
    files = [str(tmp_path / "one/a.tif"), str(tmp_path / "two/a.tif")]
    with pytest.raises(ValueError, match=r"two images are called 'a': .*one/a.tif and .*two/a.tif"):
        find_images(files)
    with pytest.raises(ValueError, match=r"'b': .*b.png and .*b.tif; rename one"):
        find_images(str(tmp_path / "same"))


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    touch(tmp_path, "scans/a.tif", "list/~b.tif")
    assert Location.of("~/scans").path == str(tmp_path / "scans")
    assert Location.of("~/scans", base="/elsewhere").path == str(tmp_path / "scans")
    assert ids("~/scans") == ["a"]
    assert ids(str(tmp_path / "list")) == ["~b"]


@pytest.mark.parametrize(
    ("sources", "kind", "says"),
    [
        ("absent", FileNotFoundError, "absent: no such folder"),
        ("empty", ValueError, r"empty: no image among its 0 file\(s\)"),
        (["absent.tif"], FileNotFoundError, "absent.tif: not found"),
        (["empty"], ValueError, "empty is a folder: give it alone"),
        (["notes.txt"], ValueError, "notes.txt: no known image suffix"),
        ("nouri.csv", ValueError, "nouri.csv: no column 'uri'; it has path"),
        ("norow.csv", ValueError, "norow.csv: the table has no row"),
        ("broken.parquet", ValueError, "broken.parquet: cannot be read as a table"),
        ("gs://bucket/x", ValueError, "only local paths and s3://"),
        ("s3://", ValueError, "name a bucket"),
    ],
)
def test_what_cannot_be_found_is_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    sources: str | list[str],
    kind: type[Exception],
    says: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").touch()
    (tmp_path / "nouri.csv").write_text("path\nx.tif\n")
    (tmp_path / "norow.csv").write_text("uri\n")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(kind, match=says) as caught:
        find_images(sources)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("image", ["../a", "/a", "a//b", "a/./b", "a\\b", "a\nb", "", ".."])
def test_ids_that_could_leave_a_folder_are_refused(image: str) -> None:
    with pytest.raises(ValueError, match="cannot be an image's id"):
        check_id(image, place=Location.of("x.tif"))


def test_a_source_s_identity_changes_with_its_size_and_with_its_time(tmp_path: Path) -> None:
    def told() -> tuple[int, str]:
        (row,) = find_images(str(tmp_path)).images.to_pylist()
        assert row == find_images([str(tmp_path / "a.tif")]).images.to_pylist()[0]
        return row["source_bytes"], row["source_tag"]

    touch(tmp_path, "a.tif")
    os.utime(tmp_path / "a.tif", ns=(1, 1_600_000_000_000_000_001))
    first = told()
    assert first == ((tmp_path / "a.tif").stat().st_size, "1600000000000000001")
    os.utime(tmp_path / "a.tif", ns=(1, 1_600_000_000_000_000_002))
    assert told() != first
    (tmp_path / "a.tif").write_bytes(b"longer than it was")
    os.utime(tmp_path / "a.tif", ns=(1, 1_600_000_000_000_000_001))
    assert told() != first


def test_a_link_to_nothing_is_named_with_an_identity_nobody_knows(tmp_path: Path) -> None:
    (tmp_path / "a.tif").symlink_to(tmp_path / "gone")
    (tmp_path / "b.tif").symlink_to("b.tif")
    for row in find_images(str(tmp_path)).images.to_pylist():
        assert (row["source_bytes"], row["source_tag"]) == (None, None)


@pytest.mark.parametrize("count", [2, 40])
def test_many_remote_sources_are_told_apart_by_few_requests(
    s3: s3fs.S3FileSystem, caplog: pytest.LogCaptureFixture, count: int
) -> None:
    names = [f"{number:03d}.tif" for number in range(count)]
    for name in names:
        s3.pipe_file(f"scans/many/{name}", name.encode() * (1 + int(name[:3])))
    with caplog.at_level("INFO", logger="werkzeug"):
        folder = find_images("s3://scans/many").images
        caplog.clear()
        files = find_images([f"s3://scans/many/{name}" for name in names]).images
        assert len(caplog.records) <= 3
    assert files.equals(folder)
    for row in folder.to_pylist():
        told = s3.info(row["uri"])
        assert (row["source_bytes"], row["source_tag"]) == (told["size"], told["ETag"].strip('"'))
