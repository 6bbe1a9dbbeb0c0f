"""What is stored of a file, in whatever format, is what a plain read of the whole of it gives."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import pytest
import rasterio
import rasterio.shutil
from PIL import Image

from pipeline.config import GroupingConfig, PreprocessConfig
from pipeline.dataset import open_dataset
from pipeline.flow import preprocess
from pipeline.verify import verify
from tests.pipeline.scenes import in_process, noise, write_raster

SIDE_PX = 96
TILED = {"tiled": True, "blockxsize": 64, "blockysize": 128}


def tiff(path: Path, pixels: np.ndarray, **profile: Any) -> None:
    write_raster(path, pixels, **profile)


def cog(path: Path, pixels: np.ndarray) -> None:
    whole = write_raster(path.parent.parent / "whole.tif", pixels)
    rasterio.shutil.copy(whole, path, driver="COG", COMPRESS="DEFLATE", BLOCKSIZE="128")


def pictures(path: Path, pixels: np.ndarray) -> None:
    Image.fromarray(pixels.squeeze()).save(path, quality=90)


def jpeg_2000(path: Path, pixels: np.ndarray) -> None:
    write_raster(path, pixels, driver="JP2OpenJPEG", REVERSIBLE="YES", QUALITY="100")


Writer = Callable[[Path, np.ndarray], None]
FORMATS: dict[str, tuple[str, Writer, int, str]] = {
    "bigtiff": ("a.btf", lambda p, x: tiff(p, x, BIGTIFF="YES", **TILED), 5, "uint16"),
    "planes apart": ("a.tif", lambda p, x: tiff(p, x, interleave="band", **TILED), 7, "int16"),
    "ycbcr": ("a.tif", lambda p, x: tiff(p, x, compress="jpeg", **TILED), 3, "uint8"),
    "strips": ("a.tiff", lambda p, x: tiff(p, x, blockysize=33, compress="lzw"), 4, "uint8"),
    "rows": ("a.tif", lambda p, x: tiff(p, x, blockysize=1), 1, "float32"),
    "cog": ("a.tif", cog, 2, "float32"),
    "jpeg 2000": ("a.jp2", jpeg_2000, 3, "uint16"),
    "png": ("a.png", pictures, 4, "uint8"),
    "grey png": ("a.png", pictures, 1, "uint16"),
    "jpeg": ("a.jpg", pictures, 3, "uint8"),
}


def stored_whole(folder: Path) -> tuple[np.ndarray, str]:
    """The one image of a folder put together again from its groups, and its format."""
    output = str(folder / "out")
    grouping = GroupingConfig(group_side_px=SIDE_PX)
    config = PreprocessConfig(sources=str(folder / "in"), output=output, grouping=grouping)
    preprocess(config, run_stage=in_process)
    dataset = open_dataset(output)
    assert verify(dataset) == []
    (image,) = dataset.images()
    squares = np.stack(dataset.read(image).pixels)
    squares = squares.reshape(image.grid_rows, image.grid_columns, *squares.shape[1:])
    whole = squares.swapaxes(1, 2).reshape(
        *(n * SIDE_PX for n in (image.grid_rows, image.grid_columns)), -1
    )
    assert not whole[image.height_px :].any()
    assert not whole[:, image.width_px :].any()
    return whole[: image.height_px, : image.width_px], str(dataset.info.formats[0])


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
@pytest.mark.parametrize("name", FORMATS)
def test_a_file_is_stored_as_rasterio_reads_it_whole(name: str, tmp_path: Path) -> None:
    file, write, bands, dtype = FORMATS[name]
    path = tmp_path / "in" / file
    path.parent.mkdir()
    pixels = noise(301, 257, bands, dtype=dtype)
    write(path, pixels)
    whole, kind = stored_whole(tmp_path)
    assert kind == f"{bands} x {dtype}"
    with rasterio.open(path) as source:
        expected = np.moveaxis(source.read(), 0, -1)
    assert np.array_equal(whole, expected)
    if file.endswith((".tif", ".btf", ".tiff", ".png", ".jp2")) and name != "ycbcr":
        assert np.array_equal(whole, pixels)


def test_a_slide_and_a_plain_tiled_tiff_are_stored_as_openslide_reads_them(
    tmp_path: Path, shared: Path
) -> None:
    plain = write_raster(tmp_path / "plain" / "in" / "a.svs", noise(301, 257, 3), **TILED)
    slide = tmp_path / "slide" / "in" / "a.svs"
    slide.parent.mkdir(parents=True)
    slide.write_bytes((shared / "data" / "small.svs").read_bytes())
    for path, vendor in ((plain, "generic-tiff"), (slide, "aperio")):
        whole, kind = stored_whole(path.parent.parent)
        assert kind == "3 x uint8"
        with openslide.OpenSlide(path) as source:
            assert source.properties["openslide.vendor"] == vendor
            expected = source.read_region((0, 0), 0, source.dimensions).convert("RGB")
        assert np.array_equal(whole, np.asarray(expected))
        if vendor == "generic-tiff":
            assert np.array_equal(whole, noise(301, 257, 3))
