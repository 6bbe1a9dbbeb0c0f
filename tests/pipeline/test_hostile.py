"""Broken, lying and strange files: a line that names them, and never pixels that are none."""

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import openslide
import pytest
import rasterio
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from openslide import OpenSlideError
from PIL import Image
from rasterio.errors import NotGeoreferencedWarning, RasterioError

from pipeline.config import GroupingConfig, LimitsConfig, PreprocessConfig
from pipeline.dataset import open_dataset
from pipeline.flow import preprocess
from pipeline.grid import Grid
from pipeline.sources import find_images
from tests.pipeline.hostile import KINDS, SIDE_PX, Outcome, outcome, picture, write
from tests.pipeline.scenes import in_process, noise, write_raster

pytestmark = pytest.mark.filterwarnings(
    f"ignore::{NotGeoreferencedWarning.__module__}.NotGeoreferencedWarning"
)


def check_complete(found: Outcome) -> None:
    """Every group is stored or put aside with a cause, and none is both."""
    assert all(found.causes.values())
    if found.header is None or None in found.causes:
        assert not found.groups
        return
    grid = grid_of(found)
    assert {*found.groups} | {*found.causes} == {*range(grid.num_groups)}
    assert not {*found.groups} & {*found.causes}


def grid_of(found: Outcome) -> Grid:
    assert found.header
    height, width = found.header["height_px"], found.header["width_px"]
    return Grid(height_px=height, width_px=width, side_px=SIDE_PX)


