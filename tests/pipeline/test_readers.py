"""Both readers give the pixels and the place of an image as its own library does."""

from pathlib import Path

import numpy as np
import openslide
import pytest
import rasterio

from pipeline.config import LimitsConfig
from pipeline.grid import Window
from pipeline.readers.open import open_image
from pipeline.readers.protocol import SourceError
from tests.pipeline.scenes import noise, raster, write_raster

PART = Window(top_px=3, left_px=5, height_px=9, width_px=7)


def test_a_window_holds_what_rasterio_reads_there(shared: Path) -> None:
    path = shared / "data" / "RGB.byte.tif"
    with open_image(str(path)) as image, rasterio.open(path) as source:
        window = Window(top_px=300, left_px=200, height_px=9, width_px=7)
        expected = source.read()[:, 300:309, 200:207]
        assert np.array_equal(image.read(window), np.moveaxis(expected, 0, -1))
        assert image.header.crs == source.crs.to_wkt()
        assert image.header.transform == tuple(source.transform)[:6]
        assert (image.header.nodata, image.header.mpp_x) == (0, None)


def test_a_slide_has_its_spacing_and_the_pixels_of_openslide(shared: Path) -> None:
    path = shared / "data" / "small.svs"
    with open_image(str(path)) as image, openslide.OpenSlide(path) as slide:
        expected = np.asarray(slide.read_region((5, 3), 0, (7, 9)).convert("RGB"))
        assert np.array_equal(image.read(PART), expected)
        assert (image.header.mpp_x, image.header.mpp_y) == (0.499, 0.499)


def test_spacing_in_tiff_tags_agrees_with_openslide(shared: Path) -> None:
    path = shared / "data" / "boxes.tiff"
    with open_image(str(path)) as image, openslide.OpenSlide(path) as slide:
        assert image.header.mpp_x == pytest.approx(float(slide.properties["openslide.mpp-x"]))
        assert (image.header.crs, image.header.transform) == (None, None)


def test_a_level_scales_size_spacing_and_transform(shared: Path, tmp_path: Path) -> None:
    with open_image(str(shared / "data" / "boxes.tiff"), level=1) as image:
        assert (image.header.width_px, image.header.height_px) == (150, 125)
        assert image.header.mpp_x == pytest.approx(2 * 352.77778)
    path = write_raster(tmp_path / "a.tif", noise(64, 64, 1), tiled=True)
    with rasterio.open(path, "r+") as source:
        source.build_overviews([4])
    with open_image(str(path), level=1) as image:
        assert image.header.transform == (2.0, 0, 500_000, 0, -2.0, 5_800_000)
        assert image.read(Window(top_px=0, left_px=0, height_px=16, width_px=16)).shape[0] == 16
    with (
        pytest.raises(SourceError, match=r"level 2 does not exist: the file has 2 level"),
        open_image(str(path), level=2),
    ):
        pass


def test_chosen_bands_come_in_the_asked_order(tmp_path: Path) -> None:
    pixels = noise(20, 20, 4, dtype="uint16")
    path = write_raster(tmp_path / "a.tif", pixels)
    with open_image(str(path), bands=[3, 1]) as image:
        assert np.array_equal(image.read(PART), pixels[3:12, 5:12][..., [2, 0]])
        assert image.header.bands == 2


@pytest.mark.parametrize(
    ("limits", "says"),
    [
        ({"max_side_px": 511}, "512 x 40 px, beyond limits.max_side_px 511"),
        ({"max_gigapixels": 2e-5}, "beyond limits.max_gigapixels"),
        ({"max_bands": 2}, "3 bands, beyond limits.max_bands 2"),
    ],
)
def test_declared_sizes_beyond_the_limits_are_refused(
    tmp_path: Path, limits: dict[str, float], says: str
) -> None:
    path = write_raster(tmp_path / "a.tif", noise(40, 512, 3))
    with (
        pytest.raises(SourceError, match=says),
        open_image(str(path), limits=LimitsConfig(**limits)),
    ):
        pass


def test_a_sparse_file_of_enormous_tiles_is_refused_before_it_costs_memory(tmp_path: Path) -> None:
    path = tmp_path / "bomb.tif"
    options = {"tiled": True, "SPARSE_OK": True, "BIGTIFF": "YES", "compress": "deflate"}
    options |= {"blockxsize": 16384, "blockysize": 16384}
    with raster(path, height=2**18, width=2**18, bands=3, **options):
        pass
    assert path.stat().st_size < 10_000
    with pytest.raises(SourceError, match="holds tiles of 805 MB"), open_image(str(path)):
        pass


def test_another_format_behind_a_known_suffix_is_not_opened(tmp_path: Path) -> None:
    secret = write_raster(tmp_path / "secret.tif", noise(8, 8, 1))
    virtual = (
        '<VRTDataset rasterXSize="8" rasterYSize="8"><VRTRasterBand dataType="Byte" band="1">'
        f"<SimpleSource><SourceFilename>{secret}</SourceFilename><SourceBand>1</SourceBand>"
        "</SimpleSource></VRTRasterBand></VRTDataset>"
    )
    for name in ("looks.tif", "looks.png"):
        (tmp_path / name).write_text(virtual)
        with pytest.raises(SourceError), open_image(str(tmp_path / name)):
            pass
    (tmp_path / "plain.vrt").write_text(virtual)
    with (
        pytest.raises(SourceError, match=r"suffix '.vrt'"),
        open_image(str(tmp_path / "plain.vrt")),
    ):
        pass


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("corrupt.tif", "got 38232 bytes, expected 47086"),
        ("unreadable.svs", "Bogus marker length"),
        ("unopenable.tiff", "missing codec of code 52479"),
    ],
)
def test_damage_is_told_with_its_cause(shared: Path, name: str, says: str) -> None:
    with pytest.raises(SourceError, match=says):
        read_whole(shared / "data" / name)


def read_whole(path: Path) -> np.ndarray:
    with open_image(str(path)) as image:
        header = image.header
        window = Window(top_px=0, left_px=0, height_px=header.height_px, width_px=header.width_px)
        return image.read(window)
