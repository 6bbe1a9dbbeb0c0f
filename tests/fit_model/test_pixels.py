"""Pixels become shares of their range and back; what no model could make is refused."""

from dataclasses import replace

import pytest
import torch

from fit_model.pixels import PIXEL_DTYPES, GenerateConfig, one_hot, pixels_of, shares
from tests.fit_model.examples import SIDE_PX, image
from tests.fit_model.generators import CLASSES, head


def makes(low, high, dtype="float32"):
    return head(classes=(), pixel_low=low, pixel_high=high, pixel_dtype=dtype)


def batch_of_values(values):
    """An image of as many groups as these values fill, the last value repeated."""
    size = SIDE_PX * SIDE_PX * 2
    groups = -(-len(values) // size)
    padded = values[(torch.arange(groups * size)).clamp(max=len(values) - 1)]
    pixels = padded.reshape(groups, SIDE_PX, SIDE_PX, 2)
    return replace(image(1, groups), pixels=pixels)


EVERY_VALUE = [
    ("uint8", torch.arange(256), 0.0, 255.0),
    ("uint8", torch.arange(17), 0.0, 16.0),
    ("uint8", torch.arange(3, 200), 3.0, 199.0),
    ("uint16", torch.arange(65536), 0.0, 65535.0),
    ("uint16", torch.arange(4096), 0.0, 4095.0),
    ("int16", torch.arange(-1024, 3072), -1024.0, 3071.0),
]


@pytest.mark.parametrize(("dtype", "values", "low", "high"), EVERY_VALUE)
def test_every_whole_number_survives_the_way_to_shares_and_back(dtype, values, low, high):
    batch, config = batch_of_values(values.to(PIXEL_DTYPES[dtype])), makes(low, high, dtype)
    found = shares(batch, config=config)
    assert found.dtype == torch.float32
    assert (found.min(), found.max()) == (0.0, 1.0)
    back = pixels_of(found, config=config)
    assert back.dtype == PIXEL_DTYPES[dtype]
    assert torch.equal(back, batch.pixels)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_fractions_survive_to_float32(dtype):
    values = torch.linspace(-3.0, 5.0, 999, dtype=torch.float64).to(dtype)
    batch, config = batch_of_values(values), makes(-3.0, 5.0)
    back = pixels_of(shares(batch, config=config), config=config)
    assert back.dtype == torch.float32
    torch.testing.assert_close(back, batch.pixels.float(), rtol=0, atol=8 * 2.0**-23)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_ends_of_a_range_belong_to_it_in_every_precision(dtype):
    generator = torch.Generator().manual_seed(0)
    for low, high in torch.randn(300, 2, generator=generator).sort().values.tolist():
        low, high = round(low, 2), round(high, 2)
        if low < high:
            ends = torch.tensor([low, high], dtype=torch.float64).to(dtype)
            found = shares(batch_of_values(ends), config=makes(low, high))
            assert found.min() >= 0.0
            assert found.max() <= 1.0


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([0.0, 1.5], "a pixel is 1.5, outside 0 to 1"),
        ([-0.25, 1.0], "a pixel is -0.25, outside 0 to 1"),
        ([0.5, float("nan")], "a pixel is nan"),
        ([0.5, float("inf")], "a pixel is inf"),
        ([0.0, 1.0 + 2.0**-23], "outside 0 to 1"),
    ],
)
def test_pixels_beyond_the_range_are_refused_with_their_value(values, said):
    batch = batch_of_values(torch.tensor(values, dtype=torch.float32))
    with pytest.raises(ValueError, match=f"{said}.*target.pixel_range"):
        shares(batch, config=makes(0.0, 1.0))


@pytest.mark.parametrize(
    ("value", "dtype"), [(256, torch.uint16), (-1, torch.int16), (32767, torch.int16)]
)
def test_whole_pixels_beyond_the_range_are_refused(value, dtype):
    config = makes(0.0, 255.0, dtype=str(dtype).removeprefix("torch."))
    with pytest.raises(ValueError, match=f"a pixel is {value}, outside 0 to 255"):
        shares(batch_of_values(torch.tensor([7, value]).to(dtype)), config=config)


def test_images_of_another_kind_than_those_of_training_are_refused():
    batch = batch_of_values(torch.tensor([7, 200], dtype=torch.uint8))
    with pytest.raises(ValueError, match="pixels are uint8, and this model makes uint16"):
        shares(batch, config=makes(0.0, 65535.0, dtype="uint16"))


@pytest.mark.parametrize("cut", [{"height_px": 13}, {"width_px": 9}])
def test_groups_that_the_image_ends_in_are_refused(cut):
    with pytest.raises(ValueError, match="do not divide an image: its last ones hold"):
        shares(image(2, 2, **cut), config=head())
    shares(image(2, 2, stored=[0], **cut), config=head())


def test_shares_beyond_the_range_are_cut_off():
    values = torch.tensor([-0.5, 0.0, 0.4999, 1.0, 1.7])
    assert pixels_of(values, config=head()).tolist() == [0, 0, 127, 255, 255]
    assert pixels_of(values, config=makes(-1.0, 1.0)).tolist() == pytest.approx(
        [-1.0, -1.0, -0.0002, 1.0, 1.0], abs=1e-6
    )


def test_classes_become_rows_and_no_classes_none():
    rows = one_hot(torch.tensor([2, 0]), config=head(), device=torch.device("cpu"))
    assert rows.tolist() == [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]
    assert one_hot(None, config=head(classes=()), device=torch.device("cpu")) is None


@pytest.mark.parametrize(
    ("targets", "said"),
    [
        (torch.tensor([0, 3]), "class number 3 is none of the model's 3 classes: night, dawn, day"),
        (torch.tensor([2, -1]), "class number -1 is none"),
        (None, "with labels: name one of night, dawn, day"),
    ],
)
def test_class_numbers_beyond_the_classes_are_refused(targets, said):
    with pytest.raises(ValueError, match=said):
        one_hot(targets, config=head(), device=torch.device("cpu"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"pixel_dtype": "complex64"}, "choose one of uint8, uint16, int16, float32"),
        ({"pixel_low": 255.0}, "pixel_low 255.0 must lie below pixel_high 255.0"),
        ({"pixel_high": float("inf")}, "finite"),
        ({"pixel_high": 300.0}, "uint8 holds 0 to 255, not 0 to 300"),
        ({"pixel_low": -1.0}, "uint8 holds 0 to 255, not -1 to 255"),
        ({"pixel_high": 40_000.0, "pixel_dtype": "int16"}, "int16 holds -32768 to 32767"),
        ({"classes": ("a", "a")}, "each once"),
        ({"target": None}, "does not fit 3 classes"),
        ({"classes": ()}, "does not fit 0 classes"),
    ],
)
def test_impossible_pixels_and_classes_are_refused(changes, said):
    settings = {
        "target": "hour", "classes": CLASSES, "pixel_dtype": "uint8", "pixel_low": 0.0,
        "pixel_high": 255.0,
    }  # fmt: skip
    GenerateConfig(**settings)
    with pytest.raises(ValueError, match=said):
        GenerateConfig(**settings | changes)
