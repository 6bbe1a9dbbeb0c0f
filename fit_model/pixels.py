"""What pixels a generative model makes: their range, their dtype, and what they may be asked for.

share = (pixel - pixel_low) / (pixel_high - pixel_low), from 0 to 1
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor
from torch.nn import functional

from fit_model import checks
from fit_model.groups import GroupBatch
from fit_model.tokens import EXACT_IN_FLOAT32

PIXEL_DTYPES: dict[str, torch.dtype] = {
    "uint8": torch.uint8,
    "uint16": torch.uint16,
    "int16": torch.int16,
    "float32": torch.float32,
}

GROUPS_AT_ONCE = 64
"""Whose pixels are looked at together."""


@dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    """New images, of a class or of none."""

    kind: Literal["generate"] = "generate"
    target: str | None = None
    """What the classes are classes of; None for a model that takes no label."""
    classes: tuple[str, ...] = ()
    pixel_dtype: str
    pixel_low: float
    pixel_high: float
    """Pixels lie between these two, both included."""
    grid_rows: int = 1
    """Of most images it was trained on, in groups: what it makes unless asked for another size."""
    grid_columns: int = 1

    def __post_init__(self) -> None:
        checks.one_of(("generate",), kind=self.kind)
        checks.one_of(PIXEL_DTYPES, pixel_dtype=self.pixel_dtype)
        checks.positive(grid_rows=self.grid_rows, grid_columns=self.grid_columns)
        checks.finite(pixel_range=(self.pixel_low, self.pixel_high))
        if self.pixel_low >= self.pixel_high:
            raise ValueError(
                f"pixel_low {self.pixel_low} must lie below pixel_high {self.pixel_high}"
            )
        dtype = PIXEL_DTYPES[self.pixel_dtype]
        holds = torch.finfo(dtype) if dtype.is_floating_point else torch.iinfo(dtype)
        if self.pixel_low < holds.min or self.pixel_high > holds.max:
            raise ValueError(
                f"{self.pixel_dtype} holds {holds.min:g} to {holds.max:g}, not {self.pixel_low:g} "
                f"to {self.pixel_high:g}: set target.pixel_range to what the images hold"
            )
        if (self.target is None) != (not self.classes):
            raise ValueError(f"target {self.target!r} does not fit {len(self.classes)} classes")
        if len(set(self.classes)) < len(self.classes):
            raise ValueError(f"classes is {self.classes}: name each once")


def shares(
    batch: GroupBatch,
    *,
    config: GenerateConfig,
    exact: torch.dtype = torch.float32,
    device: torch.device | None = None,
) -> Float[Tensor, "g side side bands"]:
    """Pixels as shares of their range, moved to `device`.

    Those of a batch on the CPU are held to `require_drawable`; who moves batches to an accelerator
    calls it before, because looking at values there would stall it.
    """
    if batch.pixels.device.type == "cpu":
        require_drawable(batch, config=config)
    return shares_of(batch.pixels.to(device or batch.pixels.device), config=config, exact=exact)


def shares_of(
    pixels: Shaped[Tensor, "*p"], *, config: GenerateConfig, exact: torch.dtype = torch.float32
) -> Float[Tensor, "*p"]:
    """(pixel - pixel_low) / (pixel_high - pixel_low), cut off at 0 and 1."""
    raw = pixels.to(exact if pixels.dtype in EXACT_IN_FLOAT32 else torch.float64)
    values = (raw - config.pixel_low) / (config.pixel_high - config.pixel_low)
    return values.clamp(0.0, 1.0).to(exact)


def require_drawable(batch: GroupBatch, *, config: GenerateConfig) -> None:
    """Refuse what a model of this configuration would learn wrongly, or could not make."""
    require_kind(batch, config=config)
    for some in batch.pixels.split(GROUPS_AT_ONCE):
        require_range(some, config=config)


def require_kind(batch: GroupBatch, *, config: GenerateConfig) -> None:
    """Refuse images of another dtype, or of sides that the groups do not divide."""
    wanted, found = PIXEL_DTYPES[config.pixel_dtype], batch.pixels.dtype
    if wanted != found and not (wanted.is_floating_point and found.is_floating_point):
        name = str(found).removeprefix("torch.")
        raise ValueError(
            f"pixels are {name}, and this model makes {config.pixel_dtype}: "
            "take a dataset of the same kind of images"
        )
    require_whole_groups(batch)


def require_range(source: Shaped[Tensor, "*p"], *, config: GenerateConfig) -> None:
    """Refuse pixels beyond the range, NaN too."""
    if not source.is_floating_point():
        holds = torch.iinfo(source.dtype)
        if config.pixel_low <= holds.min and config.pixel_high >= holds.max:
            return
    # the ends as the source writes them: 0.3 in float32 lies above 0.3
    own = source.dtype if source.is_floating_point() else torch.float64
    low, high = torch.tensor([config.pixel_low, config.pixel_high], dtype=own)
    # 16-bit unsigned numbers have no comparison of their own
    values = source if source.is_floating_point() else source.to(torch.int32)
    outside = ~((values >= low) & (values <= high))
    if outside.any():
        found = values[outside]
        held = f", and there are pixels from {values.min():g} to {values.max():g}"
        raise ValueError(
            f"a pixel is {found[0]:g}, outside {config.pixel_low:g} to {config.pixel_high:g}"
            f"{'' if found.isnan().any() else held}: set target.pixel_range to what all images hold"
        )


def require_whole_groups(batch: GroupBatch) -> None:
    """Refuse images whose sides the groups do not divide: the rest would be learned as picture."""
    side_px = batch.pixels.shape[1]
    smallest = min(int(batch.valid_height_px.min()), int(batch.valid_width_px.min()))
    if smallest < side_px:
        raise ValueError(
            f"groups of {side_px} px do not divide an image: its last ones hold {smallest} px; "
            "crop the images, or preprocess with a grouping.group_side_px that divides their sides"
        )


def pixels_of(values: Float[Tensor, "*p"], *, config: GenerateConfig) -> Shaped[Tensor, "*p"]:
    """Shares of the range as pixels: beyond it they are cut off, whole numbers are rounded to."""
    if not values.isfinite().all():
        raise ValueError("the model's numbers are not finite: it was saved after it had diverged")
    dtype = PIXEL_DTYPES[config.pixel_dtype]
    span = config.pixel_high - config.pixel_low
    pixels = values.to(torch.float64).clamp(0.0, 1.0) * span + config.pixel_low
    return (pixels if dtype.is_floating_point else pixels.round()).to(dtype)


def one_hot(
    targets: Int64[Tensor, " b"] | None, *, config: GenerateConfig, device: torch.device
) -> Float[Tensor, "b k"] | None:
    """Class numbers as rows; None for a model without classes. Refuses numbers beyond them."""
    if not config.classes:
        return None
    if targets is None:
        raise ValueError(
            f"this model was trained with labels: name one of {', '.join(config.classes)}"
        )
    num_classes = len(config.classes)
    beyond = (targets < 0) | (targets >= num_classes)
    if targets.device.type == "cpu" and beyond.any():
        raise ValueError(
            f"class number {int(targets[beyond][0])} is none of the model's {num_classes} classes: "
            f"{', '.join(config.classes)}"
        )
    return functional.one_hot(targets, num_classes).to(device, torch.float32)


def require_guidable(guidance: float, *, config: GenerateConfig, label_dropout: float) -> None:
    """Refuse guidance where no image without a label was ever seen, or none with one."""
    if guidance == 0.0:
        return
    if not config.classes:
        raise ValueError(
            f"guidance {guidance:g} needs labels, and this model was trained without: "
            "leave guidance at 0"
        )
    if label_dropout == 0.0:
        raise ValueError(
            f"guidance {guidance:g} compares with no label, and this model always saw "
            "one: leave guidance at 0, or train with model.label_dropout above 0"
        )
