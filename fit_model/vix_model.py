"""ViX as a model: pixels of groups in, one row of outputs an image out."""

from typing import cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fit_model.canvas import Canvas
from fit_model.course import WHOLE, Runner, Whole
from fit_model.crew import ALONE
from fit_model.groups import GroupBatch
from fit_model.heads import PredictConfig, build_head
from fit_model.model import ModelConfig
from fit_model.predictor import Predictor
from fit_model.shapes import Outputs
from fit_model.tokens import normalized, valid_patches
from fit_model.vix import Vix, VixConfig


class VixModel(Predictor):
    """ViX and a head on whole pictures, each put together from its groups.

    Pixels are normalised in float32, whatever the model runs in; missing ones become their band's
    mean, and so do groups that are not stored.
    """

    face: VixConfig

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        face, head = cast(VixConfig, config.face), cast(PredictConfig, config.head)
        self.face = face
        self.canvas = Canvas(rows=face.grid_rows, columns=face.grid_columns)
        pixels = config.input
        self.vix = Vix(face, group_side_px=pixels.group_side_px, bands=pixels.bands)
        self.head = build_head(head, width=face.width)

    def forward(self, batch: GroupBatch, *, runner: Runner = WHOLE) -> Outputs:
        """Logits or standardised numbers of every image, in float32 at least."""
        if not isinstance(runner, Whole) or runner.crew is not ALONE:
            raise ValueError(
                "a model of kind 'vix' sees its images whole: leave bounded and parallel.groups out"
            )
        self.require_format(batch)
        self.require_grid(batch)
        batch = batch.to(self.device)
        images = self.whole(normalized(batch, config=self.config.input), batch)
        return self.head.outputs(self.vix(images, self.seen(batch)))

    def require_grid(self, batch: GroupBatch) -> None:
        """Refuse images of another grid of groups than the model was made for."""
        rows, columns = self.canvas.rows, self.canvas.columns
        if (batch.grid_rows != rows).any() or (batch.grid_columns != columns).any():
            grids = torch.stack([batch.grid_rows, batch.grid_columns], 1).unique(dim=0)
            found = ", ".join(f"{high} x {wide}" for high, wide in grids.tolist())
            raise ValueError(
                f"this model takes images of {rows} x {columns} groups, not of {found}: set "
                "grid_rows and grid_columns, or take kind 'encoder', which takes any size"
            )

    def whole(
        self, groups: Float[Tensor, "g side side c"], batch: GroupBatch
    ) -> Float[Tensor, "b height width c"]:
        """The groups put together; zeros where none is stored."""
        places, (rows, columns) = batch.places, (self.canvas.rows, self.canvas.columns)
        empty = groups.new_zeros(batch.num_images * rows * columns, *groups.shape[1:])
        number = places.image * rows * columns + places.number
        return self.canvas.pictures(empty.index_copy(0, number, groups))

    def seen(self, batch: GroupBatch) -> Bool[Tensor, "b n"] | None:
        """Which patches of the picture show something of their image; None for all."""
        valid = valid_patches(batch, patch_px=self.face.patch_px)
        groups = batch.num_images * self.canvas.rows * self.canvas.columns
        if valid is None and len(batch.pixels) == groups:
            return None
        side = self.config.input.group_side_px // self.face.patch_px
        shape = (len(batch.pixels), side, side, 1)
        shown = torch.ones(shape, device=batch.pixels.device)
        if valid is not None:
            shown = valid.to(torch.float32).view(shape)
        return self.whole(shown, batch).flatten(1) > 0
