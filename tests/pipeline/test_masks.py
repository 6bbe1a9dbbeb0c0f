"""Masks beside images and inside them say which groups are kept."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import rasterio
from hypothesis import given
from hypothesis import strategies as st
from rasterio.enums import ColorInterp

from pipeline import masks
from pipeline.config import BackgroundConfig, GroupingConfig, LimitsConfig, PreprocessConfig
from pipeline.dataset import Dataset, open_dataset
from pipeline.flow import Stage, preprocess
from pipeline.grid import Grid, Window
from pipeline.masks import kept_share
from pipeline.readers.open import open_image
from pipeline.repair import repair
from tests.pipeline.scenes import in_process, noise, write_raster

SIDE_PX = 32


class Drawn:
    """A mask in memory."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values
        self.header = self

    @property
    def height_px(self) -> int:
        return self.values.shape[0]

    @property
    def width_px(self) -> int:
        return self.values.shape[1]

    def read(self, window: Window) -> np.ndarray:
        rows = slice(window.top_px, window.top_px + window.height_px)
        columns = slice(window.left_px, window.left_px + window.width_px)
        part = self.values[rows, columns, None]
        assert part.shape[:2] == (window.height_px, window.width_px)
        return part


LENGTH = st.integers(1, 60)


@given(LENGTH, LENGTH, LENGTH, LENGTH, st.integers(1, 60), st.integers(0, 9))
def test_the_share_of_a_mask_is_that_of_its_value_at_every_px(
    height: int, width: int, mask_height: int, mask_width: int, side: int, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    values = (generator.random((mask_height, mask_width)) < 0.5) * 255
    grid = Grid(height_px=height, width_px=width, side_px=side)
    window = grid.window(int(generator.integers(grid.num_groups)))
    seen = [
        values[int((row + 0.5) * mask_height / height), int((column + 0.5) * mask_width / width)]
        for row in range(window.top_px, window.top_px + window.height_px)
        for column in range(window.left_px, window.left_px + window.width_px)
    ]
    share = kept_share(Drawn(values), window, grid=grid)  # type: ignore[arg-type]
    assert share == pytest.approx(np.count_nonzero(seen) / len(seen))


def test_a_mask_far_finer_than_the_image_is_read_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masks, "READ_PX", 500)
    values = np.zeros((400, 100), int)
    values[:300] = 1
    grid = Grid(height_px=4, width_px=1, side_px=4)
    assert kept_share(Drawn(values), grid.window(0), grid=grid) == 0.75  # type: ignore[arg-type]


def dataset_of(source: Path, output: Path, **background: Any) -> Dataset:
    config = PreprocessConfig(
        sources=str(source),
        output=str(output),
        grouping=GroupingConfig(group_side_px=SIDE_PX),
        background=BackgroundConfig(**background),
    )
    preprocess(config, run_stage=in_process)
    return open_dataset(str(output))


def test_a_coarse_mask_of_another_format_keeps_the_groups_it_covers(tmp_path: Path) -> None:
    pixels = noise(3 * SIDE_PX, 4 * SIDE_PX, 3)
    write_raster(tmp_path / "images" / "deep" / "a.tif", pixels)
    mask = np.zeros((6, 8, 1), "uint8")
    mask[0, 1] = 7  # a quarter of group 0
    mask[4:6, 6:8] = 255  # all of group 11
    path = write_raster(tmp_path / "images.masks" / "deep" / "a.tif", mask)
    with rasterio.open(path) as source:
        png = {"driver": "PNG", "width": 8, "height": 6, "count": 1, "dtype": "uint8"}
        png |= {"crs": source.crs, "transform": source.transform}
        with rasterio.open(path.with_suffix(".png"), "w", **png) as target:
            target.write(source.read())
    path.unlink()
    asked = {"leave_out": ("mask",), "masks": str(tmp_path / "images.masks")}
    stored = dataset_of(tmp_path / "images", tmp_path / "out", **asked)
    (image,) = stored.images()
    assert list(image.groups) == [0, 11]
    assert np.array_equal(stored.read(image).pixels[0], pixels[:SIDE_PX, :SIDE_PX])
    strict = dataset_of(tmp_path / "images", tmp_path / "strict", **asked, min_content_share=0.26)
    assert list(strict.images()[0].groups) == [11]
    assert strict.info.digest != stored.info.digest


def test_a_relative_folder_of_masks_is_found_by_workers_and_later_jobs_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def far_away(stage: Stage, tasks: list[pa.Table]) -> Iterator[pa.Table]:
        monkeypatch.chdir("/")
        yield from in_process(stage, tasks)

    write_raster(tmp_path / "images" / "a.tif", noise(40, 40, 1))
    write_raster(tmp_path / "masks" / "a.tif", np.ones((5, 5, 1), "uint8"))
    monkeypatch.chdir(tmp_path)
    config = PreprocessConfig(
        sources=str(tmp_path / "images"),
        output=str(tmp_path / "out"),
        grouping=GroupingConfig(group_side_px=SIDE_PX),
        background=BackgroundConfig(leave_out=("mask",), masks="masks"),
    )
    assert preprocess(config, run_stage=far_away).images == 1
    settings = open_dataset(config.output).info.settings
    assert settings["background"]["masks"] == str(tmp_path / "masks")


