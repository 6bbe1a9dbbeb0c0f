"""The whole flow: real files good and bad, one digest however the work is spread, its memory."""

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import rasterio
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from pipeline.config import BackgroundConfig, GroupingConfig, PreprocessConfig, SplitConfig
from pipeline.dataset import open_dataset
from pipeline.flow import PreprocessReport, StageRunner, on_ray, preprocess, together
from pipeline.verify import verify
from tests.pipeline.scenes import backwards, in_process, noise, write_large_scene, write_raster

BAD = {
    "corrupt.tif": "expected 47086",
    "unopenable.tiff": "missing codec of code 52479",
    "unreadable.svs": "Bogus marker length",
}


def make(
    folder: Path, output: Path, *, run_stage: StageRunner = in_process, **settings: object
) -> PreprocessReport:
    """Preprocess a folder with small groups."""
    options = {"grouping": GroupingConfig(group_side_px=64), **settings}
    config = PreprocessConfig(sources=str(folder), output=str(output), **options)
    return preprocess(config, run_stage=run_stage)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_local")
def test_real_files_good_and_bad_make_one_dataset(shared: Path, tmp_path: Path) -> None:
    heard: list[tuple[int, int]] = []
    config = PreprocessConfig(
        sources=str(shared / "data"),
        output=str(tmp_path / "out"),
        grouping=GroupingConfig(group_side_px=128),
        splits=SplitConfig(train=1.0, validation=0.0, test=0.0),
    )
    report = preprocess(config, progress=lambda done, total: heard.append((done, total)))
    assert heard[-1][0] == heard[-1][1]
    assert report.ignored_files == ["README.md"]
    assert {Path(uri).name for uri, _, _ in report.quarantined} == set(BAD)
    for uri, _, cause in report.quarantined:
        assert BAD[Path(uri).name] in cause
    stored = open_dataset(report.output)
    assert verify(stored) == []
    assert stored.read(stored.images()[2]).pixels == []  # all-nodata
    images = {record.image_id: record for record in stored.images()}
    assert {name: len(record.groups) for name, record in images.items()} == {
        "RGB.byte": 35,
        "RGBA.uint16": 20,
        "all-nodata": 0,
        "boxes": 6,
        "float_nan": 1,
        "small": 1,
        "world.rgb": 8,
    }
    for name in ("RGB.byte", "RGBA.uint16", "world.rgb"):
        with rasterio.open(shared / "data" / f"{name}.tif") as source:
            assert images[name].crs == source.crs.to_wkt()
            assert images[name].transform == tuple(source.transform)[:6]
    assert images["small"].mpp_x == 0.499
    assert images["boxes"].mpp_y == pytest.approx(352.77778)
    assert [str(kept) for kept in stored.info.formats] == [
        "1 x float32",
        "3 x uint8",
        "4 x uint16",
    ]
    (table,) = (tmp_path / "out").glob("quarantine-*.parquet")
    quarantine = parquet.read_table(table).to_pylist()
    assert [row["image_id"] for row in quarantine] == ["corrupt", "unopenable", "unreadable"]
    assert quarantine[0]["window"] == "rows 512-640, columns 512-640"


@pytest.mark.ray
@pytest.mark.usefixtures("ray_local")
def test_a_gigabit_scene_needs_less_than_a_gigabyte_a_worker(tmp_path: Path) -> None:
    path = write_large_scene(tmp_path / "scene.tif")
    config = PreprocessConfig(
        sources=str(path), output=str(tmp_path / "out"), grouping=GroupingConfig(group_side_px=640)
    )
    report = preprocess(config)
    assert (report.groups, report.megapixels) == (100, 40.96)
    assert 0.05 < report.peak_worker_gb < 1.0
    stored = open_dataset(report.output)
    (record,) = stored.images()
    assert len(record.parts) > 1  # so that each worker had a share
    last = stored.read(record, groups=slice(99, 100))
    with rasterio.open(path) as source:
        corner = source.read(window=((5760, 6400), (5760, 6400)))
    assert np.array_equal(last.pixels[0], np.moveaxis(corner, 0, -1))


@pytest.mark.ray
@pytest.mark.usefixtures("ray_local")
def test_an_output_that_refuses_a_worker_is_told_plainly(tmp_path: Path) -> None:
    write_raster(tmp_path / "in" / "a.tif", noise(64, 64, 3))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "unfinished.json").touch()
    (tmp_path / "out" / "shards").write_text("in the way")
    with pytest.raises(OSError, match=r"out: cannot be written \(.*File exists.*shards"):
        make(tmp_path / "in", tmp_path / "out", run_stage=on_ray)
    assert not (tmp_path / "out" / "dataset.json").exists()


