"""The grid of groups that an image to be made consists of, and the image that they make."""

from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Shaped
from torch import Tensor

from fit_model import checks
from fit_model.autoregressive import AutoregressiveConfig
from fit_model.encoder import EncoderConfig
from fit_model.groups import Places
from fit_model.model import ModelConfig
from fit_model.pixels import GenerateConfig
from fit_model.vix import VixConfig

MOST_PIXELS = 2**31
"""Of an image to be made; a configuration that was downloaded may declare any size."""


PIXELS_A_BATCH = 2**24
"""Images are drawn together up to so many pixels; a larger one is drawn alone."""


@dataclass(frozen=True, kw_only=True)
class Canvas:
    """Rows and columns of whole groups, none of them missing."""

    rows: int
    columns: int

    def __post_init__(self) -> None:
        checks.positive(grid_rows=self.rows, grid_columns=self.columns)

    def places(self, num_images: int, *, device: torch.device | None = None) -> Places:
        """Where the groups of so many images lie: image by image, row by row."""
        num_groups = self.rows * self.columns
        number = torch.arange(num_groups, device=device).repeat(num_images)
        ones = torch.ones(num_images, dtype=torch.int64, device=device)
        return Places(
            image=torch.arange(num_images, device=device).repeat_interleave(num_groups),
            row=number // self.columns,
            column=number % self.columns,
            grid_rows=ones * self.rows,
            grid_columns=ones * self.columns,
        )

    def images_together(self, *, group_side_px: int) -> int:
        """How many images may be drawn at a time, so that memory does not grow with their size."""
        return max(1, PIXELS_A_BATCH // (self.rows * self.columns * group_side_px**2))

    def pictures(
        self, groups: Shaped[Tensor, "g side side bands"]
    ) -> Shaped[Tensor, "b height width bands"]:
        """The groups at `places` put together."""
        grids = groups.unflatten(0, (-1, self.rows, self.columns))
        return grids.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def canvas_of(
    config: ModelConfig, *, rows: int | None = None, columns: int | None = None
) -> Canvas:
    """The canvas that a user asks for; what is not said is as in most images of training."""
    head = cast(GenerateConfig, config.head)
    canvas = Canvas(rows=rows or head.grid_rows, columns=columns or head.grid_columns)
    num_pixels = canvas.rows * canvas.columns * config.input.group_side_px**2
    if num_pixels > MOST_PIXELS:
        raise ValueError(
            f"grid_rows {canvas.rows} and grid_columns {canvas.columns} make an image of "
            f"{num_pixels} pixels, and at most {MOST_PIXELS} are made: set them to less"
        )
    known = known_groups(config)
    if known not in (None, canvas.rows * canvas.columns):
        raise ValueError(
            f"this model makes images of {known} groups, and {canvas.rows} x {canvas.columns} are "
            f"not as many: set grid_rows and grid_columns to factors of {known}"
        )
    return canvas


def known_groups(config: ModelConfig) -> int | None:
    """Stored groups of every image that the model was built for; None where any number will do."""
    face = config.face
    if isinstance(face, VixConfig):
        return face.grid_rows * face.grid_columns
    one_number_only = face.latent_position != "coordinate" or (
        isinstance(face, EncoderConfig) and face.group_token != "none"
    )
    return most_groups(config) if one_number_only else None


def most_groups(config: ModelConfig) -> int | None:
    """Stored groups of the largest image that the model takes; None where there is no limit."""
    face = config.face
    if isinstance(face, VixConfig):
        return face.grid_rows * face.grid_columns
    if face.num_groups is not None and isinstance(face, AutoregressiveConfig):
        return face.num_groups // (config.input.group_side_px // face.patch_px) ** 2
    return face.num_groups