def test_an_image_without_its_mask_is_put_aside(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_raster(tmp_path / "images" / f"{name}.tif", noise(40, 40, 1))
    write_raster(tmp_path / "masks" / "a.tif", np.ones((5, 5, 1), "uint8"))
    folder = str(tmp_path / "masks")
    stored = dataset_of(tmp_path / "images", tmp_path / "out", leave_out=("mask",), masks=folder)
    assert [image.image_id for image in stored.images()] == ["a"]
    (bad,) = stored.quarantine()
    assert bad["image_id"] == "b"
    assert f"no mask {folder}/b with any of .tif, .tiff" in bad["cause"]


def test_masks_that_moved_to_another_folder_are_the_same_masks(tmp_path: Path) -> None:
    folder = tmp_path / "masks"
    for name in ("a", "b"):
        write_raster(folder / f"{name}.tif", np.ones((5, 5, 1), "uint8"))
    write_raster(tmp_path / "images" / "a.tif", noise(40, 40, 1))
    dataset_of(tmp_path / "images", tmp_path / "out", leave_out=("mask",), masks=str(folder))
    shards = set((tmp_path / "out").rglob("*.arrow"))
    write_raster(tmp_path / "images" / "b.tif", noise(40, 40, 1))
    moved = folder.rename(tmp_path / "moved")
    config = PreprocessConfig(
        sources=str(tmp_path / "images"),
        output=str(tmp_path / "out"),
        grouping=GroupingConfig(group_side_px=SIDE_PX),
        background=BackgroundConfig(leave_out=("mask",), masks=str(moved)),
        if_exists="append",
    )
    assert preprocess(config, run_stage=in_process).images == 2
    assert shards < set((tmp_path / "out").rglob("*.arrow"))
    kept = open_dataset(str(tmp_path / "out")).info.settings["background"]["masks"]
    assert kept == str(moved)


def test_an_image_whose_mask_changed_is_noticed_like_one_that_changed_itself(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "masks"
    for name in ("a", "b"):
        write_raster(tmp_path / "images" / f"{name}.tif", noise(40, 40, 1))
        write_raster(folder / f"{name}.tif", np.ones((5, 5, 1), "uint8"))
    asked = {"leave_out": ("mask",), "masks": str(folder)}
    before = dataset_of(tmp_path / "images", tmp_path / "out", **asked)
    mask = np.zeros((5, 5, 1), "uint8")
    mask[0, 0] = 1
    write_raster(folder / "b.tif", mask)
    config = PreprocessConfig(
        sources=str(tmp_path / "images"),
        output=str(tmp_path / "out"),
        grouping=GroupingConfig(group_side_px=SIDE_PX),
        background=BackgroundConfig(**asked),
        if_exists="append",
    )
    with pytest.raises(ValueError, match="image 'b' has changed"):
        preprocess(config, run_stage=in_process)
    with pytest.raises(ValueError, match="image 'b' was stored"):
        repair(before, {"b"}, limits=LimitsConfig(), run_stage=in_process)
    repair(before, {"a"}, limits=LimitsConfig(), run_stage=in_process)
    preprocess(replace(config, changed="store_again"), run_stage=in_process)
    sizes = [len(image.groups) for image in open_dataset(str(tmp_path / "out")).images()]
    assert sizes == [4, 1]


def test_a_damaged_mask_is_told_as_such(tmp_path: Path, shared: Path) -> None:
    write_raster(tmp_path / "images" / "a.tif", noise(40, 40, 1))
    write_raster(tmp_path / "images" / "b.tif", noise(40, 40, 1))
    (tmp_path / "masks").mkdir()
    write_raster(tmp_path / "masks" / "b.tif", np.ones((5, 5, 1), "uint8"))
    (tmp_path / "masks" / "a.tif").write_bytes((shared / "data" / "corrupt.tif").read_bytes())
    stored = dataset_of(
        tmp_path / "images", tmp_path / "out", leave_out=("mask",), masks=str(tmp_path / "masks")
    )
    (bad,) = stored.quarantine()
    assert bad["image_id"] == "a"
    assert bad["cause"].startswith("its mask: ")


@pytest.mark.parametrize("kind", ["alpha band", "mask inside"])
def test_groups_that_are_transparent_everywhere_are_left_out(kind: str, tmp_path: Path) -> None:
    shown = np.zeros((2 * SIDE_PX, 2 * SIDE_PX), "uint8")
    shown[5, SIDE_PX + 3] = 255
    pixels = noise(2 * SIDE_PX, 2 * SIDE_PX, 3)
    path = tmp_path / "images" / "a.tif"
    if kind == "alpha band":
        write_raster(path, np.dstack([pixels, shown]), photometric="rgb", alpha="yes")
        with rasterio.open(path) as source:
            assert source.colorinterp[3] == ColorInterp.alpha
    else:
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
            write_raster(path, pixels)
            with rasterio.open(path, "r+") as source:
                source.write_mask(shown)
    assert not path.with_suffix(".tif.msk").exists()
    stored = dataset_of(tmp_path / "images", tmp_path / "out", leave_out=("alpha",))
    assert list(stored.images()[0].groups) == [1]
    whole = dataset_of(tmp_path / "images", tmp_path / "whole")
    assert len(whole.images()[0].groups) == 4


def test_an_image_without_alpha_is_kept_whole(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "a.tif", np.zeros((40, 40, 1), "uint8"), nodata=0)
    with open_image(str(path)) as image:
        assert image.alpha(Window(top_px=0, left_px=0, height_px=9, width_px=9)) is None


@pytest.mark.parametrize(
    "given", [{"leave_out": ("mask",)}, {"leave_out": ("nodata",), "masks": "folder"}]
)
def test_masks_and_their_folder_belong_together(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="belong together"):
        BackgroundConfig(**given)