def test_one_damaged_image_fails_the_job_when_asked_and_nothing_looks_whole(
    shared: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"unopenable.tiff: .*codec.* \(on_error=quarantine"):
        make(shared / "data", tmp_path / "out", on_error="fail")
    assert not (tmp_path / "out").exists()
    (tmp_path / "in").mkdir()
    for name in ("corrupt.tif", "world.rgb.tif"):
        (tmp_path / "in" / name).symlink_to(shared / "data" / name)
    with pytest.raises(ValueError, match=r"corrupt.tif at rows 512-576, columns .*47086"):
        make(tmp_path / "in", tmp_path / "out", on_error="fail", shard_mb=1)
    assert not (tmp_path / "out" / "dataset.json").exists()


@pytest.mark.parametrize("shard_mb", [1, 64])
def test_a_damaged_image_leaves_no_byte_in_any_shard(
    shared: Path, tmp_path: Path, shard_mb: int
) -> None:
    (tmp_path / "in").mkdir()
    for name in ("corrupt.tif", "world.rgb.tif"):
        (tmp_path / "in" / name).symlink_to(shared / "data" / name)
    report = make(tmp_path / "in", tmp_path / "out", shard_mb=shard_mb)
    assert (report.images, len(report.quarantined)) == (1, 1)
    used = {part.shard for record in open_dataset(report.output).images() for part in record.parts}
    there = {f"shards/{path.name}" for path in (tmp_path / "out" / "shards").iterdir()}
    assert there == used
    size = sum(path.stat().st_size for path in (tmp_path / "out" / "shards").iterdir())
    assert size < 1.1 * 512 * 256 * 3


