"""Pixels become patches in the official order; what is missing becomes zero."""

import math

import numpy as np
import pytest
import torch

from fit_model.groups import GroupBatch, collate
from fit_model.positions import sin_cos
from fit_model.tokens import InputConfig, normalized, patches_of, squares_of, valid_patches
from tests.fit_model.examples import SIDE_PX, image

PIXELS = InputConfig(bands=2, group_side_px=8, band_mean=(90.0, 110.0), band_std=(40.0, 50.0))
MISSING = -9999.25


def test_the_token_order_is_the_official_one(shared):
    golden = np.load(shared / "golden/token_order.npz")
    side, patch = 8, 4
    whole = torch.from_numpy(golden["inputs/image"])[0]
    squares = torch.stack([whole[r : r + side, c : c + side] for r in (0, 8) for c in (0, 8)])
    wanted = torch.from_numpy(golden["outputs/group_tokens"])[0]
    assert torch.equal(patches_of(squares, patch_px=patch), wanted)


def test_patches_and_squares_are_inverse_on_the_example_of_the_facts():
    whole = torch.arange(8 * 8 * 3).reshape(1, 8, 8, 3)
    patches = patches_of(whole[:, :4, :4], patch_px=2)
    assert patches[0, 0].tolist() == [0, 1, 2, 3, 4, 5, 24, 25, 26, 27, 28, 29]
    assert torch.equal(squares_of(patches, patch_px=2, bands=3), whole[:, :4, :4])


def test_the_position_code_is_that_of_the_facts():
    wanted = [
        [0, 0, 1, 1],
        [0.84147, 0.01, 0.5403, 0.99995],
        [0.9093, 0.02, -0.41615, 0.9998],
    ]
    code = sin_cos(torch.arange(3, dtype=torch.float32), width=4)
    torch.testing.assert_close(code, torch.tensor(wanted), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "dtype", [torch.uint8, torch.uint16, torch.int16, torch.int32, torch.float32, torch.float64]
)
def test_pixels_of_any_source_are_normalised_by_band(dtype):
    batch = image(1, 2, dtype=dtype)
    wanted = (batch.pixels.double() - torch.tensor([90.0, 110.0])) / torch.tensor([40.0, 50.0])
    found = normalized(collate([batch, batch]), config=PIXELS)
    torch.testing.assert_close(found[:2].double(), wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("missing", [math.nan, math.inf, -math.inf, MISSING])
def test_missing_pixels_become_the_mean(missing):
    batch = image(1, 1, dtype=torch.float32, nodata=MISSING)
    whole = normalized(batch, config=PIXELS)
    batch.pixels[0, 2, 3, 1] = missing
    found = normalized(batch, config=PIXELS)
    assert found[0, 2, 3, 1] == 0
    assert (found != whole).sum() == 1


def test_nodata_belongs_to_its_own_image():
    with_nodata, without = image(1, 1, nodata=77.0), image(1, 1)
    for batch in (with_nodata, without):
        batch.pixels[0, 0, 0] = 77
    found = normalized(collate([with_nodata, without]), config=PIXELS)
    assert (found[0, 0, 0] == 0).all()
    assert (found[1, 0, 0] != 0).all()


@pytest.mark.parametrize(
    ("dtype", "nodata"), [(torch.float32, -3.4028234663852886e38), (torch.int32, 2147483647.0)]
)
def test_nodata_is_compared_in_the_precision_of_the_source(dtype, nodata):
    batch = image(1, 1, dtype=dtype, nodata=nodata)
    batch.pixels[0, 0, 0, 0] = torch.tensor(nodata, dtype=torch.float64).to(dtype)
    batch.pixels[0, 0, 1, 0] = batch.pixels[0, 0, 0, 0] - 1 if dtype == torch.int32 else 5.0
    found = normalized(batch, config=PIXELS)
    assert found[0, 0, 0, 0] == 0
    assert found[0, 0, 1, 0] != 0


def test_pixels_beyond_the_image_are_0_and_their_patches_not_valid():
    batch = image(1, 2, height_px=5, width_px=SIDE_PX + 3)
    found = normalized(batch, config=PIXELS)
    assert (found[:, 5:] == 0).all()
    assert (found[1, :, 3:] == 0).all()
    assert (found[0, :5] != 0).any()
    valid = valid_patches(batch, patch_px=4)
    assert valid.tolist() == [[True] * 4, [True, False, True, False]]
    assert valid_patches(image(2, 2), patch_px=4) is None


def test_16_bit_pixels_keep_their_digits_when_the_model_runs_in_bf16():
    batch = image(1, 1, dtype=torch.uint16)
    batch.pixels.copy_(torch.tensor(40_001).to(torch.uint16).expand_as(batch.pixels))
    config = InputConfig(
        bands=2, group_side_px=8, band_mean=(40_000.0, 40_000.0), band_std=(1.0, 1.0)
    )
    torch.testing.assert_close(normalized(batch, config=config), torch.ones(1, 8, 8, 2))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"image": torch.tensor([0, 0, 2, 2])}, "no groups"),
        ({"image": torch.tensor([0, 1, 0, 1])}, "order"),
        ({"row": torch.tensor([0, 0, 0, 5])}, "grid"),
        ({"valid_width_px": torch.tensor([8, 8, 0, 8])}, "extent"),
    ],
)
def test_groups_that_contradict_each_other_are_refused(changes, said):
    whole = collate([image(1, 2), image(2, 1)])
    with pytest.raises(ValueError, match=said):
        GroupBatch(**(vars(whole) | changes))


def test_an_image_without_groups_is_refused():
    with pytest.raises(ValueError, match="image 1 of the batch has no groups"):
        GroupBatch(
            **vars(image(1, 2))
            | {
                "grid_rows": torch.ones(2, dtype=torch.int64),
                "grid_columns": torch.tensor([2, 2]),
                "nodata": torch.zeros(2, dtype=torch.float64),
            }
        )
    with pytest.raises(ValueError, match="at least one"):
        collate([])


def test_images_of_different_formats_do_not_share_a_batch():
    with pytest.raises(ValueError, match=r"uint8.*one format"):
        collate([image(1, 1), image(1, 1, dtype=torch.int16)])
