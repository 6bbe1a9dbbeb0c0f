"""Small models and batches that several tests share."""

from dataclasses import replace

import torch

from fit_model.encoder import EncoderConfig
from fit_model.groups import GroupBatch
from fit_model.heads import ClassifyConfig
from fit_model.model import ModelConfig
from fit_model.tokens import InputConfig
from fit_model.trunk_config import TrunkConfig

SIDE_PX, PATCH_PX, BANDS = 8, 4, 2


def trunk_config(**changes) -> TrunkConfig:
    config = TrunkConfig(
        layers="(1)2(1)1",
        width=12,
        latent_width=8,
        latents_per_group=3,
        heads=2,
        latent_heads=4,
    )
    return replace(config, **changes)


def model_config(*, head=None, pixels=None, trunk=None, **encoder) -> ModelConfig:
    return ModelConfig(
        face=EncoderConfig(**{"patch_px": PATCH_PX} | encoder, trunk=trunk or trunk_config()),
        input=pixels
        or InputConfig(
            bands=BANDS, group_side_px=SIDE_PX, band_mean=(90.0, 110.0), band_std=(40.0, 50.0)
        ),
        head=head or ClassifyConfig(classes=("day", "night", "dusk")),
    )


def image(
    rows: int,
    columns: int,
    *,
    stored: list[int] | None = None,
    height_px: int | None = None,
    width_px: int | None = None,
    nodata: float = float("nan"),
    dtype: torch.dtype = torch.uint8,
    seed: int = 0,
) -> GroupBatch:
    """One image of rows x columns groups, of which only those numbered in `stored` exist."""
    number = torch.arange(rows * columns) if stored is None else torch.tensor(stored)
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(1, 200, (len(number), SIDE_PX, SIDE_PX, BANDS), generator=generator)
    row, column = number // columns, number % columns
    return GroupBatch(
        pixels=pixels.to(dtype),
        image=torch.zeros_like(number),
        row=row,
        column=column,
        valid_height_px=((height_px or rows * SIDE_PX) - row * SIDE_PX).clamp(max=SIDE_PX),
        valid_width_px=((width_px or columns * SIDE_PX) - column * SIDE_PX).clamp(max=SIDE_PX),
        grid_rows=torch.tensor([rows]),
        grid_columns=torch.tensor([columns]),
        nodata=torch.tensor([nodata], dtype=torch.float64),
    )


def randomize(module: torch.nn.Module, *, seed: int = 0) -> torch.nn.Module:
    """Draw every parameter anew, biases and norms included, so that nothing hides behind 0 or 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(0.3 * noise.to(parameter.dtype))
    return module