def test_a_job_in_which_nothing_can_be_read_is_refused(shared: Path, tmp_path: Path) -> None:
    for name, says in BAD.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / name).symlink_to(shared / "data" / name)
        with pytest.raises(ValueError, match=rf"none of 1 image\(s\) can be read.*{says}"):
            make(tmp_path / name, tmp_path / f"{name}.out")
        assert not (tmp_path / f"{name}.out" / "dataset.json").exists()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images of two formats, one with nodata, labelled."""
    for number, dtype in enumerate(["uint8", "float32", "uint8", "float32"]):
        pixels = noise(300 + 40 * number, 700, 2, seed=number, dtype=dtype)
        pixels[:100, :, 0] = 3
        write_raster(tmp_path / "in" / f"scan{number}.tif", pixels, nodata=3)
    (tmp_path / "labels.csv").write_text(
        "image,kind,split\nscan0,a,train\nscan1,b,train\nscan2,a,train\nscan3,b,test\n"
    )
    return tmp_path / "in"


def test_the_digest_knows_nothing_of_shards_workers_order_and_paths(
    folder: Path, tmp_path: Path
) -> None:
    labels = {"labels": str(tmp_path / "labels.csv")}
    first = make(folder, tmp_path / "1", **labels)
    others = [
        make(folder, tmp_path / "2", shard_mb=1, **labels),
        make(folder, tmp_path / "3", run_stage=backwards, shard_mb=2, **labels),
        make(folder.rename(tmp_path / "moved"), tmp_path / "4", **labels),
    ]
    assert {report.digest for report in others} == {first.digest}
    one, other = open_dataset(first.output), open_dataset(others[1].output)
    assert one.info.formats == other.info.formats  # statistics to the last bit


def test_the_digest_changes_with_a_pixel_a_label_a_split_or_a_setting(
    folder: Path, tmp_path: Path
) -> None:
    labels = tmp_path / "labels.csv"
    seen = [make(folder, tmp_path / "1", labels=str(labels)).digest]
    with rasterio.open(folder / "scan2.tif", "r+") as source:
        plane = source.read(1)
        plane[299, 650] ^= 1
        source.write(plane, 1)
    seen.append(make(folder, tmp_path / "2", labels=str(labels)).digest)
    labels.write_text(labels.read_text().replace("scan1,b", "scan1,a"))
    seen.append(make(folder, tmp_path / "3", labels=str(labels)).digest)
    labels.write_text(labels.read_text().replace("scan1,a,train", "scan1,a,test"))
    seen.append(make(folder, tmp_path / "4", labels=str(labels)).digest)
    kept = BackgroundConfig(leave_out=())
    seen.append(make(folder, tmp_path / "5", labels=str(labels), background=kept).digest)
    assert len(set(seen)) == 5


def test_statistics_are_those_of_numpy_over_valid_training_pixels(
    folder: Path, tmp_path: Path
) -> None:
    report = make(folder, tmp_path / "out", labels=str(tmp_path / "labels.csv"), shard_mb=1)
    formats = {kept.dtype: kept for kept in open_dataset(report.output).info.formats}
    for dtype, names in {"uint8": ["scan0", "scan2"], "float32": ["scan1"]}.items():
        for band in (0, 1):
            values = []
            for name in names:
                with rasterio.open(folder / f"{name}.tif") as source:
                    plane = source.read(band + 1)
                    values.append(plane[plane != 3])
            every = np.concatenate(values).astype("float64")
            assert formats[dtype].band_mean[band] == pytest.approx(every.mean(), rel=1e-12)
            assert formats[dtype].band_std[band] == pytest.approx(every.std(), rel=1e-12)


def test_a_format_without_training_images_is_measured_over_all_it_has(
    folder: Path, tmp_path: Path
) -> None:
    everything = SplitConfig(train=0.0, validation=0.0, test=1.0)
    stored = open_dataset(make(folder, tmp_path / "out", splits=everything).output)
    assert stored.info.splits == {"test": 4}
    assert all(min(kept.band_std) > 0 for kept in stored.info.formats)


def test_labels_travel_with_their_images(folder: Path, tmp_path: Path) -> None:
    report = make(folder, tmp_path / "out", labels=str(tmp_path / "labels.csv"))
    stored = open_dataset(report.output)
    assert stored.info.classes == {"kind": ("a", "b")}
    assert stored.info.label_columns == {"kind": "class"}
    assert [record.labels for record in stored.images("test")] == [{"kind": "b"}]
    assert len(stored.images("train")) == 3


def test_refused_labels_leave_no_output(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("image,kind\nscan0,a\n")
    with pytest.raises(ValueError, match="has no label"):
        make(folder, tmp_path / "out", labels=str(tmp_path / "labels.csv"))
    assert not (tmp_path / "out").exists()


def test_glass_is_refused_where_it_cannot_be_told(folder: Path, tmp_path: Path) -> None:
    glass = BackgroundConfig(leave_out=("nodata", "glass"))
    with pytest.raises(ValueError, match="glass is told in 3 bands of uint8, this has 2 of"):
        make(folder, tmp_path / "out", background=glass)
    pixels = np.full((128, 128, 3), 240, "uint8")
    pixels[64:, 64:] = (200, 120, 160)
    write_raster(tmp_path / "slides" / "a.tif", pixels)
    report = make(tmp_path / "slides", tmp_path / "slides.out", background=glass)
    assert (report.groups, report.left_out_groups) == (1, 3)
    (record,) = open_dataset(report.output).images()
    assert (record.groups, record.grid_columns) == ((3,), 2)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"group_side_px": 100, "patch_px": 16}, "100 is no multiple of patch_px 16: take 96"),
        ({"group_side_px": 8, "patch_px": 16}, "take 16"),
        ({"group_side_px": 0}, "must be positive"),
        ({"group_side_px": 32, "level": -1}, "level -1"),
        ({"group_side_px": 32, "bands": [0]}, "counted from 1"),
    ],
)
def test_groupings_that_cannot_be_are_refused(settings: dict[str, int], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        GroupingConfig(**settings)


def test_other_settings_that_cannot_be_are_refused() -> None:
    good = PreprocessConfig(sources="a", output="b", grouping=GroupingConfig(group_side_px=32))
    for wrong in ({"sources": []}, {"output": ""}, {"on_error": "x"}, {"shard_mb": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            replace(good, **wrong)
    with pytest.raises(ValueError, match="add up to 1"):
        SplitConfig(train=0.5)
    with pytest.raises(ValueError, match=r"leave_out 'glas' is unknown"):
        BackgroundConfig(leave_out=("glas",))


@pytest.mark.ray
@pytest.mark.usefixtures("ray_local")
def test_ray_hands_every_task_to_its_stage_whole() -> None:
    tasks = [pa.table({"shard": [f"{task}"] * rows}) for task, rows in enumerate([1, 3, 1, 40])]
    found = [each.to_pydict() for each in on_ray(_rows_together, tasks)]
    assert sorted((each["shard"][0], each["rows"][0]) for each in found) == [
        ("0", 1),
        ("1", 3),
        ("2", 1),
        ("3", 40),
    ]


@given(st.lists(st.integers(1, 6), max_size=60), st.integers(1, 9))
def test_tasks_are_joined_in_order_and_the_last_ones_stay_small(
    sizes: list[int], num_cpus: int
) -> None:
    ends = np.cumsum([0, *sizes]).tolist()
    tasks = [pa.table({"row": range(*span)}) for span in itertools.pairwise(ends)]
    joined = together(tasks, num_cpus=num_cpus)
    assert [row for table in joined for row in table["row"].to_pylist()] == list(range(ends[-1]))
    starts = {table["row"][0].as_py() for table in joined}
    assert starts <= set(ends)
    assert all(table.num_rows <= 4 or table.num_rows in sizes for table in joined)
    assert starts >= set(ends[:-1][-num_cpus:])


def _rows_together(table: pa.Table) -> pa.Table:
    """How many rows a stage was called with."""
    return pa.table({"shard": table["shard"][:1], "rows": [table.num_rows]})
