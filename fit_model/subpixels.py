"""Images as sequences of sub-pixels: the order in which the autoregressive model reads them.

    group     one patch of patch_px x patch_px px, its sub-pixels in the order row, column, band
    level     round(share * (num_levels - 1)): one of num_levels tokens
    "raster"  patches row by row
    "snake"   even rows of patches left to right, odd ones right to left

Source: google-research/pix2seq, models/image_ar_model; facts of Chen & Li 2023, arXiv:2305.12689.
"""

from collections.abc import Callable

import torch
from jaxtyping import Int64
from torch import Tensor
from torch.nn import functional

from fit_model.crew import ALONE, Crew
from fit_model.groups import GroupBatch, Places
from fit_model.layout import ImageLayout
from fit_model.pixels import GenerateConfig, require_kind, require_range, shares_of
from fit_model.shapes import PerGroup, PerImage

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


class Sequences:
    """Every image's patches in the order in which they are read; patches not stored are skipped.

    Pixels stay as they are stored, and become levels some patches at a time.

    Args:
        batch: stored groups, `across` patches wide.
        patch_px: side of a patch.
        order: one of ORDERS.
        num_levels: of a sub-pixel.
        config: the pixels' range.
        device: where levels are wanted; None where the pixels are.
        crew: who holds the images' other groups; each its own rows of groups, in order.
    """

    def __init__(
        self,
        batch: GroupBatch,
        *,
        patch_px: int,
        order: str,
        num_levels: int,
        config: GenerateConfig,
        device: torch.device | None = None,
        crew: Crew = ALONE,
    ) -> None:
        if batch.pixels.device.type == "cpu":
            require_kind(batch, config=config)
        self.pixels, self.config, self.num_levels = batch.pixels, config, num_levels
        self.patch_px, self.across = patch_px, batch.pixels.shape[1] // patch_px
        places = patch_places(batch.places, across=self.across)
        self.stored = sequence_order(places, order=order)
        """Where each patch of the sequences is stored: group by group, row by row."""
        self.places = places.take(self.stored).to(device or batch.pixels.device)
        """Of patches, not of the groups that are stored."""
        self.crew, self.order = crew, order
        self._last: tuple[slice, Levels] | None = None
        self._before = self._from_before()

    @property
    def levels(self) -> Levels:
        """Of all patches."""
        return self.part(slice(0, len(self.stored)))

    def part(self, patches: slice) -> Levels:
        """Levels of these patches of the sequences; those asked for last are at hand."""
        if self._last is None or self._last[0] != patches:
            self._last = None
            self._last = patches, self._read(patches)
        return self._last[1]

    def _from_before(self) -> PerImage:
        """The last sub-pixel that lies before the patches of each image that are here."""
        places = self.places
        images = self.crew.layout(places.image, num_images=places.num_images, latents_per_group=1)
        ends = torch.bincount(places.image, minlength=places.num_images).cumsum(0) - 1
        number = number_in_order(places, order=self.order) + 1
        last = torch.stack([self._read(ends.to(self.stored.device))[:, -1], number[ends]], 1)
        level, reached = images.carried(last).unbind(1)
        first = functional.pad(ends[:-1] + 1, (1, 0))
        early = torch.zeros_like(number, dtype=torch.float32)
        early[first] = (number[first] <= reached).to(early)
        # summed over all who hold the images, so that all of them refuse
        if images.total(early[:, None]).any():
            raise ValueError(
                "an autoregressive model reads its images row by row: give every worker whole rows "
                "of groups, in order"
            )
        return level

    def _read(self, patches: slice | PerImage) -> Levels:
        stored, across = self.stored[patches], self.across
        group, row, column = stored // across**2, stored // across % across, stored % across
        groups, place = group.unique(return_inverse=True)
        squares = self.pixels[groups].to(self.pixels.device)
        split = squares.unflatten(1, (across, -1)).unflatten(3, (across, -1))
        pixels = split[place, row, :, column]
        if pixels.device.type == "cpu":
            require_range(pixels, config=self.config)
        values = shares_of(pixels.to(self.places.image.device), config=self.config)
        return (values * (self.num_levels - 1)).round().long().flatten(1)

    def inputs(self, patches: slice) -> Levels:
        """What the model is shown: every sub-pixel's predecessor in its image, 0 for the first."""
        first = max(patches.start - 1, 0)
        levels, image = (
            self.part(slice(first, patches.stop)),
            self.places.image[first : patches.stop],
        )
        before = self._before[image]
        last = torch.where(image[1:] == image[:-1], levels[:-1, -1], before[1:])
        if patches.start == 0:
            last = torch.cat([before[:1], last])
        else:
            levels = levels[1:]
        return torch.cat([last[:, None], levels[:, :-1]], 1)


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


def shifted(levels: Levels, images: ImageLayout) -> Levels:
    """What the model is shown: every sub-pixel's predecessor in its image, 0 for the first."""
    # before() works on rows of floats or integers alike: the last sub-pixel of the patch before
    last = images.before(levels[:, -1:, None])[:, :, 0]
    return torch.cat([last, levels[:, :-1]], 1)
