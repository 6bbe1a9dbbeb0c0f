"""From the pixels of groups to patches, and from patches to data tokens.

    value  = (pixel - mean of its band) / std of its band;   0 where the pixel is missing
    patch  = its values in the order row, column, band
    token  = LayerNorm(patch W + b)

A group is one contiguous square of the image, its patches are numbered row by row.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from fit_model import checks
from fit_model.groups import GroupBatch
from fit_model.layers import KEY_NORMS, dense
from fit_model.shapes import DataTokens, Patches, ValidTokens

EXACT_IN_FLOAT32 = (
    torch.uint8, torch.int8, torch.uint16, torch.int16, torch.float16, torch.bfloat16, torch.float32
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class InputConfig:
    """The pixels a model was made for."""

    bands: int
    group_side_px: int
    band_mean: tuple[float, ...]
    """In the source's units, over the training images."""
    band_std: tuple[float, ...]

    def __post_init__(self) -> None:
        checks.positive(bands=self.bands, group_side_px=self.group_side_px)
        checks.finite(band_mean=self.band_mean, band_std=self.band_std)
        for name, values in (("band_mean", self.band_mean), ("band_std", self.band_std)):
            if len(values) != self.bands:
                raise ValueError(f"{name} has {len(values)} values for {self.bands} bands")
        if min(self.band_std) <= 0:
            raise ValueError(
                f"band_std holds {min(self.band_std)}: a deviation is above 0; "
                "leave out bands that are constant"
            )


def patches_of(
    squares: Shaped[Tensor, "g height width bands"], *, patch_px: int
) -> Shaped[Tensor, "g n c"]:
    """Cut squares, or rectangles, into patches: n row by row, c in the order row, column, band."""
    split = squares.unflatten(1, (-1, patch_px)).unflatten(3, (-1, patch_px))
    return split.transpose(2, 3).flatten(1, 2).flatten(2)


def squares_of(
    patches: Shaped[Tensor, "g n c"], *, patch_px: int, bands: int
) -> Shaped[Tensor, "g side side {bands}"]:
    """The inverse of patches_of."""
    across = round(patches.shape[1] ** 0.5)
    split = patches.unflatten(2, (patch_px, patch_px, bands)).unflatten(1, (across, across))
    return split.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def normalized(batch: GroupBatch, *, config: InputConfig) -> Float[Tensor, "g side side bands"]:
    """Pixels in units of their band's deviation; missing and padded ones are 0, the mean.

    Missing are NaN, infinity and the image's nodata value, which is compared in the source's own
    precision. Computed in float32, whatever the model runs in: bf16 has no room for 16-bit pixels.
    Colours change before pixels that are missing as stored are set to 0.
    """
    device = batch.pixels.device
    source = batch.pixels.to(device)
    exact = torch.float32 if source.dtype in EXACT_IN_FLOAT32 else torch.float64
    raw = source.to(exact)
    mean = torch.tensor(config.band_mean, dtype=exact, device=device)
    scale = 1.0 / torch.tensor(config.band_std, dtype=exact, device=device)
    colours = None if batch.colours is None else batch.colours[batch.image]
    shown = raw if colours is None else colours.pixels(raw)
    values = (shown - mean).mul_(scale).to(torch.float32)
    if colours is not None:
        values = colours.values(values)
    if source.is_floating_point():
        values = torch.where(raw.isfinite(), values, 0.0)
    if not batch.nodata.isnan().all():
        nodata = batch.nodata.to(exact)[batch.image]
        values = torch.where(raw == nodata[:, None, None, None], 0.0, values)
    side_px = source.shape[1]
    if (torch.minimum(batch.valid_height_px, batch.valid_width_px) < side_px).any():
        place = torch.arange(side_px, device=device)
        inside_rows = (place < batch.valid_height_px[:, None])[:, :, None, None]
        inside_columns = (place < batch.valid_width_px[:, None])[:, None, :, None]
        values = torch.where(inside_rows & inside_columns, values, 0.0)
    return values


def valid_patches(batch: GroupBatch, *, patch_px: int) -> ValidTokens | None:
    """Which patches hold at least one pixel of their image; None when all do."""
    side_px = batch.pixels.shape[1]
    start = torch.arange(0, side_px, patch_px, device=batch.pixels.device)
    rows = start < batch.valid_height_px[:, None]
    columns = start < batch.valid_width_px[:, None]
    valid = (rows[:, :, None] & columns[:, None, :]).flatten(1)
    return None if valid.all() else valid


class Stem(nn.Module):
    """The official stem: one dense layer and a LayerNorm; no convolution."""

    def __init__(
        self, *, inputs: int, width: int, norm: Literal["layer_norm", "none"] = "layer_norm"
    ) -> None:
        super().__init__()
        self.project = dense(inputs, width)
        self.norm = KEY_NORMS[norm](width)

    def forward(self, patches: Patches) -> DataTokens:
        """Tokens in the dtype of the weights."""
        return self.norm(self.project(patches.to(self.project.weight.dtype)))
