"""What is seen of an image in one epoch: which of its stored groups, where, and in what colours."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from fit_model.augment.colours import Colours, colours_of
from fit_model.augment.config import AugmentConfig
from fit_model.augment.crops import Crop, crop_of
from fit_model.augment.symmetries import IDENTITY, SYMMETRIES, Symmetry, Turn, turned
from fit_model.groups import GroupBatch
from fit_model.seeds import mixed
from fit_model.shapes import PerGroup
from fit_model.stored_pixels import StoredPixels

OF_ITS_OWN = -1
"""Part of what an image's seed decides; those from 0 on belong to its groups."""


@dataclass(frozen=True, kw_only=True)
class View:
    """An image as it is seen: its groups row by row."""

    stored: PerGroup
    """Which of the image's stored groups each is, counted from 0."""
    row: PerGroup
    column: PerGroup
    grid_rows: int
    grid_columns: int
    symmetry: Symmetry
    colours: Colours | None
    """A single row."""

    def part(self, run: slice) -> "View":
        """These neighbours of the groups."""
        return replace(self, stored=self.stored[run], row=self.row[run], column=self.column[run])

    def of(self, groups: GroupBatch) -> GroupBatch:
        """The view of an image, of whom `groups` are just those that are seen, as they are stored.

        Stored pixels stay where they are, and turn when they become a tensor.
        """
        # argsort twice: the place of each among those that were read
        read = self.stored.argsort().argsort()
        height_px, width_px = groups.valid_height_px[read], groups.valid_width_px[read]
        pixels = groups.pixels[read]
        if self.symmetry != IDENTITY:
            turns = [
                Turn(symmetry=self.symmetry, height_px=height, width_px=width)
                for height, width in zip(height_px.tolist(), width_px.tolist(), strict=True)
            ]
            if isinstance(pixels, StoredPixels):
                pixels = pixels.turned(turns)
            else:
                pixels = turned(pixels, turns)
        height_px, width_px = self.symmetry.extent(height_px, width_px)
        return GroupBatch(
            pixels=pixels,
            image=torch.zeros_like(self.row),
            row=self.row,
            column=self.column,
            valid_height_px=height_px,
            valid_width_px=width_px,
            grid_rows=torch.tensor([self.grid_rows]),
            grid_columns=torch.tensor([self.grid_columns]),
            nodata=groups.nodata,
            colours=self.colours,
        )


def draw_view(
    groups: Sequence[int],
    *,
    rows: int,
    columns: int,
    bands: int,
    config: AugmentConfig,
    seed: int,
    num_workers: int = 1,
    unit: str = "groups",
) -> View:
    """What `seed` makes of an image, the same on every worker.

    Args:
        groups: the numbers of its stored groups in its grid, row by row, rising.
        rows: of its grid.
        columns: likewise.
        bands: of its pixels.
        config: what may change.
        seed: of the image in this epoch.
        num_workers: that share the image.
        unit: what they do not divide, as in fit_model.parallel.shares.

    Raises:
        ValueError: a crop never holds enough for so many workers.
    """
    generator = torch.Generator().manual_seed(mixed(seed, OF_ITS_OWN))
    chances = torch.rand(10 + 2 * bands, dtype=torch.float64, generator=generator)
    choices = SYMMETRIES[config.symmetries]
    symmetry = choices[int(chances[0] * len(choices))]
    crop = _crop(
        groups,
        rows=rows,
        columns=columns,
        config=config,
        chance=float(chances[1]),
        least=num_workers,
        unit=_before(symmetry, unit),
    )
    colours = colours_of(config, bands=bands, chances=chances[2:])
    return view_of(groups, columns=columns, crop=crop, symmetry=symmetry, colours=colours)


def require_views(
    groups: Sequence[int],
    *,
    rows: int,
    columns: int,
    config: AugmentConfig,
    num_workers: int,
    unit: str,
) -> None:
    """Refuse an image of which a worker might be left without a group; as draw_view otherwise."""
    for before in {_before(each, unit) for each in SYMMETRIES[config.symmetries]}:
        _crop(
            groups,
            rows=rows,
            columns=columns,
            config=config,
            chance=0.0,
            least=num_workers,
            unit=before,
        )


def _before(symmetry: Symmetry, unit: str) -> str:
    """What the unit is called before the symmetry."""
    return "columns" if unit == "rows" and symmetry.transposed else unit


def _crop(
    groups: Sequence[int],
    *,
    rows: int,
    columns: int,
    config: AugmentConfig,
    chance: float,
    least: int,
    unit: str,
) -> Crop:
    """Of the whole grid where nothing is to be cropped."""
    stored = np.zeros((rows, columns), bool)
    stored.flat[list(groups)] = True
    most_rows, most_columns = config.crop_groups or (rows, columns)
    return crop_of(
        stored,
        rows=min(rows, most_rows),
        columns=min(columns, most_columns),
        chance=chance,
        least=least,
        unit=unit,
    )


def view_of(
    groups: Sequence[int],
    *,
    columns: int,
    crop: Crop,
    symmetry: Symmetry = IDENTITY,
    colours: Colours | None = None,
) -> View:
    """The view of an image whose grid has so many columns: cropped, then turned, then coloured."""
    number = torch.tensor(groups)
    row, column = number // columns - crop.top, number % columns - crop.left
    inside: Tensor = (row >= 0) & (row < crop.rows) & (column >= 0) & (column < crop.columns)
    stored = inside.nonzero()[:, 0]
    row, column = symmetry.places(row[stored], column[stored], rows=crop.rows, columns=crop.columns)
    grid_rows, grid_columns = symmetry.extent(crop.rows, crop.columns)
    order = (row * grid_columns + column).argsort()
    return View(
        stored=stored[order],
        row=row[order],
        column=column[order],
        grid_rows=grid_rows,
        grid_columns=grid_columns,
        symmetry=symmetry,
        colours=colours,
    )
