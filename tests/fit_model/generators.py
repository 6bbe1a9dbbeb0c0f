"""Small generative models and what several tests ask of them."""

from dataclasses import replace

import torch

from fit_model.autoregressive import AutoregressiveConfig
from fit_model.denoiser import DiffusionConfig
from fit_model.groups import GroupBatch, Places, collate
from fit_model.model import Model, ModelConfig
from fit_model.models import build
from fit_model.pixels import GenerateConfig
from fit_model.tokens import InputConfig
from tests.fit_model.examples import BANDS, PATCH_PX, SIDE_PX, image, randomize, trunk_config

LAYERS = "(1)2(1)1(1)"
CLASSES = ("night", "dawn", "day")
TRUNK = trunk_config(layers=LAYERS, latent_width=16)
FACES = {"diffusion": DiffusionConfig, "autoregressive": AutoregressiveConfig}
IMAGES = [
    image(2, 2, seed=1),
    image(3, 5, stored=[0, 3, 11], seed=2),
    image(1, 1, seed=3),
    image(4, 2, stored=[0, 1, 4, 7], seed=4),
]
"""Of different sizes, some with groups that are not stored."""


def pixels(*, side_px: int = SIDE_PX, bands: int = BANDS) -> InputConfig:
    return InputConfig(
        bands=bands, group_side_px=side_px, band_mean=(0.0,) * bands, band_std=(1.0,) * bands
    )


def head(*, classes: tuple[str, ...] = CLASSES, **changes) -> GenerateConfig:
    config = GenerateConfig(
        target="hour" if classes else None,
        classes=classes,
        pixel_dtype="uint8",
        pixel_low=0.0,
        pixel_high=255.0,
    )
    return replace(config, **changes)


def generator_config(
    kind: str, *, classes: tuple[str, ...] = CLASSES, trunk=None, source=None, makes=None, **face
) -> ModelConfig:
    settings = {"patch_px": PATCH_PX, "trunk": trunk or trunk_config(layers=LAYERS)} | face
    return ModelConfig(
        face=FACES[kind](**settings),
        input=source or pixels(),
        head=makes or head(classes=classes),
    )


def targets_of(model_or_config, count: int) -> torch.Tensor | None:
    """Class numbers of `count` images, if the model takes any."""
    config = getattr(model_or_config, "config", model_or_config)
    num_classes = len(config.head.classes)
    return torch.arange(count) % num_classes if num_classes else None


def seeds_of(count: int, *, start: int = 40) -> torch.Tensor:
    return torch.arange(start, start + count)


def batch_of(images=IMAGES) -> GroupBatch:
    return collate(images)


def single_groups(count: int) -> Places:
    """The places of images of one group each."""
    return Places.in_one_row(num_images=count, num_groups=1, device=torch.device("cpu"))


def model_of(kind: str, *, trunk=TRUNK, **settings) -> Model:
    """A model whose every weight is drawn at random."""
    torch.manual_seed(0)
    return randomize(build(generator_config(kind, trunk=trunk, **settings))).eval()
