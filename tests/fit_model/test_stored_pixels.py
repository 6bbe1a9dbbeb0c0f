"""Stored pixels become the tensor that they stand for, whichever part is asked for."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fit_model.augment.symmetries import HALF_TURN, Turn
from fit_model.groups import collate
from fit_model.stored_pixels import StoredPixels
from tests.fit_model.examples import image


def stored(count: int, *, seed: int = 0) -> tuple[StoredPixels, np.ndarray]:
    squares = np.random.default_rng(seed).integers(0, 60_000, (count, 4, 4, 3)).astype(np.uint16)
    squares.flags.writeable = False
    return StoredPixels(list(squares)), squares


def test_any_part_is_what_numpy_gives() -> None:
    pixels, squares = stored(7)
    assert pixels.shape == squares.shape
    assert pixels.dtype == torch.uint16
    np.testing.assert_array_equal(pixels[2:5].to("cpu"), squares[2:5])
    np.testing.assert_array_equal(pixels[torch.tensor([5, 0])].to("cpu"), squares[[5, 0]])
    np.testing.assert_array_equal(torch.cat(list(pixels.split(3))), squares)
    pixels.to("cpu").fill_(1)  # a copy: what is stored cannot be written to
    np.testing.assert_array_equal(pixels.to("cpu"), squares)


def test_batches_of_stored_pixels_are_collated_without_reading_them() -> None:
    one, other = image(2, 3, seed=1), image(1, 2, seed=2)
    lazy = [replace(each, pixels=StoredPixels(list(each.pixels.numpy()))) for each in (one, other)]
    together, wanted = collate(lazy), collate([one, other])
    assert isinstance(together.pixels, StoredPixels)
    assert isinstance(together.part(slice(1, 4)).pixels, StoredPixels)
    moved = together.to("cpu")
    assert isinstance(moved.pixels, torch.Tensor)
    assert moved.pixels.equal(wanted.pixels)
    assert moved.image.equal(wanted.image)


def test_stored_pixels_and_tensors_share_a_batch() -> None:
    one, other = image(2, 3, seed=1), image(1, 2, seed=2)
    mixed = collate([replace(one, pixels=StoredPixels(list(one.pixels.numpy()))), other])
    assert mixed.pixels.equal(collate([one, other]).pixels)


def test_squares_of_several_formats_are_refused() -> None:
    with pytest.raises(ValueError, match="squares of 2 formats"):
        StoredPixels([np.zeros((2, 2, 1), np.uint8), np.zeros((2, 2, 1), np.uint16)])
    one, other = (StoredPixels([np.zeros((2, side, 1), np.uint8)]) for side in (2, 3))
    with pytest.raises(ValueError, match=r"squares of 2 formats.* \[2, 2, 1\]"):
        one.followed_by([other])


class Watched(np.ndarray):
    """Counts how often anybody asks for its shape."""

    asked = 0

    @property
    def shape(self) -> tuple[int, ...]:
        Watched.asked += 1
        return np.ndarray.shape.__get__(self)


def test_formats_are_looked_at_once_and_not_at_every_part() -> None:
    pixels = StoredPixels([np.zeros((2, 2, 1), np.uint8).view(Watched) for _ in range(5)])
    turn = Turn(symmetry=HALF_TURN, height_px=2, width_px=2)
    Watched.asked = 0
    parts = [pixels[1:3], pixels[torch.tensor([4, 0])], pixels.turned([turn] * 5)]
    joined = pixels.followed_by(parts)
    assert Watched.asked == 0
    assert [part.shape for part in (*parts, joined)] == [(n, 2, 2, 1) for n in (2, 2, 5, 14)]
