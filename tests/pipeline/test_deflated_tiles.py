"""Tiles that go past GDAL give what GDAL gives, damaged or not."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio

from pipeline.grid import Grid, Window
from pipeline.readers.deflated_tiles import DeflatedTiles
from pipeline.readers.open import open_image
from pipeline.readers.protocol import SourceError
from tests.pipeline.scenes import noise, write_raster

TILED = {"tiled": True, "blockxsize": 32, "blockysize": 16}
DEFLATED = {**TILED, "compress": "deflate"}
PAST_GDAL: dict[str, tuple[str, int, dict[str, Any]]] = {
    "bytes": ("uint8", 3, DEFLATED),
    "one band": ("uint8", 1, DEFLATED),
    "alpha": ("uint8", 4, {**DEFLATED, "photometric": "rgb", "alpha": "yes"}),
    "shorts": ("uint16", 4, DEFLATED),
    "signed shorts": ("int16", 2, DEFLATED),
    "floats": ("float32", 2, {**DEFLATED, "BIGTIFF": "YES"}),
    "a palette": ("uint8", 1, {**DEFLATED, "photometric": "palette"}),
    "white is zero": ("uint8", 1, {**DEFLATED, "photometric": "miniswhite"}),
}
LEFT_TO_GDAL: dict[str, tuple[str, int, dict[str, Any]]] = {
    "predicted bytes": ("uint8", 3, {**DEFLATED, "predictor": 2}),
    "predicted floats": ("float32", 2, {**DEFLATED, "predictor": 3}),
    "few bits": ("uint8", 3, {**DEFLATED, "NBITS": 5}),
    "half floats": ("float32", 2, {**DEFLATED, "NBITS": 16}),
    "the other byte order": ("uint16", 3, {**DEFLATED, "ENDIANNESS": "BIG"}),
    "bands apart": ("uint8", 3, {**DEFLATED, "interleave": "band"}),
    "LZW": ("uint8", 3, {**TILED, "compress": "lzw"}),
    "packed by nothing": ("uint8", 3, TILED),
    "YCbCr": ("uint8", 3, {**TILED, "compress": "jpeg", "photometric": "ycbcr"}),
}
GRID = Grid(height_px=100, width_px=150, side_px=32)


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Of every window that was asked for: whether it went past GDAL."""
    seen: list[bool] = []
    read = DeflatedTiles.read

    def noted(self: DeflatedTiles, window: Window, *, out: np.ndarray) -> bool:
        seen.append(read(self, window, out=out))
        return seen[-1]

    monkeypatch.setattr(DeflatedTiles, "read", noted)
    return seen


def groups(path: Path) -> list[np.ndarray | str]:
    """What every window of a grid holds, or where it could not be read."""
    found: list[np.ndarray | str] = []
    with open_image(str(path)) as image:
        for group in range(GRID.num_groups):
            try:
                found.append(image.read(GRID.window(group)))
            except SourceError as error:
                found.append(str(error.window))
    return found


def whole(found: list[np.ndarray | str]) -> np.ndarray:
    """The image that groups of GRID make."""
    rows = (found[start : start + GRID.columns] for start in range(0, len(found), GRID.columns))
    return np.concatenate([np.concatenate(row, axis=1) for row in rows])  # type: ignore[arg-type]


