"""The batch that a model eats: groups of pixels of several images, in one flat list.

Images of different sizes share a batch, and a group that holds nothing is simply absent: nothing
here is padded to the largest image.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from fit_model.augment.colours import Colours, joined_colours
from fit_model.shapes import PerGroup, PerImage
from fit_model.stored_pixels import Pixels, StoredPixels, joined

PER_IMAGE = ("grid_rows", "grid_columns", "nodata", "colours")
"""What a batch says of images; all else it says of groups."""


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where each group lies: which image, and which square of that image's grid (0-based)."""

    image: PerGroup
    """Index of the group's image in the batch, non-decreasing."""
    row: PerGroup
    column: PerGroup
    grid_rows: PerImage
    grid_columns: PerImage

    @classmethod
    def in_one_row(cls, *, num_images: int, num_groups: int, device: torch.device) -> "Places":
        """Images that all have `num_groups` groups, numbered 0, 1, 2, ... and nothing more."""
        number = torch.arange(num_groups, device=device).repeat(num_images)
        ones = torch.ones(num_images, dtype=torch.int64, device=device)
        return cls(
            image=torch.arange(num_images, device=device).repeat_interleave(num_groups),
            row=torch.zeros_like(number),
            column=number,
            grid_rows=ones,
            grid_columns=ones * num_groups,
        )

    def take(self, chosen: slice | PerGroup) -> "Places":
        """These of the groups, in this order; images keep their numbers."""
        return Places(
            image=self.image[chosen],
            row=self.row[chosen],
            column=self.column[chosen],
            grid_rows=self.grid_rows,
            grid_columns=self.grid_columns,
        )

    def to(self, device: torch.device) -> "Places":
        """The same places on another device."""
        return Places(
            **{field.name: getattr(self, field.name).to(device) for field in fields(self)}
        )

    @property
    def num_images(self) -> int:
        """How many images share the batch."""
        return len(self.grid_rows)

    @property
    def number(self) -> PerGroup:
        """The group's number in its image's grid, row by row; missing groups keep theirs."""
        return self.row * self.grid_columns[self.image] + self.column


@dataclass(frozen=True, kw_only=True)
class GroupBatch:
    """Groups of one or more images: their pixels as stored, and where they lie.

    Refuses, with ValueError, groups that contradict each other. Values are only looked at on the
    CPU, where batches are made; on an accelerator that would stall it.
    """

    pixels: Pixels | StoredPixels
    """In the source's dtype; what lies outside the valid extent is arbitrary. Stored pixels stay
    where they are until `to` moves them; only a tensor's values can be computed with."""
    image: PerGroup
    row: PerGroup
    column: PerGroup
    valid_height_px: PerGroup
    """How much of the square lies inside the image, from its upper left corner."""
    valid_width_px: PerGroup
    grid_rows: PerImage
    grid_columns: PerImage
    nodata: Float64[Tensor, " b"]
    """The value that marks missing pixels, NaN where none is declared."""
    colours: Colours | None = None
    """What becomes of each image's colours in training; None where they stay."""

    def __post_init__(self) -> None:
        for name in ("image", "row", "column", "valid_height_px", "valid_width_px"):
            if len(getattr(self, name)) != len(self.pixels):
                raise ValueError(
                    f"{name} has {len(getattr(self, name))} entries for {len(self.pixels)} groups"
                )
        if not len(self.grid_rows) == len(self.grid_columns) == len(self.nodata):
            raise ValueError("grid_rows, grid_columns and nodata differ in their number of images")
        if self.colours is not None and len(self.colours) != self.num_images:
            raise ValueError(f"colours are for {len(self.colours)} of {self.num_images} images")
        if self.pixels.device.type == "cpu":
            self._check_values()

    def _check_values(self) -> None:
        steps = self.image.diff()
        if len(self.image) == 0 or self.image[0] != 0 or (steps < 0).any():
            raise ValueError("a batch starts with image 0 and its images follow in order")
        if (steps > 1).any() or self.image[-1] != self.num_images - 1:
            present = torch.bincount(self.image, minlength=self.num_images)
            raise ValueError(
                f"image {int(present[: self.num_images].argmin())} of the batch has no groups: "
                "leave such images out"
            )
        side_px = self.pixels.shape[1]
        for extent in (self.valid_height_px, self.valid_width_px):
            if (extent < 1).any() or (extent > side_px).any():
                raise ValueError(f"a valid extent lies outside 1 to {side_px} px")
        for place, grid in ((self.row, self.grid_rows), (self.column, self.grid_columns)):
            if (place < 0).any() or (place >= grid[self.image]).any():
                raise ValueError("a group lies outside its image's grid")

    @property
    def num_images(self) -> int:
        """How many images share the batch."""
        return len(self.grid_rows)

    @property
    def places(self) -> Places:
        """Where the groups lie, without their pixels."""
        return Places(**{field.name: getattr(self, field.name) for field in fields(Places)})

    def part(self, groups: slice) -> "GroupBatch":
        """These neighbours of the groups, as a batch of the images they belong to; no copy."""
        if (groups.start, groups.stop) == (0, len(self.image)):
            return self
        image = self.image[groups]
        images = slice(int(image[0]), int(image[-1]) + 1)
        parts = {field.name: getattr(self, field.name) for field in fields(self)}
        for name, values in parts.items():
            if values is not None:
                parts[name] = values[images if name in PER_IMAGE else groups]
        return GroupBatch(**parts | {"image": image - image[0]})

    def to(self, device: torch.device | str) -> "GroupBatch":
        """The same batch on another device; asynchronous from pinned memory."""
        if isinstance(self.pixels, Tensor) and self.pixels.device == torch.device(device):
            return self
        parts: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        for name, values in parts.items():
            if values is not None:
                parts[name] = values.to(device, non_blocking=True)
        return GroupBatch(**parts)


def collate(batches: Sequence[GroupBatch]) -> GroupBatch:
    """One batch of all images of `batches`, in order; pixels of tensors are copied once."""
    if not batches:
        raise ValueError("there is nothing to collate: give at least one image")
    formats = {(str(batch.pixels.dtype), tuple(batch.pixels.shape[1:])) for batch in batches}
    if len(formats) > 1:
        raise ValueError(
            f"images of different formats cannot share a batch: {sorted(formats)}; "
            "train on one format (dtype, group side, bands) at a time"
        )
    parts: dict[str, Any] = {
        field.name: torch.cat([getattr(batch, field.name) for batch in batches])
        for field in fields(GroupBatch)
        if field.name not in ("pixels", "colours")
    }
    counts = torch.tensor([batch.num_images for batch in batches])
    offsets = (counts.cumsum(0) - counts).to(parts["image"].device)
    sizes = torch.tensor([len(batch.image) for batch in batches], device=offsets.device)
    parts["image"] = parts["image"] + offsets.repeat_interleave(sizes)
    return GroupBatch(
        pixels=joined([batch.pixels for batch in batches]),
        colours=joined_colours([batch.colours for batch in batches]),
        **parts,
    )
