"""The models that `farreach bench digits` compares: a body with one operator everywhere in it.

FIT mixes with the operator in its local and in its global layers; reads and writes stay softmax.
ViX mixes all tokens of the image with it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from fit_model import checks
from fit_model.attention.mixers import read_operator
from fit_model.encoder import EncoderConfig
from fit_model.groups import GroupBatch
from fit_model.heads import ClassifyConfig
from fit_model.model import ModelConfig
from fit_model.tokens import InputConfig
from fit_model.trunk_config import TrunkConfig
from fit_model.vix import VixConfig
from jobs.digit_canvases import CLASSES, Canvases

LEVEL_MEAN, LEVEL_STD = 1.2, 3.5
"""About those of all pixels of the default canvases; the same for every model."""


@dataclass(frozen=True, kw_only=True)
class SizeConfig:
    """How large the models are; the same for all operators."""

    patch_px: int = 4
    width: int = 32
    heads: int = 4
    mlp_ratio: int = 2
    group_px: int = 20
    """Of FIT."""
    layers: str = "(1)1(1)1"
    """Of FIT."""
    latents_per_group: int = 8
    """Of FIT."""
    depth: int = 4
    """Of ViX."""

    def __post_init__(self) -> None:
        checks.positive(patch_px=self.patch_px, group_px=self.group_px, depth=self.depth)


@dataclass(frozen=True, kw_only=True)
class Mixing:
    """What an operator of the bench stands for, with settings fit for short sequences."""

    group: str
    """For the data tokens of a group, in FIT."""
    latents: str
    """For the latents of an image, in FIT; they lie in no grid."""
    image: str | None
    """For all tokens of an image, in ViX; None where ViX has no such thing."""
    exchange: Literal["read_write", "bixt"] = "read_write"


def everywhere(operator: str) -> Mixing:
    """The same settings at all lengths."""
    return Mixing(group=operator, latents=operator, image=operator)


OPERATORS: dict[str, Mixing] = {
    "softmax": everywhere("softmax"),
    "bixt": Mixing(group="softmax", latents="softmax", image=None, exchange="bixt"),
    "tssa": everywhere("tssa"),
    "aft_simple": everywhere("aft_simple"),
    "aft_full": everywhere("aft_full@rank=16"),
    "aft_local": Mixing(
        group="aft_local@window=6,rank=16",
        latents="aft_local@window=8,rank=16",
        image="aft_local@window=11,rank=16",
    ),
    "aft_conv": Mixing(
        group="aft_conv@kernel=3",
        latents="aft_conv@kernel=7,axes=line",
        image="aft_conv@kernel=5",
    ),
    "performer": everywhere("performer@features=32"),
    "linformer": Mixing(
        group="linformer@rank=8", latents="linformer@rank=8", image="linformer@rank=32"
    ),
    "nystromformer": Mixing(
        group="nystromformer@landmarks=8,conv_kernel=5",
        latents="nystromformer@landmarks=8,conv_kernel=5",
        image="nystromformer@landmarks=32,conv_kernel=5",
    ),
    "xca": everywhere("xca"),
    "fnet": everywhere("fnet"),
    "mlp_mixer": everywhere("mlp_mixer"),
}
"""Windows of AFT-local are a row of patches, a group of latents; landmarks and ranks a third of
the tokens."""


def mixing_of(operator: str) -> Mixing:
    """Of an operator by its name here, or as it is written in a model's settings."""
    if operator not in OPERATORS:
        read_operator(operator, setting="operators")
    return OPERATORS.get(operator) or everywhere(operator)


def fit(size: SizeConfig, mixing: Mixing, *, side_px: int) -> dict[str, Any]:
    """Face and group side of FIT as an encoder."""
    trunk = TrunkConfig(
        layers=size.layers,
        width=size.width,
        latent_width=size.width,
        latents_per_group=size.latents_per_group,
        heads=size.heads,
        latent_heads=size.heads,
        mlp_ratio=size.mlp_ratio,
        local_operator=mixing.group,
        global_operator=mixing.latents,
        exchange=mixing.exchange,
    )
    groups = (side_px // size.group_px) ** 2
    face = EncoderConfig(patch_px=size.patch_px, trunk=trunk, num_groups=groups)
    return {"face": face, "group_side_px": size.group_px}


def vix(size: SizeConfig, mixing: Mixing, *, side_px: int) -> dict[str, Any]:
    """Face and group side of ViX, for which a canvas is one group."""
    face = VixConfig(
        patch_px=size.patch_px,
        width=size.width,
        depth=size.depth,
        heads=size.heads,
        mlp_ratio=size.mlp_ratio,
        operator=mixing.image or "softmax",
        pooling="mean",
    )
    return {"face": face, "group_side_px": side_px}


Body = Callable[..., dict[str, Any]]
BODIES: dict[str, Body] = {"fit": fit, "vix": vix}


def model_config(body: str, operator: str, *, size: SizeConfig, side_px: int) -> ModelConfig:
    """The settings of one model of the bench."""
    made = BODIES[body](size, mixing_of(operator), side_px=side_px)
    return ModelConfig(
        face=made["face"],
        input=InputConfig(
            bands=1,
            group_side_px=made["group_side_px"],
            band_mean=(LEVEL_MEAN,),
            band_std=(LEVEL_STD,),
        ),
        head=ClassifyConfig(classes=CLASSES),
    )


def compared(bodies: Sequence[str], operators: Sequence[str]) -> list[tuple[str, str]]:
    """Body and operator of every model, where they go together."""
    return [
        (body, operator)
        for body in bodies
        for operator in operators
        if body == "fit" or mixing_of(operator).image is not None
    ]


def batch_of(canvases: Canvases, *, group_px: int) -> GroupBatch:
    """Whole canvases, cut into groups."""
    pixels = torch.from_numpy(canvases.pixels)
    images, across = len(pixels), pixels.shape[1] // group_px
    squares = pixels.unflatten(1, (across, group_px)).unflatten(3, (across, group_px))
    number = torch.arange(across * across).repeat(images)
    side = torch.full_like(number, group_px)
    grid = torch.full((images,), across)
    return GroupBatch(
        pixels=squares.transpose(2, 3).reshape(-1, group_px, group_px, 1),
        image=torch.arange(images).repeat_interleave(across * across),
        row=number // across,
        column=number % across,
        valid_height_px=side,
        valid_width_px=side,
        grid_rows=grid,
        grid_columns=grid,
        nodata=torch.full((images,), float("nan"), dtype=torch.float64),
    )