def scene(path: Path, kind: str) -> Path:
    """An image of a kind, rather smooth, so that predictors and NBITS have something to do."""
    dtype, bands, profile = {**PAST_GDAL, **LEFT_TO_GDAL}[kind]
    pixels = noise(GRID.height_px, GRID.width_px, bands, dtype=dtype)
    return write_raster(path, pixels // 8 if dtype == "uint8" else pixels, **profile)


@pytest.mark.parametrize("kind", [*PAST_GDAL, *LEFT_TO_GDAL])
def test_px_are_those_that_rasterio_reads(kind: str, tmp_path: Path, taken: list[bool]) -> None:
    path = scene(tmp_path / "a.tif", kind)
    with rasterio.open(path) as source:
        expected = np.moveaxis(source.read(), 0, -1)
    found = whole(groups(path))
    assert found.dtype == expected.dtype
    assert np.array_equal(found, expected)
    assert set(taken) == ({True} if kind in PAST_GDAL else set())


def test_windows_that_cut_tiles_bands_that_are_chosen_and_levels_are_left_to_gdal(
    tmp_path: Path, taken: list[bool]
) -> None:
    path = scene(tmp_path / "a.tif", "bytes")
    with rasterio.open(path, "r+") as source:
        source.build_overviews([2])
        expected = np.moveaxis(source.read(), 0, -1)
    corner = Window(top_px=0, left_px=0, height_px=32, width_px=32)
    with open_image(str(path)) as image:
        for top, left, bottom, right in (
            (0, 8, 32, 32),
            (8, 0, 32, 32),
            (0, 0, 8, 32),
            (0, 0, 32, 8),
        ):
            cut = Window(top_px=top, left_px=left, height_px=bottom - top, width_px=right - left)
            assert np.array_equal(image.read(cut), expected[top:bottom, left:right])
    assert taken == [False] * 4
    with open_image(str(path), bands=[3, 1]) as image:
        assert np.array_equal(image.read(corner), expected[:32, :32, [2, 0]])
    with rasterio.open(path, overview_level=0) as source, open_image(str(path), level=1) as image:
        assert np.array_equal(image.read(corner), np.moveaxis(source.read(), 0, -1)[:32, :32])
    assert taken == [False] * 4


def test_tiles_that_were_never_written_are_nodata_as_for_gdal(
    tmp_path: Path, taken: list[bool]
) -> None:
    pixels = noise(GRID.height_px, GRID.width_px, 3)
    pixels[:64, :64] = 7
    path = write_raster(tmp_path / "a.tif", pixels, **DEFLATED, SPARSE_OK=True, nodata=7)
    assert np.array_equal(whole(groups(path)), pixels)
    assert taken.count(False) == 4


def test_tiles_for_which_there_is_no_memory_are_left_to_gdal(
    tmp_path: Path, taken: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = scene(tmp_path / "a.tif", "bytes")
    expected = whole(groups(path))
    taken.clear()

    def full(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("deflate.zlib_decompress", full)
    assert np.array_equal(whole(groups(path)), expected)
    assert set(taken) == {False}


@pytest.mark.parametrize("seed", range(4))
def test_damage_is_what_gdal_makes_of_it(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole_file = bytearray(scene(tmp_path / "a.tif", "bytes").read_bytes())
    generator = np.random.default_rng(seed)
    path = tmp_path / "damaged.tif"
    outcomes = set()
    for _ in range(60):
        damaged = bytearray(whole_file)
        for place in generator.integers(0, len(damaged), generator.integers(1, 4)):
            damaged[place] ^= 1 << generator.integers(8)
        if generator.random() < 0.2:
            del damaged[generator.integers(len(damaged)) :]
        path.write_bytes(damaged)
        ways = []
        for can in (True, False):
            with monkeypatch.context() as patched:
                if not can:
                    patched.setattr(DeflatedTiles, "of", lambda *args, **named: None)
                try:
                    ways.append([_told(each) for each in groups(path)])
                except SourceError as error:
                    ways.append([error.cause])
        assert ways[0] == ways[1]
        outcomes |= {isinstance(each, str) for each in ways[0]}
    assert outcomes == {True, False}


def _told(found: np.ndarray | str) -> tuple[bytes, tuple[int, ...]] | str:
    return found if isinstance(found, str) else (found.tobytes(), found.shape)


class Lying:
    """An open raster in whose directory one number is wrong."""

    height, width = GRID.height_px, GRID.width_px

    def __init__(self, source: rasterio.DatasetReader, name: str, wrong: int) -> None:
        self._source, self._name, self._wrong = source, name, wrong

    def get_tag_item(self, name: str, *args: Any, **named: Any) -> str:
        told = self._source.get_tag_item(name, *args, **named)
        return str(int(told) + self._wrong if name.startswith(self._name) else told)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("BLOCK_SIZE", 2**60),
        ("BLOCK_SIZE", 2**64),
        ("BLOCK_SIZE", -2),
        ("BLOCK_OFFSET", 2**40),
        ("BLOCK_OFFSET", 2**63 - 50_000),
        ("BLOCK_OFFSET", 2**63),
        ("BLOCK_OFFSET", 1),
    ],
)
def test_a_tile_that_is_not_where_it_should_be_is_left_to_gdal(
    name: str, wrong: int, tmp_path: Path, taken: list[bool]
) -> None:
    path = scene(tmp_path / "a.tif", "bytes")
    with rasterio.open(path) as source:
        tiles = DeflatedTiles.of(source, path=str(path), bands=[1, 2, 3])
        assert tiles is not None
        out = np.empty((32, 32, 3), np.uint8)
        assert tiles.read(GRID.window(0), out=out)
        tiles._source = Lying(source, name, wrong)
        assert not tiles.read(GRID.window(0), out=out)
        tiles.close()
    assert taken == [True, False]
