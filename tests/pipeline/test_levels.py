"""The level of a pyramid is chosen by its number, or by how large its px are."""

import math
from pathlib import Path
from typing import Any

import openslide
import pyarrow as pa
import pytest
import rasterio

from pipeline.config import GroupingConfig, LimitsConfig, PreprocessConfig
from pipeline.dataset import open_dataset
from pipeline.flow import preprocess
from pipeline.plan import probe_images
from pipeline.sources import SOURCES
from tests.pipeline.scenes import in_process, noise, write_raster


def probed(path: Path, **grouping: Any) -> dict[str, Any]:
    images = pa.Table.from_pylist([{"image_id": "a", "uri": str(path)}], schema=SOURCES)
    config = GroupingConfig(group_side_px=16, **grouping)
    (row,) = probe_images(images, grouping=config, limits=LimitsConfig()).to_pylist()
    return row


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    """A scene at 0.5 m, with overviews at 1 m and 4 m."""
    path = write_raster(tmp_path / "a.tif", noise(512, 512, 1), tiled=True)
    with rasterio.open(path, "r+") as source:
        source.build_overviews([2, 8])
    return path


@pytest.mark.parametrize(("resolution", "level"), [(0.5, 0), (1.05, 1), (0.95, 1), (4.0, 2)])
def test_the_level_nearest_to_a_ground_resolution_is_taken(
    scene: Path, resolution: float, level: int
) -> None:
    header = probed(scene, resolution=resolution)["header"]
    assert header["level"] == level
    assert header["width_px"] == 512 // (1, 2, 8)[level]
    assert header["transform"][0] == pytest.approx((0.5, 1.0, 4.0)[level])


def test_the_level_with_the_wanted_microns_is_the_one_openslide_has_there(shared: Path) -> None:
    path = shared / "data" / "boxes.tiff"
    with openslide.OpenSlide(path) as slide:
        base = float(slide.properties["openslide.mpp-x"])
        for level, down in enumerate(slide.level_downsamples):
            header = probed(path, mpp=1.04 * base * down)["header"]
            assert header["level"] == level
            assert (header["width_px"], header["height_px"]) == slide.level_dimensions[level]


def test_an_image_without_such_a_level_or_without_a_spacing_is_put_aside_with_the_reason(
    scene: Path, shared: Path
) -> None:
    cause = probed(scene, resolution=2.0)["cause"]
    assert cause == "no level within 10% of 2 CRS units per px: its levels have 0.5, 1, 4"
    assert probed(scene, resolution=2.0, spacing_tolerance=0.5)["header"]["level"] == 1
    assert "does not say its microns per px" in probed(scene, mpp=1.0)["cause"]
    slide = shared / "data" / "small.svs"
    assert (
        "no level within 10% of 2 microns per px: its levels have 0.499"
        in (probed(slide, mpp=2.0)["cause"])
    )
    assert "has no CRS" in probed(slide, resolution=1.0)["cause"]


@pytest.mark.parametrize("metres", [math.nan, math.inf, 1e-320])
def test_a_transform_that_is_no_number_chooses_no_level(tmp_path: Path, metres: float) -> None:
    transform = rasterio.Affine(metres, 0, 0, 0, -metres, 0)
    path = write_raster(tmp_path / "a.tif", noise(40, 40, 1), transform=transform)
    assert "has a transform without area" in probed(path, resolution=1.0)["cause"]


def test_images_of_one_dataset_may_come_from_different_levels(scene: Path, tmp_path: Path) -> None:
    coarse = scene.with_name("b.tif")
    with rasterio.open(scene) as source:
        pixels = source.read(out_shape=(1, 256, 256))
        transform = source.transform @ source.transform.scale(2)
    write_raster(coarse, pixels.transpose(1, 2, 0), transform=transform)
    output = str(tmp_path / "dataset")
    grouping = GroupingConfig(group_side_px=64, resolution=1.0)
    config = PreprocessConfig(sources=[str(scene), str(coarse)], output=output, grouping=grouping)
    preprocess(config, run_stage=in_process)
    images = open_dataset(output).images()
    assert [(image.level, image.width_px) for image in images] == [(1, 256), (0, 256)]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"level": 1, "mpp": 0.5}, "grouping has level 1, mpp 0.5: the level is chosen by one"),
        ({"mpp": 0.0}, "grouping.mpp 0 must be more than 0"),
        ({"resolution": -1.0}, "grouping.resolution -1 must be more than 0"),
    ],
)
def test_a_level_chosen_in_two_ways_or_in_none_that_exists_is_refused(
    given: dict[str, float], says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        GroupingConfig(group_side_px=16, **given)
