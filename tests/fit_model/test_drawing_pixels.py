"""From pixels to what the decoder knows, and from what it draws back to pixels."""

from dataclasses import replace

import pytest
import torch

from fit_model.autoregressive import AutoregressiveConfig
from fit_model.choosing import DecodingConfig
from fit_model.groups import GroupBatch
from fit_model.model import ModelConfig
from fit_model.pixels import GenerateConfig
from fit_model.subpixel_model import AutoregressiveModel
from fit_model.tokens import InputConfig
from fit_model.trunk_config import TrunkConfig
from tests.fit_model.examples import randomize

IMAGES, SIDE_PX, PATCH_PX, BANDS, GRID = 2, 4, 2, 3, 2
ACROSS_PX = GRID * SIDE_PX
PATCHES_A_ROW, PATCHES = 4, 16
SEEDS = torch.tensor([3, 9])
TARGETS = torch.tensor([0, 1])


def model(*, order="raster", classes=("day", "night"), dtype="uint8", high=255.0, **face):
    trunk = {"layers": "(1)1(1)", "width": 8, "latent_width": 8, "heads": 2, "latent_heads": 2}
    config = ModelConfig(
        face=AutoregressiveConfig(
            patch_px=PATCH_PX, trunk=TrunkConfig(**trunk, latents_per_group=2), order=order, **face
        ),
        input=InputConfig(
            bands=BANDS, group_side_px=SIDE_PX, band_mean=(0.0,) * BANDS, band_std=(1.0,) * BANDS
        ),
        head=GenerateConfig(
            target="light" if classes else None,
            classes=classes,
            pixel_dtype=dtype,
            pixel_low=0.0,
            pixel_high=high,
        ),
    )
    return randomize(AutoregressiveModel(config)).eval()


def random_pictures():
    generator = torch.Generator().manual_seed(0)
    shape = (IMAGES, ACROSS_PX, ACROSS_PX, BANDS)
    return torch.randint(0, 256, shape, generator=generator).to(torch.uint8)


def stored(pictures):
    """The pictures cut into groups with slices."""
    corners = [(row, column) for row in range(GRID) for column in range(GRID)]
    squares = [
        picture[row * SIDE_PX :, column * SIDE_PX :][:SIDE_PX, :SIDE_PX]
        for picture in pictures
        for row, column in corners
    ]
    row, column = torch.tensor(corners * IMAGES).unbind(1)
    full = torch.full((len(squares),), SIDE_PX)
    return GroupBatch(
        pixels=torch.stack(squares),
        image=torch.arange(IMAGES).repeat_interleave(GRID * GRID),
        row=row,
        column=column,
        valid_height_px=full,
        valid_width_px=full,
        grid_rows=torch.full((IMAGES,), GRID),
        grid_columns=torch.full((IMAGES,), GRID),
        nodata=torch.full((IMAGES,), torch.nan, dtype=torch.float64),
    )


def pictures_of(batch, pixels):
    """The groups put where they belong with slices."""
    pictures = pixels.new_zeros(IMAGES, ACROSS_PX, ACROSS_PX, BANDS)
    for group, square in enumerate(pixels):
        top, left = batch.row[group] * SIDE_PX, batch.column[group] * SIDE_PX
        pictures[batch.image[group], top : top + SIDE_PX, left : left + SIDE_PX] = square
    return pictures


def generate(drawer, batch, *, targets=TARGETS, sampling=None, **arguments):
    pixels = drawer.generate(
        batch.places,
        targets=targets,
        seeds=SEEDS,
        sampling=sampling or DecodingConfig(),
        **arguments,
    )
    return pictures_of(batch, pixels)


@pytest.mark.parametrize("order", ["raster", "snake"])
def test_an_image_that_is_known_whole_comes_back_as_it_is(order):
    drawer, pictures = model(order=order), random_pictures()
    batch = stored(pictures)
    known = drawer.first_patches(batch, num_patches=PATCHES)
    assert torch.equal(generate(drawer, batch, known=known), pictures)


def test_a_completed_image_keeps_its_first_patches_and_gets_new_ones():
    num_known = PATCHES_A_ROW + 1
    # along the snake the second row of patches begins at the right
    for order, fifth in (("raster", slice(0, PATCH_PX)), ("snake", slice(-PATCH_PX, None))):
        drawer, pictures = model(order=order), random_pictures()
        batch = stored(pictures)
        known = drawer.first_patches(batch, num_patches=num_known)
        kept = torch.zeros(ACROSS_PX, ACROSS_PX, dtype=torch.bool)
        kept[:PATCH_PX] = True
        kept[PATCH_PX : 2 * PATCH_PX, fifth] = True
        found = generate(drawer, batch, known=known)
        assert torch.equal(found[:, kept], pictures[:, kept])
        other = (found != pictures).unflatten(1, (-1, PATCH_PX)).unflatten(3, (-1, PATCH_PX))
        changed_patches = other.any((2, 4, 5)).sum((1, 2))
        assert changed_patches.tolist() == [PATCHES - num_known] * IMAGES


def test_later_pixels_do_not_reach_a_completion():
    drawer, pictures = model(), random_pictures()
    found = []
    for background in (pictures, 255 - pictures):
        batch = stored(torch.cat([pictures[:, :PATCH_PX], background[:, PATCH_PX:]], 1))
        known = drawer.first_patches(batch, num_patches=PATCHES_A_ROW)
        found.append(generate(drawer, batch, known=known))
    assert torch.equal(*found)


def test_pixels_lie_evenly_over_the_range_in_its_dtype():
    drawer = model(dtype="uint16", high=3000.0, num_levels=4)
    batch = stored(random_pictures())
    found = generate(drawer, batch)
    assert found.dtype == torch.uint16
    assert sorted(set(found.flatten().tolist())) == [0, 1000, 2000, 3000]


def test_the_class_asked_for_decides_what_is_drawn():
    drawer, batch = model(), stored(random_pictures())
    found, other = generate(drawer, batch), generate(drawer, batch, targets=torch.tensor([0, 0]))
    assert torch.equal(found[0], other[0])
    assert not torch.equal(found[1], other[1])


def test_guidance_that_a_model_cannot_give_is_refused_in_one_line():
    batch, sampling = stored(random_pictures()), DecodingConfig(guidance=1.5)
    without_classes = model(classes=(), label_dropout=0.1)
    with pytest.raises(ValueError, match=r"guidance 1\.5 needs labels.*leave guidance at 0$"):
        generate(without_classes, batch, targets=None, sampling=sampling)
    with pytest.raises(ValueError, match=r"guidance 1\.5 compares with no label.*above 0$"):
        generate(model(), batch, sampling=sampling)
    generate(model(label_dropout=0.1), batch, sampling=sampling)


@pytest.mark.parametrize("num_patches", [-1, PATCHES + 1])
def test_more_known_patches_than_there_are_are_refused(num_patches):
    batch = stored(random_pictures())
    with pytest.raises(ValueError, match=rf"num_patches is {num_patches}: .* 16 patches of 2 px"):
        model().first_patches(batch, num_patches=num_patches)


def test_images_with_missing_groups_are_not_drawn_beside_whole_ones():
    batch = stored(random_pictures())
    last = len(batch.image) - 1
    places = replace(
        batch.places, image=batch.image[:last], row=batch.row[:last], column=batch.column[:last]
    )
    with pytest.raises(ValueError, match=r"images of \[12, 16\] patches"):
        model().generate(places, targets=TARGETS, seeds=SEEDS, sampling=DecodingConfig())
