"""Images become sequences of sub-pixels in the official orders, and come back exactly."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fit_model.layout import ImageLayout
from fit_model.subpixels import ORDERS, Sequences, sequence_order, shifted
from fit_model.tokens import squares_of
from tests.fit_model.examples import SIDE_PX, image
from tests.fit_model.generators import IMAGES, batch_of, head

PATCH_PX = 2
ACROSS = SIDE_PX // PATCH_PX


def read(batch, *, order, num_levels=256, config=None, patch_px=PATCH_PX):
    return Sequences(
        batch, patch_px=patch_px, order=order, num_levels=num_levels, config=config or head()
    )


def looped(batch, *, order):
    """[(row, column, sub-pixels)] of an image's patches, by walking over the whole grid."""
    stored = {
        (int(r), int(c)): g for g, (r, c) in enumerate(zip(batch.row, batch.column, strict=True))
    }
    rows, columns = int(batch.grid_rows) * ACROSS, int(batch.grid_columns) * ACROSS
    found = []
    for row in range(rows):
        way = range(columns)
        for column in reversed(way) if order == "snake" and row % 2 else way:
            group = stored.get((row // ACROSS, column // ACROSS))
            if group is not None:
                y, x = row % ACROSS * PATCH_PX, column % ACROSS * PATCH_PX
                subpixels = [
                    int(batch.pixels[group, y + dy, x + dx, band])
                    for dy in range(PATCH_PX) for dx in range(PATCH_PX) for band in range(2)
                ]  # fmt: skip
                found.append((row, column, subpixels))
    return found


@pytest.mark.parametrize("order", ["snake", "raster"])
def test_patches_are_read_as_a_walk_over_the_whole_image_finds_them(order):
    wanted = [looped(each, order=order) for each in IMAGES]
    found = read(batch_of(), order=order)
    assert found.levels.tolist() == [levels for walk in wanted for _, _, levels in walk]
    places = found.places
    assert places.row.tolist() == [row for walk in wanted for row, _, _ in walk]
    assert places.column.tolist() == [column for walk in wanted for _, column, _ in walk]
    assert places.image.tolist() == [i for i, walk in enumerate(wanted) for _ in walk]
    assert places.grid_rows.tolist() == [int(each.grid_rows) * ACROSS for each in IMAGES]


def test_snake_on_the_grid_of_the_facts():
    places = read(image(1, 1), order="raster").places
    order = sequence_order(places, order="snake").tolist()
    assert order == [0, 1, 2, 3, 7, 6, 5, 4, 8, 9, 10, 11, 15, 14, 13, 12]


@pytest.mark.parametrize("order", ["snake", "raster"])
def test_every_sub_pixel_is_shown_the_one_before_it_across_patches_but_not_across_images(order):
    found = read(batch_of(), order=order)
    images = ImageLayout.of(found.places.image, num_images=len(IMAGES), latents_per_group=3)
    inputs = shifted(found.levels, images)
    for number in range(len(IMAGES)):
        mine = found.places.image == number
        levels, shown = found.levels[mine].flatten().tolist(), inputs[mine].flatten().tolist()
        assert shown == [0, *levels[:-1]]


def picture(levels, *, rows, columns, patch_px, order):
    """Patches in order, laid down one after another."""
    whole = torch.zeros(rows * patch_px, columns * patch_px, 2, dtype=levels.dtype)
    for row in range(rows):
        for column in range(columns):
            place = ORDERS[order](*(torch.tensor([each]) for each in (row, column, columns)))
            y, x = row * patch_px, column * patch_px
            patch = levels[place].reshape(patch_px, patch_px, 2)
            whole[y : y + patch_px, x : x + patch_px] = patch
    return whole


def as_picture(batch):
    """The pixels of a whole image, put together group by group."""
    rows, columns = int(batch.grid_rows), int(batch.grid_columns)
    whole = np.zeros((rows * SIDE_PX, columns * SIDE_PX, 2), dtype=np.int64)
    for pixels, row, column in zip(batch.pixels, batch.row, batch.column, strict=True):
        y, x = int(row) * SIDE_PX, int(column) * SIDE_PX
        whole[y : y + SIDE_PX, x : x + SIDE_PX] = pixels.numpy()
    return whole


@pytest.mark.parametrize("patch_px", [1, 2, 4, 8])
@pytest.mark.parametrize("order", ["snake", "raster"])
def test_a_picture_comes_back_exactly(order, patch_px):
    batch = image(2, 3, seed=7)
    found = read(batch, order=order, patch_px=patch_px)
    rows, columns = 2 * SIDE_PX // patch_px, 3 * SIDE_PX // patch_px
    back = picture(found.levels, rows=rows, columns=columns, patch_px=patch_px, order=order)
    assert np.array_equal(back.numpy(), as_picture(batch))


@pytest.mark.parametrize("order", ["snake", "raster"])
def test_groups_come_back_exactly_from_places_in_any_grid(order):
    batch = batch_of()
    found = read(batch, order=order)
    patches = torch.zeros_like(found.levels)
    unordered = read(batch, order="raster").places
    assert len(unordered.row) == len(patches)
    group = {}
    for number in range(len(batch.image)):
        key = (int(batch.image[number]), int(batch.row[number]), int(batch.column[number]))
        group[key] = number
    for levels, i, row, column in zip(
        found.levels, found.places.image, found.places.row, found.places.column, strict=True
    ):
        number = group[int(i), int(row) // ACROSS, int(column) // ACROSS]
        inside = int(row) % ACROSS * ACROSS + int(column) % ACROSS
        patches[number * ACROSS**2 + inside] = levels
    squares = squares_of(patches.unflatten(0, (-1, ACROSS**2)), patch_px=PATCH_PX, bands=2)
    assert torch.equal(squares.to(torch.uint8), batch.pixels)


@pytest.mark.parametrize(
    ("dtype", "num_levels", "high"),
    [(torch.uint8, 256, 255), (torch.uint8, 17, 16), (torch.uint8, 2, 1), (torch.int16, 1000, 999)],
)
def test_with_a_level_a_value_levels_are_the_pixels(dtype, num_levels, high):
    values = torch.arange(SIDE_PX * SIDE_PX * 2 * 8) % (high + 1)
    pixels = values.reshape(8, SIDE_PX, SIDE_PX, 2).to(dtype)
    batch = replace(image(2, 4), pixels=pixels)
    config = head(pixel_high=float(high), pixel_dtype=str(dtype).removeprefix("torch."))
    found = read(batch, order="raster", num_levels=num_levels, config=config)
    assert set(found.levels.flatten().tolist()) == set(range(high + 1))
    back = picture(found.levels, rows=8, columns=16, patch_px=PATCH_PX, order="raster")
    assert np.array_equal(back.numpy(), as_picture(batch))


def test_fewer_levels_than_values_take_the_nearest():
    batch = image(1, 1, seed=9)
    found = read(batch, order="raster", num_levels=17)
    wanted = np.rint(as_picture(batch) / 255 * 16)
    back = picture(found.levels, rows=4, columns=4, patch_px=PATCH_PX, order="raster")
    assert np.array_equal(back.numpy(), wanted)
