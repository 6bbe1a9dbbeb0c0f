"""What is missing is not counted, and groups with nothing in them are left out."""

from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.background import is_missing, leave_out_background, tissue_share
from pipeline.config import BackgroundConfig
from pipeline.extract import Square
from pipeline.grid import Grid
from pipeline.statistics import Moments, measure
from tests.pipeline.scenes import noise

GLASS = BackgroundConfig(leave_out=("nodata", "glass"))


def kept_of(
    squares: np.ndarray,
    *,
    background: BackgroundConfig,
    nodata: float | None,
    valid_px: int | None = None,
) -> list[int]:
    """Which of a row of groups are kept; only `valid_px` of their height lie inside the image."""
    count, side = squares.shape[:2]
    grid = Grid(height_px=valid_px or side, width_px=side * count, side_px=side)
    groups = [Square(place, grid.window(place), pixels) for place, pixels in enumerate(squares)]
    kept = leave_out_background(groups, background=background, nodata=nodata)
    return [square.group for square in kept]


@pytest.mark.parametrize(
    ("dtype", "nodata", "missing"),
    [
        ("uint8", 0.0, [True, False, False]),
        ("uint8", -9999.0, [False, False, False]),
        ("uint8", 0.5, [False, False, False]),
        ("uint8", float("nan"), [False, False, False]),
        ("int16", 1.0, [False, True, False]),
        ("float32", 1.0, [False, True, False]),
        ("float32", None, [False, False, False]),
    ],
)
def test_a_value_is_missing_when_it_is_the_nodata_value(
    dtype: str, nodata: float | None, missing: list[bool]
) -> None:
    values = np.array([0, 1, 2], dtype)
    assert is_missing(values, nodata=nodata).tolist() == missing


def test_nan_and_infinity_are_always_missing_and_float32_nodata_survives_rounding() -> None:
    lowest = float(np.finfo("float32").min)
    values = np.array([np.nan, np.inf, -np.inf, lowest, 0], "float32")
    assert is_missing(values, nodata=None).tolist() == [True, True, True, False, False]
    assert is_missing(values, nodata=lowest).tolist() == [True, True, True, True, False]
    assert is_missing(np.float32([0.1]), nodata=0.1).all()


def test_groups_without_a_value_inside_the_image_are_left_out() -> None:
    squares = np.zeros((3, 8, 8, 2), "uint16")
    squares[0, 2, 3, 1] = 7
    squares[2, 6, 0, 0] = 7  # beyond the valid extent
    kept = partial(kept_of, squares, nodata=0.0, valid_px=5)
    assert kept(background=BackgroundConfig()) == [0]
    assert kept(background=BackgroundConfig(leave_out=())) == [0, 1, 2]


def test_glass_is_bright_and_colourless_and_noise_does_not_make_it_tissue() -> None:
    side = 64
    glass = 235 + noise(side, side, 3) % 12
    pink = np.full((side, side, 3), (220, 170, 200), "uint8")
    speck = glass.copy()
    speck[:8, :16] = (180, 90, 160)
    ink = np.full((side, side, 3), 60, "uint8")
    squares = np.stack([glass, pink, speck, ink])
    assert kept_of(squares, background=GLASS, nodata=None) == [1, 2, 3]
    assert kept_of(squares, background=BackgroundConfig(), nodata=None) == [0, 1, 2, 3]


@given(st.integers(1, 40), st.integers(1, 40))
def test_the_share_of_tissue_counts_pixels_at_awkward_edges(height: int, width: int) -> None:
    assert tissue_share(np.zeros((height, width, 3), "uint8"), background=GLASS) == 1
    assert tissue_share(np.full((height, width, 3), 255, "uint8"), background=GLASS) == 0
    mixed = np.full((height + 8, width, 3), 255, "uint8")
    mixed[:8] = (200, 20, 20)
    share = 8 / (height + 8)
    assert tissue_share(mixed, background=GLASS) == pytest.approx(share)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32", "float64"])
def test_moments_equal_numpy_over_the_values_that_are_there(dtype: str) -> None:
    pixels = noise(700, 900, 3, dtype=dtype)
    nodata = float(pixels[0, 0, 0])
    pixels[100:300, :, 1] = nodata
    moments = measure(pixels, nodata=nodata)
    for band in range(3):
        plane = pixels[..., band]
        values = plane[plane != plane.dtype.type(nodata)].astype("float64")
        assert moments.count[band] == values.size
        assert moments.mean[band] == pytest.approx(values.mean(), rel=1e-12)
        assert moments.std[band] == pytest.approx(values.std(), rel=1e-12)


def test_a_large_offset_does_not_drown_a_small_spread() -> None:
    values = 1e8 + noise(300, 300, 1, dtype="float64")
    tiles = [measure(tile, nodata=None) for tile in np.array_split(values, 7)]
    total = sum(tiles, Moments.nothing(1))
    assert total.std[0] == pytest.approx(values.std(), rel=1e-9)


def test_a_band_without_any_value_has_no_spread_and_no_warning() -> None:
    moments = measure(np.full((4, 4, 1), np.nan, "float32"), nodata=None)
    assert (moments.count[0], moments.mean[0], moments.std[0]) == (0, 0, 0)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16"])
def test_moments_of_integers_are_exact_whatever_lies_at_the_ends_of_their_range(dtype: str) -> None:
    limits = np.iinfo(dtype)
    pixels = noise(600, 37, 2, dtype=dtype)
    pixels[:300] = limits.min
    pixels[300:, :, 1] = limits.max
    pixels[::7, :, 0] = 3
    moments = measure(pixels, nodata=3.0)
    for band in range(2):
        values = [value for value in pixels[..., band].ravel().tolist() if value != 3]
        n, total = len(values), sum(values)
        squares = sum(value * value for value in values)
        assert moments.count[band] == n
        assert moments.mean[band] == total / n
        assert moments.m2[band] == (n * squares - total * total) / n
