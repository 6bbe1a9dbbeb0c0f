"""A view is what numpy makes of the whole picture: no seam, no gap, nothing twice."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fit_model.augment.config import AugmentConfig
from fit_model.augment.crops import Crop
from fit_model.augment.symmetries import IDENTITY, SYMMETRIES, Symmetry
from fit_model.augment.views import draw_view, view_of
from fit_model.groups import collate
from tests.fit_model.augment.pictures import (
    SIDE_PX,
    cut,
    lengths,
    only,
    pictures,
    put_together,
    seen,
)


def by_numpy(symmetry: Symmetry, picture: np.ndarray) -> np.ndarray:
    if symmetry.transposed:
        picture = np.swapaxes(picture, 0, 1)
    if symmetry.rows_reversed:
        picture = np.flip(picture, 0)
    return np.flip(picture, 1) if symmetry.columns_reversed else picture


def afterwards(
    symmetry: Symmetry, heights: list[int], widths: list[int]
) -> tuple[list[int], list[int]]:
    if symmetry.transposed:
        heights, widths = widths, heights
    return (
        heights[::-1] if symmetry.rows_reversed else heights,
        widths[::-1] if symmetry.columns_reversed else widths,
    )


@settings(max_examples=200, deadline=None)
@given(shown=pictures(), symmetry=st.sampled_from(SYMMETRIES["all"]), data=st.data())
def test_groups_make_the_picture_that_numpy_makes(shown, symmetry, data):
    picture, numbers = shown
    heights, widths = lengths(picture.shape[0]), lengths(picture.shape[1])
    rows, columns = data.draw(st.integers(1, len(heights))), data.draw(st.integers(1, len(widths)))
    crop = Crop(
        top=data.draw(st.integers(0, len(heights) - rows)),
        left=data.draw(st.integers(0, len(widths) - columns)),
        rows=rows,
        columns=columns,
    )
    row_part, column_part = slice(crop.top, crop.top + rows), slice(crop.left, crop.left + columns)
    inside = [
        number
        for number in numbers
        if number // len(widths) in range(row_part.start, row_part.stop)
        and number % len(widths) in range(column_part.start, column_part.stop)
    ]
    view = view_of(numbers, columns=len(widths), crop=crop, symmetry=symmetry)
    assert sorted(numbers[place] for place in view.stored.tolist()) == inside
    if not inside:
        return
    batch = seen(view, cut(picture, numbers))
    assert (batch.row * batch.grid_columns + batch.column).diff().gt(0).all()
    wanted = only(picture, numbers)[
        row_part.start * SIDE_PX : row_part.stop * SIDE_PX,
        column_part.start * SIDE_PX : column_part.stop * SIDE_PX,
    ]
    found = put_together(batch, *afterwards(symmetry, heights[row_part], widths[column_part]))
    np.testing.assert_array_equal(found, by_numpy(symmetry, wanted))


def test_a_mirrored_picture_begins_with_its_narrow_column():
    picture = np.arange(2 * 7, dtype=np.uint8).reshape(2, 7, 1)
    crop = Crop(top=0, left=0, rows=1, columns=2)
    view = view_of([0, 1], columns=2, crop=crop, symmetry=Symmetry(columns_reversed=True))
    batch = seen(view, cut(picture, [0, 1]))
    assert batch.valid_width_px.tolist() == [2, 5]
    assert batch.pixels.to("cpu")[0, 0, :2, 0].tolist() == [6, 5]
    assert batch.pixels.to("cpu")[1, 0, :, 0].tolist() == [4, 3, 2, 1, 0]


def test_the_symmetries_are_those_that_their_names_say():
    picture = np.arange(6).reshape(2, 3)

    def made(name: str) -> set[bytes]:
        found = [by_numpy(each, picture) for each in SYMMETRIES[name]]
        assert len(found) == len(SYMMETRIES[name])
        return {bytes(each.shape) + each.tobytes() for each in found}

    def wanted(*found: np.ndarray) -> set[bytes]:
        return {bytes(each.shape) + each.tobytes() for each in found}

    turns = [np.rot90(picture, count) for count in range(4)]
    flips = [picture, np.fliplr(picture), np.flipud(picture), turns[2]]
    assert made("none") == wanted(picture)
    assert made("mirror") == wanted(*flips[:2])
    assert made("flips") == wanted(*flips)
    assert made("turns") == wanted(*turns)
    assert made("all") == wanted(*turns, *map(np.fliplr, turns))
    assert len(made("all")) == 8


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_any_part_of_a_batch_of_views_is_that_part_of_all_of_it(dtype):
    batches = []
    for number, symmetry in enumerate(SYMMETRIES["all"]):
        picture = np.random.default_rng(number).integers(1, 200, (13, 8, 2)).astype(dtype)
        crop = Crop(top=0, left=0, rows=3, columns=2)
        view = view_of(range(6), columns=2, crop=crop, symmetry=symmetry)
        batches.append(seen(view, cut(picture, list(range(6)))))
    batch = collate(batches)
    whole = batch.pixels.to("cpu")
    for start in range(0, len(whole), 5):
        assert batch.part(slice(start, start + 5)).to("cpu").pixels.equal(whole[start : start + 5])
    chosen = torch.tensor([40, 3, 17])
    assert batch.pixels[chosen].to("cpu").equal(whole[chosen])
    assert torch.cat(list(batch.pixels.split(7))).equal(whole)
    assert whole.equal(torch.cat([each.pixels.to("cpu") for each in batches]))


def test_tensors_turn_as_stored_pixels_do():
    picture = np.random.default_rng(0).integers(1, 200, (13, 8, 2)).astype(np.uint8)
    lazy = cut(picture, [0, 1, 3, 5])
    view = view_of(
        [0, 1, 3, 5],
        columns=2,
        crop=Crop(top=0, left=0, rows=3, columns=2),
        symmetry=Symmetry(transposed=True, rows_reversed=True),
    )
    eager = seen(view, replace(lazy, pixels=lazy.pixels.to("cpu")))
    assert isinstance(eager.pixels, torch.Tensor)
    assert eager.pixels.equal(seen(view, lazy).pixels.to("cpu"))


def test_a_view_that_changes_nothing_is_the_image_as_it_is_stored():
    picture = np.random.default_rng(0).integers(1, 200, (13, 8, 2)).astype(np.uint8)
    batch = cut(picture, [0, 2, 3])
    view = draw_view([0, 2, 3], rows=3, columns=2, bands=2, config=AugmentConfig(), seed=3)
    assert view.symmetry == IDENTITY
    found = seen(view, batch)
    assert found.colours is None
    assert found.pixels.to("cpu").equal(batch.pixels.to("cpu"))
    for name in ("row", "column", "valid_height_px", "valid_width_px", "grid_rows"):
        assert getattr(found, name).equal(getattr(batch, name))