def bare(path: Path, group: int, grid: Grid) -> np.ndarray | None:
    """The group as its own library decodes it from a freshly opened file; None where it fails."""
    window = grid.window(group)
    if path.suffix == ".svs":
        try:
            with openslide.OpenSlide(path) as slide:
                corner, size = (window.left_px, window.top_px), (window.width_px, window.height_px)
                return np.asarray(slide.read_region(corner, 0, size).convert("RGB"))
        except OpenSlideError:
            return None
    rows = (window.top_px, window.top_px + window.height_px)
    columns = (window.left_px, window.left_px + window.width_px)
    try:
        with rasterio.open(path) as source:
            return np.moveaxis(source.read(window=(rows, columns)), 0, -1)
    except RasterioError:
        return None


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_cut_anywhere_gives_its_own_pixels_or_none(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path, kind)
    whole = path.read_bytes()
    truth = outcome(path, tmp_path / "truth")
    assert not truth.causes
    lost = 0
    for size in {
        *range(0, len(whole), max(1024, len(whole) // 24)),
        *range(len(whole) - 2, len(whole)),
    }:
        path.write_bytes(whole[:size])
        found = outcome(path, tmp_path / f"{size}")
        check_complete(found)
        lost += bool(found.causes)
        for group, pixels in found.groups.items():
            assert np.array_equal(pixels, truth.groups[group]), (size, group)
    assert lost


def test_a_cut_png_that_is_read_at_once_is_refused(tmp_path: Path) -> None:
    Image.fromarray(picture()[:50, :60]).save(tmp_path / "a.png")
    whole = (tmp_path / "a.png").read_bytes()
    for size in range(100, len(whole), 500):
        (tmp_path / "a.png").write_bytes(whole[:size])
        assert outcome(tmp_path / "a.png", tmp_path / "out").causes[None]


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("originals")
    for kind in KINDS:
        write(folder, kind)
    return folder


@settings(max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(kind="a.png", place=0.5, change=1)  # shows rows after the pixels that it falsified
@given(
    kind=st.sampled_from(KINDS),
    place=st.floats(0, 1, exclude_max=True),
    change=st.integers(1, 255),
)
def test_a_flipped_byte_gives_what_the_library_gives_or_none(
    originals: Path, tmp_path: Path, kind: str, place: float, change: int
) -> None:
    content = bytearray((originals / kind).read_bytes())
    content[int(place * len(content))] ^= change
    path = tmp_path / kind
    path.write_bytes(content)
    found = outcome(path, tmp_path / "out")
    check_complete(found)
    for group, pixels in found.groups.items():
        expected = bare(path, group, grid_of(found))
        assert expected is not None
        assert np.array_equal(pixels, expected)


@pytest.mark.parametrize("kind", ["jpeg-tiles.tif", "slide.svs"])
def test_jpeg_that_ends_inside_its_tile_is_no_pixels_however_often_it_is_read(
    tmp_path: Path, kind: str
) -> None:
    path = write(tmp_path, kind)
    truth = outcome(path, tmp_path / "truth")
    with rasterio.open(path) as source:
        said = [
            source.get_tag_item(f"BLOCK_{what}_1_1", "TIFF", bidx=1) for what in ("OFFSET", "SIZE")
        ]
    offset, size = map(int, said)
    content = bytearray(path.read_bytes())
    content[offset + size // 2 : offset + size // 2 + 2] = b"\xff\xd9"
    path.write_bytes(content)
    found = outcome(path, tmp_path / "out")
    check_complete(found)
    assert [*found.causes] == [6]  # row 1, column 1 of 4 x 5
    assert "premature end of data segment" in found.causes[6]
    for group, pixels in found.groups.items():
        assert np.array_equal(pixels, truth.groups[group])


def test_a_header_that_claims_a_terapixel_is_refused_before_memory_is_spent(
    originals: Path, tmp_path: Path
) -> None:
    side = 1_000_000
    tiff = bytearray((originals / "deflate-tiles.tif").read_bytes())
    (start,) = struct.unpack_from("<I", tiff, 4)
    for entry in range(start + 2, start + 2 + 12 * struct.unpack_from("<H", tiff, start)[0], 12):
        if struct.unpack_from("<H", tiff, entry)[0] in (256, 257):
            struct.pack_into("<HII", tiff, entry + 2, 4, 1, side)
    png = bytearray((originals / "a.png").read_bytes())
    struct.pack_into(">II", png, 16, side, side)
    struct.pack_into(">I", png, 29, zlib.crc32(png[12:29]))
    jp2 = bytearray((originals / "one-tile.jp2").read_bytes())
    struct.pack_into(">II", jp2, jp2.index(b"ihdr") + 4, side, side)
    for field in (6, 22):  # of the image, of its one tile
        struct.pack_into(">II", jp2, jp2.index(b"\xff\x51") + field, side, side)
    with rasterio.open(
        tmp_path / "sparse.tif", "w", driver="GTiff", height=side, width=side, count=3,
        dtype="uint8", tiled=True, blockxsize=4096, blockysize=4096, SPARSE_OK="TRUE",
        compress="deflate", BIGTIFF="YES",
    ):  # fmt: skip
        pass
    for name, content in {"a.tif": tiff, "a.png": png, "a.jp2": jp2}.items():
        (tmp_path / name).write_bytes(content)
    for name in ("a.tif", "a.png", "a.jp2", "sparse.tif"):
        found = outcome(tmp_path / name, tmp_path / "out")
        assert found.header is None
        says = "declares 1000000 x 1000000 px, 3000 GB, in .* beyond limits.max_expansion 10000"
        with pytest.raises(AssertionError, match=says):
            raise AssertionError(found.causes[None])
    small = LimitsConfig(max_expansion=1.0)
    assert outcome(originals / "jpeg-tiles.tif", tmp_path / "out", limits=small).header


@pytest.mark.parametrize("suffix", [".tif", ".png", ".jpg", ".jp2", ".svs", ".mrxs", ".dcm"])
def test_empty_files_and_wrong_suffixes_have_a_cause(
    originals: Path, tmp_path: Path, suffix: str
) -> None:
    (tmp_path / f"empty{suffix}").touch()
    other = "a.png" if suffix != ".png" else "a.jpg"
    (tmp_path / f"other{suffix}").write_bytes((originals / other).read_bytes())
    for name in ("empty", "other"):
        found = outcome(tmp_path / f"{name}{suffix}", tmp_path / "out")
        check_complete(found)
        assert found.causes[None]


def test_pipes_links_to_themselves_and_folders_are_never_waited_for(
    originals: Path, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "pipe.tif")
    (tmp_path / "self.tif").symlink_to(tmp_path / "self.tif")
    (tmp_path / "nowhere.tif").symlink_to(tmp_path / "gone.tif")
    (tmp_path / "folder.tif").mkdir()
    causes = {
        path.name: outcome(path, tmp_path / "out").causes[None] for path in tmp_path.glob("*.tif")
    }
    assert causes["pipe.tif"] == causes["folder.tif"] == "is no regular file"
    assert "No such file" in causes["nowhere.tif"]
    assert "symbolic links" in causes["self.tif"]


def test_a_folder_that_holds_itself_is_searched_once_and_names_may_be_strange(
    originals: Path, tmp_path: Path
) -> None:
    names = ["a b.png", "ü 名.png", "#1?&%20.png", "'quoted\".png", "deep/er/x.y.png"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes((originals / "a.png").read_bytes())
    (tmp_path / "deep" / "loop").symlink_to(tmp_path)
    found = find_images(str(tmp_path)).images
    assert found["image_id"].to_pylist() == sorted(name.removesuffix(".png") for name in names)
    for uri in found["uri"].to_pylist():
        (first, *_) = outcome(Path(uri), tmp_path / "out").groups.values()
        assert np.array_equal(first, picture()[:SIDE_PX, :SIDE_PX])


def test_a_name_that_is_no_text_is_refused_with_a_line(tmp_path: Path) -> None:
    with open(os.fsencode(tmp_path) + b"/bad\xff.tif", "wb"):
        pass
    with pytest.raises(ValueError, match=r"'bad\\udcff' cannot be an image's id"):
        find_images(str(tmp_path))


def test_nan_and_infinite_pixels_are_stored_as_they_are_and_stay_out_of_the_statistics(
    tmp_path: Path,
) -> None:
    pixels = noise(100, 90, 2, dtype="float32")
    pixels[::3] = np.nan
    pixels[1::7, :, 0] = np.inf
    pixels[2::5, :, 1] = -np.inf
    path = write_raster(tmp_path / "in" / "a.tif", pixels)
    found = outcome(path, tmp_path / "out").groups
    assert np.array_equal(found[0], pixels[:64, :64], equal_nan=True)
    config = PreprocessConfig(
        sources=str(tmp_path / "in"),
        output=str(tmp_path / "dataset"),
        grouping=GroupingConfig(group_side_px=64),
    )
    preprocess(config, run_stage=in_process)
    (kept,) = open_dataset(config.output).info.formats
    for band in (0, 1):
        values = pixels[..., band][np.isfinite(pixels[..., band])].astype("float64")
        assert kept.band_mean[band] == pytest.approx(values.mean(), rel=1e-9)
        assert kept.band_std[band] == pytest.approx(values.std(), rel=1e-9)
