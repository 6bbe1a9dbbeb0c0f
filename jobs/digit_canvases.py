"""Scikit-learn's handwritten digits on larger canvases: which digit is the upper one?

Every canvas holds two digits of 8 x 8 px, one wholly above the other, among scraps of more digits.
The label is the upper digit. Who cannot tell above from below is right in little more than half of
the canvases, who sees one digit's place alone likewise.

Every fifth digit is for the test, and of the others one in eight for the choice of settings. All
that lies on a canvas, scraps too, is of one part.
"""

from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from fit_model import checks

Part = Literal["training", "validation", "test"]
CLASSES = tuple(str(kind) for kind in range(10))
DIGIT_PX = 8
SCRAP_PX = 4
HELD_OUT_SEEDS: dict[Part, int] = {"validation": 1_000_001, "test": 1_000_002}
"""The same canvases for every model and seed."""


@dataclass(frozen=True, kw_only=True)
class CanvasConfig:
    """What a canvas looks like."""

    side_px: int = 40
    step_px: int = 4
    """Digits and scraps lie at multiples of it."""
    scraps: int = 8
    """Squares of 4 px, cut out of digits."""

    def __post_init__(self) -> None:
        checks.positive(side_px=self.side_px, step_px=self.step_px)
        if self.scraps < 0:
            raise ValueError(f"scraps is {self.scraps}: it must be at least 0")
        if (DIGIT_PX % self.step_px, self.side_px % self.step_px) != (0, 0):
            raise ValueError(
                f"step_px {self.step_px} divides not both {DIGIT_PX} px, a digit's side, and "
                f"side_px {self.side_px}: take 1, 2, 4 or 8"
            )
        if self.side_px < 2 * DIGIT_PX:
            raise ValueError(
                f"side_px {self.side_px} has no room for two digits, one above the other: "
                f"at least {2 * DIGIT_PX}"
            )


@dataclass(frozen=True, kw_only=True)
class Digits:
    """Handwritten digits: levels uint8 [count, 8, 8] of 0 to 16, and what they are [count]."""

    images: NDArray[np.uint8]
    kinds: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Canvases:
    """Levels uint8 [count, side, side], and the upper digit of each."""

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]


@cache
def digits_of(part: Part) -> Digits:
    """The digits that the canvases of a part are made of."""
    digits = load_digits()
    number = np.arange(len(digits.target))
    tested = number % 5 == 0
    validated = ~tested & (number % 10 == 1)
    chosen = {"test": tested, "validation": validated, "training": ~tested & ~validated}[part]
    return Digits(images=digits.images[chosen].astype(np.uint8), kinds=digits.target[chosen])


def training_canvases(config: CanvasConfig, *, seed: int, step: int, count: int) -> Canvases:
    """Those of a training step: they depend on nothing but what is given here."""
    rng = np.random.default_rng([seed, step])
    upper = rng.integers(len(digits_of("training").kinds), size=count)
    return draw(config, digits_of("training"), upper, rng)


@cache
def held_out_canvases(
    config: CanvasConfig, part: Literal["validation", "test"], *, places: int
) -> Canvases:
    """Every digit of a part is the upper one on `places` canvases."""
    digits = digits_of(part)
    rng = np.random.default_rng(HELD_OUT_SEEDS[part])
    return draw(config, digits, np.tile(np.arange(len(digits.kinds)), places), rng)


def draw(
    config: CanvasConfig, digits: Digits, upper: NDArray[np.int64], rng: np.random.Generator
) -> Canvases:
    """A canvas for every number of a digit in `upper`; the rest is drawn."""
    pixels = np.zeros((len(upper), config.side_px, config.side_px), np.uint8)
    step_px = config.step_px
    digit = DIGIT_PX // step_px
    last = (config.side_px - DIGIT_PX) // step_px
    for canvas, number in zip(pixels, upper, strict=True):
        _strew_scraps(canvas, config, digits, rng)
        lower = rng.integers(len(digits.kinds))
        upper_row = rng.integers(last - digit + 1)
        lower_row = rng.integers(upper_row + digit, last + 1)
        for chosen, row in ((number, upper_row), (lower, lower_row)):
            top, left = row * step_px, rng.integers(last + 1) * step_px
            canvas[top : top + DIGIT_PX, left : left + DIGIT_PX] = digits.images[chosen]
    return Canvases(pixels=pixels, labels=digits.kinds[upper])


def _strew_scraps(
    canvas: NDArray[np.uint8], config: CanvasConfig, digits: Digits, rng: np.random.Generator
) -> None:
    places = (config.side_px - SCRAP_PX) // config.step_px + 1
    for _ in range(config.scraps):
        image = digits.images[rng.integers(len(digits.images))]
        row, column = rng.integers(DIGIT_PX - SCRAP_PX + 1, size=2)
        top, left = config.step_px * rng.integers(places, size=2)
        spot = canvas[top : top + SCRAP_PX, left : left + SCRAP_PX]
        np.maximum(spot, image[row : row + SCRAP_PX, column : column + SCRAP_PX], out=spot)
