"""Colours against plain loops of the equations, and what stays as it is."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from fit_model.augment.colours import STAINS, Colours, density_change
from fit_model.groups import GroupBatch, collate
from fit_model.tokens import InputConfig, normalized
from tests.fit_model.examples import BANDS, SIDE_PX, image

CONFIG = InputConfig(
    bands=BANDS, group_side_px=SIDE_PX, band_mean=(90.0, 110.0), band_std=(40.0, 50.0)
)
RGB = InputConfig(
    bands=3, group_side_px=SIDE_PX, band_mean=(180.0, 130.0, 170.0), band_std=(30.0, 50.0, 40.0)
)


def densities(scale: np.ndarray, shift: np.ndarray) -> dict[str, torch.Tensor]:
    """What changes the densities of images whose stains these scale and shift."""
    pairs = zip(scale.tolist(), shift.tolist(), strict=True)
    changes = [density_change(*each) for each in pairs]
    mixes, shifts = zip(*changes, strict=True)
    return {
        "density_mix": torch.from_numpy(np.stack(mixes)),
        "density_shift": torch.from_numpy(np.stack(shifts)),
    }


def unstained(images: int) -> dict[str, torch.Tensor]:
    none = torch.zeros(images, 0, dtype=torch.float64)
    return {"density_mix": none[:, :, None].expand(-1, -1, 0), "density_shift": none}


def colours(images: int, *, bands: int = BANDS, seed: int = 0, **stains: torch.Tensor) -> Colours:
    generator = torch.Generator().manual_seed(seed)

    def numbers(columns: int, *, around: float) -> torch.Tensor:
        drawn = torch.rand(images, columns, dtype=torch.float64, generator=generator)
        return around + 0.4 * drawn - 0.2

    return Colours(
        brightness=numbers(1, around=1.0),
        scale=numbers(bands, around=1.0),
        shift=numbers(bands, around=0.0),
        **(stains or unstained(images)),
    )


def neutral(images: int, *, bands: int, **stains: torch.Tensor) -> Colours:
    def rows(columns: int, value: float) -> torch.Tensor:
        return torch.full((images, columns), value, dtype=torch.float64)

    return Colours(
        brightness=rows(1, 1.0),
        scale=rows(bands, 1.0),
        shift=rows(bands, 0.0),
        **(stains or unstained(images)),
    )


def tissue(seed: int = 0) -> GroupBatch:
    """Two images of RGB, every level somewhere."""
    generator = torch.Generator().manual_seed(seed)
    images = []
    for _ in range(2):
        one = image(2, 2)
        levels = torch.randint(0, 256, (4, SIDE_PX, SIDE_PX, 3), generator=generator)
        images.append(replace(one, pixels=levels.to(torch.uint8)))
    images[0].pixels[0, 0, 0], images[0].pixels[0, 0, 1] = 0, 255
    return collate(images)


def stained_by_hand(pixel: list[float], scale: np.ndarray, shift: np.ndarray) -> list[float]:
    unmix = np.linalg.inv(np.array(STAINS))
    density = [-math.log((level + 1.0) / 256.0) for level in pixel]
    stains = [sum(density[band] * unmix[band, stain] for band in range(3)) for stain in range(3)]
    stains = [scale[stain] * stains[stain] + shift[stain] for stain in range(3)]
    density = [sum(stains[stain] * STAINS[stain][band] for stain in range(3)) for band in range(3)]
    return [min(max(256.0 * math.exp(-each) - 1.0, 0.0), 255.0) for each in density]


def by_hand(batch: GroupBatch, pixel_of, changed: Colours) -> np.ndarray:
    """A pixel and a band at a time, as the equations stand."""
    made = np.zeros(batch.pixels.shape)
    for group, row, column in np.ndindex(*made.shape[:3]):
        mine = int(batch.image[group])
        pixel = pixel_of(mine, [float(each) for each in batch.pixels[group, row, column]])
        for band in range(3):
            value = float(changed.brightness[mine, 0]) * pixel[band] - RGB.band_mean[band]
            value = float(changed.scale[mine, band]) * value / RGB.band_std[band]
            made[group, row, column, band] = value + float(changed.shift[mine, band])
    return made


def test_every_pixel_is_what_the_equations_give():
    batch, changed = tissue(), colours(2, bands=3)
    found = normalized(replace(batch, colours=changed), config=RGB)
    wanted = by_hand(batch, lambda image, pixel: pixel, changed)
    np.testing.assert_allclose(found, wanted, atol=2e-5, rtol=0)


def test_so_is_every_stain():
    scale, shift = np.array([[1.2, 0.9, 0.8], [0.8, 1.1, 1.2]]), np.array([[0.1, -0.2, 0.05]] * 2)
    batch, changed = tissue(), colours(2, bands=3, **densities(scale, shift))
    found = normalized(replace(batch, colours=changed), config=RGB)
    wanted = by_hand(
        batch, lambda mine, pixel: stained_by_hand(pixel, scale[mine], shift[mine]), changed
    )
    assert wanted.min() < -3.0
    np.testing.assert_allclose(found, wanted, atol=2e-5, rtol=0)


def test_colours_that_change_nothing_change_nothing():
    batch = tissue()
    same = neutral(2, bands=3, **densities(np.ones((2, 3)), np.zeros((2, 3))))
    found = normalized(replace(batch, colours=same), config=RGB)
    torch.testing.assert_close(found, normalized(batch, config=RGB), atol=2e-5, rtol=0)


def test_more_of_a_stain_is_its_colour_multiplied():
    """A pixel of one stain alone becomes one of more of it, and of no other."""
    amounts = torch.tensor([0.5, 0.8, 1.1], dtype=torch.float64)
    for number, colour in enumerate(torch.tensor(STAINS, dtype=torch.float64)):
        pixels = 256.0 * (-amounts[:, None] * colour).exp() - 1.0
        more = np.ones((1, 3))
        more[0, number] = 1.25
        changed = neutral(1, bands=3, **densities(more, np.zeros((1, 3))))
        found = changed.pixels(pixels[None, :, None].expand(1, 3, 3, 3))
        wanted = 256.0 * (-1.25 * amounts[:, None] * colour).exp() - 1.0
        torch.testing.assert_close(found[0, :, 0], wanted, atol=1e-9, rtol=0)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.int16, torch.float32])
def test_missing_pixels_stay_missing(dtype):
    batch = image(2, 2, height_px=13, width_px=11, nodata=7.0, dtype=dtype)
    batch.pixels[0, 2, 3] = 7
    if dtype.is_floating_point:
        batch.pixels[0, 4, 4], batch.pixels[0, 5, 5] = float("nan"), float("inf")
    before = normalized(batch, config=CONFIG)
    after = normalized(replace(batch, colours=colours(1)), config=CONFIG)
    assert after[before == 0.0].eq(0.0).all()
    assert after[before != 0.0].ne(before[before != 0.0]).all()
    assert after[0, 2, 3].eq(0.0).all()
    assert after[3, 5:].eq(0.0).all()


def test_what_becomes_nodata_by_its_colour_is_not_missing():
    batch = image(1, 1, nodata=100.0)
    batch.pixels[:] = 50
    changed = neutral(1, bands=BANDS)
    changed.brightness[:] = 2.0
    assert normalized(replace(batch, colours=changed), config=CONFIG).ne(0.0).all()


def test_parts_and_batches_keep_the_colours_of_their_images():
    images = [replace(image(2, 2, seed=n), colours=colours(1, seed=n)) for n in range(3)]
    batch = collate(images)
    whole = normalized(batch, config=CONFIG)
    assert whole.equal(torch.cat([normalized(each, config=CONFIG) for each in images]))
    for start in range(0, 12, 5):
        part = batch.part(slice(start, start + 5))
        assert normalized(part, config=CONFIG).equal(whole[start : start + 5])


def test_colours_for_another_number_of_images_are_refused():
    with pytest.raises(ValueError, match="colours are for 2 of 1 images"):
        replace(image(1, 1), colours=colours(2))
    with pytest.raises(ValueError, match="images with other colours and images without"):
        collate([image(1, 1), replace(image(1, 1), colours=colours(1))])
