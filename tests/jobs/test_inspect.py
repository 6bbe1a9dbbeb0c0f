"""inspect says what numpy says of the sources, and draws their pixels; verify ends with 1."""

import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
from PIL import Image
from typer.testing import CliRunner

import jobs.verify
from jobs import cli
from jobs.dataset_summary import causes_of, summary_of
from jobs.inspect import InspectConfig, main
from jobs.thumbnails import RED, drawn, thumbnail
from pipeline import dataset as datasets
from pipeline.config import GroupingConfig, PreprocessConfig
from pipeline.dataset import Dataset, open_dataset
from pipeline.flow import preprocess
from pipeline.grid import Grid
from pipeline.schema import PixelFormat
from pipeline.verify import READ_BYTES
from tests.pipeline.scenes import in_process, noise, write_raster

SIDE_PX = 64
FORMAT = PixelFormat(bands=3, dtype="uint8", band_mean=(9.0,) * 3, band_std=(1.0,) * 3)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Three scans; of the first a corner is nodata, of the second a tile cannot be read."""
    folder = tmp_path_factory.mktemp("inspected")
    tiled = {"tiled": True, "blockxsize": SIDE_PX, "blockysize": SIDE_PX, "compress": "deflate"}
    for number, (height, width) in enumerate([(300, 500), (200, 200), (64, 100)]):
        pixels = noise(height, width, 3, seed=number) // 2 + 1
        pixels[:130, :130] *= number > 0
        write_raster(folder / "in" / f"scan{number}.tif", pixels, nodata=0, **tiled)
    path = folder / "in" / "scan1.tif"
    with rasterio.open(path) as source:
        place = int(source.get_tag_item("BLOCK_OFFSET_1_2", "TIFF", bidx=1))
    content = bytearray(path.read_bytes())
    content[place : place + 64] = bytes(64)
    path.write_bytes(content)
    (folder / "in" / "bad.tif").write_bytes(b"II*\0 nothing")
    (folder / "labels.csv").write_text(
        "image,kind,cells\nscan0,a,1\nscan1,b,4\nscan2,a,\nbad,b,2\n"
    )
    config = PreprocessConfig(
        sources=str(folder / "in"),
        output=str(folder / "out"),
        labels=str(folder / "labels.csv"),
        grouping=GroupingConfig(group_side_px=SIDE_PX),
        on_error="quarantine_groups",
    )
    return open_dataset(preprocess(config, run_stage=in_process).output)


def source_of(dataset: Dataset, place: int) -> np.ndarray:
    with rasterio.open(dataset.images()[place].uri) as source:
        return np.moveaxis(source.read(), 0, -1)


def test_causes_that_differ_in_numbers_only_are_one_in_the_words_of_the_first() -> None:
    said = ["no mask masks/s1.jp2", "a.tif at row 9: cut", "no mask masks/s22.jp2"]
    bad = [
        {"uri": f"s3://scans/{name}.tif", "cause": each}
        for name, each in zip("bac", said, strict=True)
    ]
    assert causes_of(bad) == {"no mask masks/s1.jp2": 2, "the file at row 9: cut": 1}


def test_the_figures_are_those_of_the_images(dataset: Dataset) -> None:
    found = summary_of(dataset)
    assert (found.images, found.quarantined, found.bad_groups) == (3, 1, 1)
    assert found.megapixels == pytest.approx((300 * 500 + 200 * 200 + 64 * 100) / 1e6)
    assert found.width_px
    assert found.width_px.median == 200
    assert found.classes == {"kind": {"a": 2, "b": 1}}
    assert found.numbers["cells"]
    assert found.numbers["cells"].maximum == 4
    assert found.background_share == pytest.approx(4 / (5 * 8 + 16 + 2))
    assert sum(found.size_counts) == 3
    files = [path for path in Path(dataset.place.path).rglob("*") if path.is_file()]
    assert found.bytes_on_disk == sum(path.stat().st_size for path in files)
    assert sum(found.causes.values()) == 2
    assert not any("scan1" in cause or "bad.tif" in cause for cause in found.causes)


@pytest.mark.parametrize("side_px", [16, 77, 100, 499, 1000])
@pytest.mark.parametrize("place", [0, 2])
def test_a_thumbnail_holds_the_pixels_of_the_source_at_even_distances(
    dataset: Dataset, side_px: int, place: int
) -> None:
    record = dataset.images()[place]
    small = thumbnail(dataset, record, side_px=side_px)
    whole = source_of(dataset, place)
    assert np.array_equal(small.pixels, whole[:: small.step, :: small.step])
    assert max(small.pixels.shape) <= side_px
    groups = np.zeros((record.grid_rows, record.grid_columns), bool)
    groups.flat[list(record.groups)] = True
    per_px = groups.repeat(SIDE_PX, 0).repeat(SIDE_PX, 1)[: record.height_px, : record.width_px]
    assert np.array_equal(small.stored, per_px[:: small.step, :: small.step])


def test_a_thumbnail_reads_no_group_that_it_does_not_show_and_little_at_a_time(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    record, read = dataset.images()[0], []
    monkeypatch.setattr("jobs.thumbnails.READ_BYTES", 3 * SIDE_PX * SIDE_PX * 3)

    def noted(self: Dataset, record: object, *, groups: slice, check: bool) -> object:
        read.append(groups)
        return original(self, record, groups=groups, check=check)

    original = datasets.Dataset.read
    monkeypatch.setattr(datasets.Dataset, "read", noted)
    small = thumbnail(dataset, record, side_px=5)
    assert small.step == 100
    assert sum(each.stop - each.start for each in read) == small.stored.sum() < 15
    read.clear()
    thumbnail(dataset, record, side_px=500)
    assert max(each.stop - each.start for each in read) <= 3
    assert sum(each.stop - each.start for each in read) == len(record.groups)
    assert READ_BYTES < 2**25


def test_bad_groups_are_striped_red_and_left_out_ones_grey(dataset: Dataset) -> None:
    record = dataset.images()[1]
    small = thumbnail(dataset, record, side_px=200)
    grid = Grid(height_px=200, width_px=200, side_px=SIDE_PX)
    picture = drawn(small, FORMAT, grid=grid, bad_groups=[9])
    red = (picture == RED).all(axis=-1)
    assert red[128:192, 64:128].any()
    red[128:192, 64:128] = False
    assert not red.any()
    stored = small.stored[..., None]
    assert np.array_equal(picture * stored, small.pixels * stored)
    whole = thumbnail(dataset, dataset.images()[0], side_px=500)
    other = drawn(whole, FORMAT, grid=grid, bad_groups=[])
    assert (np.ptp(other[:128, :128].astype(int), axis=-1) == 0).all()


def test_other_pixels_than_bytes_are_stretched_around_their_mean(dataset: Dataset) -> None:
    record = dataset.images()[2]
    small = thumbnail(dataset, record, side_px=100)
    floats = replace(small, pixels=small.pixels[..., :1].astype("float32"))
    floats.pixels[0, 0] = np.nan
    kept = PixelFormat(bands=1, dtype="float32", band_mean=(64.0,), band_std=(20.0,))
    picture = drawn(floats, kept, grid=Grid(height_px=64, width_px=100, side_px=64), bad_groups=[])
    expected = np.clip((small.pixels[5, 7, 0] - 64.0 + 50) / 100 * 255, 0, 255)
    assert picture[0, 0].tolist() == [0, 0, 0]
    assert np.allclose(picture[5, 7], expected, atol=1)


def test_inspect_prints_a_table_and_leaves_pictures(
    dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(InspectConfig(dataset=str(dataset.place), output=str(tmp_path / "look"), images=2))
    printed = capsys.readouterr().out
    for word in (
        "label kind",
        "a 2, b 1",
        "3 x uint8",
        "1 image(s), 1 group(s)",
        dataset.info.digest,
    ):
        assert word in printed
    assert {path.name for path in (tmp_path / "look").iterdir()} == {
        "images.png",
        "sizes.png",
        "summary.json",
    }
    figures = json.loads((tmp_path / "look" / "summary.json").read_text())
    assert figures["images"] == 3
    with Image.open(tmp_path / "look" / "images.png") as sheet:
        assert sheet.width > 300


def test_verify_ends_with_0_or_1_and_a_line_for_every_damaged_image(
    dataset: Dataset, tmp_path: Path
) -> None:
    run = CliRunner().invoke
    good = run(cli.app, ["verify", str(dataset.place)])
    assert good.exit_code == 0
    assert f"is intact: 3 image(s), {dataset.info.groups} group(s)" in good.stdout
    copied = tmp_path / "copied"
    for path in Path(dataset.place.path).rglob("*.*"):
        target = copied / path.relative_to(dataset.place.path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    record = dataset.images()[1]
    shard = copied / record.parts[0].shard
    content = bytearray(shard.read_bytes())
    content[record.parts[0].start_byte + 900] ^= 1
    shard.write_bytes(content)
    bad = run(cli.app, ["verify", str(copied)])
    assert bad.exit_code == 1
    assert "of image 'scan1' is damaged" in bad.stdout
    assert "1 problem(s), 1 of 3 image(s) damaged" in bad.stderr
    (images,) = copied.glob("images*.parquet")
    images.write_bytes(b"")
    worse = run(cli.app, ["verify", str(copied)])
    assert (worse.exit_code, worse.stderr.count("\n")) == (1, 1)
    absent = run(cli.app, ["verify", str(tmp_path / "absent")])
    assert absent.exit_code == 2
    assert "not a finished dataset" in absent.stderr


def test_verify_ends_with_1_where_the_source_of_a_damaged_image_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs.verify, "connect", nullcontext)
    source = write_raster(tmp_path / "in" / "a.tif", noise(200, 200, 3))
    grouping = GroupingConfig(group_side_px=SIDE_PX)
    config = PreprocessConfig(sources=str(source), output=str(tmp_path / "out"), grouping=grouping)
    preprocess(config, run_stage=in_process)
    (shard,) = (tmp_path / "out" / "shards").iterdir()
    shard.write_bytes(shard.read_bytes()[:5000])
    source.unlink()
    ended = CliRunner().invoke(cli.app, ["verify", config.output, "--repair"])
    assert ended.exit_code == 1
    assert "a.tif: not found, so image 'a' cannot be repaired" in ended.stderr


@pytest.mark.ray
@pytest.mark.usefixtures("ray_local")
def test_verify_repairs_on_ray_workers_what_it_names(tmp_path: Path) -> None:
    write_raster(tmp_path / "in" / "a.tif", noise(200, 200, 3))
    grouping = GroupingConfig(group_side_px=SIDE_PX)
    config = PreprocessConfig(
        sources=str(tmp_path / "in"), output=str(tmp_path / "out"), grouping=grouping
    )
    report = preprocess(config, run_stage=in_process)
    (shard,) = (tmp_path / "out" / "shards").iterdir()
    shard.write_bytes(shard.read_bytes()[:5000])
    assert CliRunner().invoke(cli.app, ["verify", report.output]).exit_code == 1
    repaired = CliRunner().invoke(cli.app, ["verify", report.output, "--repair"])
    assert repaired.exit_code == 0, repaired.stderr
    assert "stored 1 image(s) again" in repaired.stdout
    assert open_dataset(report.output).info.digest == report.digest
    assert CliRunner().invoke(cli.app, ["verify", report.output]).exit_code == 0
