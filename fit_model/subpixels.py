"""Images as sequences of sub-pixels: the order in which the autoregressive model reads them.

    group     one patch of patch_px x patch_px px, its sub-pixels in the order row, column, band
    level     round(share * (num_levels - 1)): one of num_levels tokens
    "raster"  patches row by row
    "snake"   even rows of patches left to right, odd ones right to left

Source: google-research/pix2seq, models/image_ar_model; facts of Chen & Li 2023, arXiv:2305.12689.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Int64
from torch import Tensor

from fit_model.groups import GroupBatch, Places
from fit_model.layout import ImageLayout
from fit_model.pixels import GenerateConfig, shares
from fit_model.shapes import PerGroup
from fit_model.tokens import patches_of

Levels = Int64[Tensor, "g n"]


def raster(row: PerGroup, column: PerGroup, columns: PerGroup) -> PerGroup:
    """Place of a patch in its image's sequence, row by row."""
    return row * columns + column


def snake(row: PerGroup, column: PerGroup, columns: PerGroup) -> PerGroup:
    """Place of a patch in its image's sequence when every second row runs backwards."""
    return row * columns + torch.where(row % 2 == 0, column, columns - 1 - column)


ORDERS: dict[str, Callable[[PerGroup, PerGroup, PerGroup], PerGroup]] = {
    "raster": raster,
    "snake": snake,
}


@dataclass(frozen=True, kw_only=True)
class Sequences:
    """Every image's patches in the order in which they are read."""

    levels: Levels
    places: Places
    """Of patches, not of the groups that are stored."""


def sequences_of(
    batch: GroupBatch, *, patch_px: int, order: str, num_levels: int, config: GenerateConfig
) -> Sequences:
    """The sub-pixels of all images as levels, patches in order; patches not stored are skipped."""
    across = batch.pixels.shape[1] // patch_px
    values = patches_of(shares(batch, config=config), patch_px=patch_px)
    levels = (values * (num_levels - 1)).round().long().flatten(0, 1)
    places = patch_places(batch.places, across=across)
    sequence = sequence_order(places, order=order)
    return Sequences(levels=levels[sequence], places=take(places, sequence))


def patch_places(groups: Places, *, across: int) -> Places:
    """The places of all patches of groups that are `across` patches wide, group by group."""
    inside = torch.arange(across * across, device=groups.row.device)
    repeat = across * across
    return Places(
        image=groups.image.repeat_interleave(repeat),
        row=(groups.row[:, None] * across + inside // across).flatten(),
        column=(groups.column[:, None] * across + inside % across).flatten(),
        grid_rows=groups.grid_rows * across,
        grid_columns=groups.grid_columns * across,
    )


def number_in_order(places: Places, *, order: str) -> PerGroup:
    """Each patch's place in the sequence of its whole image."""
    return ORDERS[order](places.row, places.column, places.grid_columns[places.image])


def sequence_order(places: Places, *, order: str) -> PerGroup:
    """Indices that put patches into the order of their images' sequences."""
    longest = int((places.grid_rows * places.grid_columns).max())
    return (places.image * longest + number_in_order(places, order=order)).argsort()


def take(places: Places, chosen: PerGroup) -> Places:
    """These of the places, in this order."""
    return Places(
        image=places.image[chosen],
        row=places.row[chosen],
        column=places.column[chosen],
        grid_rows=places.grid_rows,
        grid_columns=places.grid_columns,
    )


def shifted(levels: Levels, images: ImageLayout) -> Levels:
    """What the model is shown: every sub-pixel's predecessor in its image, 0 for the first."""
    # before() works on rows of floats or integers alike: the last sub-pixel of the patch before
    last = images.before(levels[:, -1:, None])[:, :, 0]
    return torch.cat([last, levels[:, :-1]], 1)
