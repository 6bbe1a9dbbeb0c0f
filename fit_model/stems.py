"""Stems: from the pixels of a square to its tokens, one a patch, row by row.

    linear         token = LayerNorm(patch W + b), the official stem of FIT; "linear@norm=none" is
                   the plain dense layer of vision transformers
    convolutions   three convolutions of 3 x 3 with bias and nothing between them: one linear map
    xcit           log2(patch_px) convolutions of 3 x 3 and stride 2 without bias, each followed by
                   a norm, GELU between them; "xcit@norm=batch" has the paper's norm

Convolutions see zeros beyond the square, which is what missing pixels are, so squares do not know
of each other. A batch norm makes all squares of a batch depend on each other while it learns, and
each worker keeps figures of its own share alone; a group norm of one group does neither.

Source: Jeevan & Sethi 2021, arXiv:2107.02239 (convolutions); El-Nouby et al. 2021,
arXiv:2106.09681 (xcit, which ToST has too).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from fit_model.choices import read_choice
from fit_model.shapes import DataTokens, Patches
from fit_model.tokens import Stem, patches_of, squares_of

Squares = Float[Tensor, "g height width bands"]
Maps = Float[Tensor, "g channels rows columns"]


@dataclass(frozen=True, kw_only=True)
class LinearConfig:
    """A dense layer."""

    kind: Literal["linear"] = "linear"
    norm: Literal["layer_norm", "none"] = "layer_norm"


@dataclass(frozen=True, kw_only=True)
class ConvolutionsConfig:
    """Convolutions with nothing between them."""

    kind: Literal["convolutions"] = "convolutions"


@dataclass(frozen=True, kw_only=True)
class XcitConfig:
    """Convolutions with norms and GELU."""

    kind: Literal["xcit"] = "xcit"
    norm: Literal["group", "batch"] = "group"


class PixelStem(nn.Module, ABC):
    """Squares to tokens, at a cost that is known."""

    @abstractmethod
    def forward(self, squares: Squares) -> DataTokens:
        """Tokens in the dtype of the weights."""

    @abstractmethod
    def macs(self, num_tokens: int) -> int:
        """Multiply-adds of so many tokens."""


class Linear(Stem, PixelStem):
    """The dense layer on the values of a patch. Cost: c d multiply-adds a patch of c values."""

    def __init__(self, config: LinearConfig, *, patch_px: int, bands: int, width: int) -> None:
        super().__init__(inputs=patch_px**2 * bands, width=width, norm=config.norm)
        self.patch_px = patch_px

    def forward(self, squares: Squares) -> DataTokens:
        """Tokens in the dtype of the weights."""
        return super().forward(patches_of(squares, patch_px=self.patch_px))

    def macs(self, num_tokens: int) -> int:
        """Multiply-adds of so many tokens."""
        return num_tokens * self.project.weight.numel()


class BatchNorm(nn.Module):
    """Each channel less its mean over the batch, over its deviation, times gain, plus bias.

    Evaluation takes running figures instead, which every batch moves by a tenth, so that no square
    depends on another. Like torch.nn.BatchNorm2d, without its whole-number counter of batches.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.running_mean: Tensor
        self.running_var: Tensor
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, maps: Maps) -> Maps:
        """The maps, each channel with mean 0 and deviation 1 before gain and bias."""
        if self.training and maps[:, 0].numel() == 1:
            raise ValueError(
                "a batch norm learns nothing from the only patch of the only image at hand: give "
                "more images a micro-step, smaller patches, or a stem with norm=group"
            )
        return functional.batch_norm(
            maps, self.running_mean, self.running_var, self.gain, self.bias, training=self.training
        )


def group_norm(channels: int) -> nn.GroupNorm:
    """The norm of all channels and places of a square together."""
    return nn.GroupNorm(1, channels)


NORMS: dict[str, Callable[[int], nn.Module]] = {"group": group_norm, "batch": BatchNorm}


class Convolutional(PixelStem):
    """A stem that is a row of modules on maps [g channels rows columns]."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, squares: Squares) -> DataTokens:
        """Tokens in the dtype of the weights."""
        first = next(self.layers.parameters())
        maps = self.layers(squares.to(first.dtype).movedim(-1, 1))
        return maps.flatten(2).transpose(1, 2)

    def macs(self, num_tokens: int) -> int:
        """Multiply-adds of so many tokens."""
        total, points = 0, num_tokens
        for layer in reversed(self.layers):
            if isinstance(layer, nn.Conv2d):
                total += points * layer.weight.numel()
                points *= layer.stride[0] ** 2
        return total


def convolution(inputs: int, outputs: int, *, stride: int, bias: bool) -> nn.Conv2d:
    """A convolution of 3 x 3 that keeps rows / stride rows; a bias starts at 0."""
    made = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=bias)
    if made.bias is not None:
        nn.init.zeros_(made.bias)
    return made


class Convolutions(Convolutional):
    """Three convolutions, width / 4, width / 2 and width channels, strides 2 before strides 1.

    At patch_px 1 a token sees 7 x 7 pixels. Cost: 9 (bands w / 4 + 5 w^2 / 8) multiply-adds a token
    at patch_px 1, w the width.
    """

    def __init__(
        self, config: ConvolutionsConfig, *, patch_px: int, bands: int, width: int
    ) -> None:
        widths = channels(config.kind, bands=bands, width=width, shares=(4, 2, 1))
        steps = strides(config.kind, patch_px=patch_px, known=STRIDES)
        sizes = zip(pairwise(widths), steps, strict=True)
        super().__init__(*(convolution(*size, stride=step, bias=True) for size, step in sizes))


class Xcit(Convolutional):
    """Halve the square again and again while the channels double, up to the width."""

    def __init__(self, config: XcitConfig, *, patch_px: int, bands: int, width: int) -> None:
        steps = strides(config.kind, patch_px=patch_px, known=HALVINGS)
        shares = [2**number for number in reversed(range(len(steps)))]
        widths = channels(config.kind, bands=bands, width=width, shares=shares)
        layers: list[nn.Module] = []
        for size, step in zip(pairwise(widths), steps, strict=True):
            layers += [convolution(*size, stride=step, bias=False), NORMS[config.norm](size[1])]
            layers += [nn.GELU()]
        super().__init__(*layers[:-1])


STRIDES = {1: (1, 1, 1), 2: (2, 1, 1), 4: (2, 2, 1), 8: (2, 2, 2)}
HALVINGS = {2: (2,), 4: (2, 2), 8: (2, 2, 2), 16: (2, 2, 2, 2)}


def strides(stem: str, *, patch_px: int, known: Mapping[int, tuple[int, ...]]) -> tuple[int, ...]:
    """What each convolution divides rows and columns by."""
    if patch_px not in known:
        sizes = ", ".join(map(str, known))
        raise ValueError(
            f"stem {stem!r} makes patches of {sizes} px, not {patch_px}: choose one of these as "
            "patch_px, or stem 'linear'"
        )
    return known[patch_px]


def channels(stem: str, *, bands: int, width: int, shares: Sequence[int]) -> list[int]:
    """Channels before the first convolution and after each: the width over each of `shares`."""
    if width % shares[0]:
        raise ValueError(
            f"stem {stem!r} starts with width / {shares[0]} channels, and width {width} is no "
            f"multiple of {shares[0]}: choose another width, or stem 'linear'"
        )
    return [bands, *(width // share for share in shares)]


StemConfig = LinearConfig | ConvolutionsConfig | XcitConfig
KINDS: dict[str, type[StemConfig]] = {
    "linear": LinearConfig,
    "convolutions": ConvolutionsConfig,
    "xcit": XcitConfig,
}
STEMS: dict[str, Callable[..., PixelStem]] = {
    "linear": Linear,
    "convolutions": Convolutions,
    "xcit": Xcit,
}


def read_stem(stem: str, *, setting: str = "stem") -> StemConfig:
    """The settings of a stem; ValueError names `setting` and what is meant."""
    return read_choice(stem, KINDS, setting=setting)


def build_stem(stem: str, *, patch_px: int, bands: int, width: int) -> PixelStem:
    """The stem as `stem` says: squares [g height width bands] to tokens [g n width]."""
    config = read_stem(stem)
    return STEMS[config.kind](config, patch_px=patch_px, bands=bands, width=width)


class Reassembled(nn.Module):
    """A stem for patches that are cut already: they are put together into their square again."""

    def __init__(self, of_squares: PixelStem, *, patch_px: int, bands: int) -> None:
        super().__init__()
        self.of_squares = of_squares
        self.patch_px, self.bands = patch_px, bands

    def forward(self, patches: Patches) -> DataTokens:
        """Tokens in the dtype of the weights."""
        return self.of_squares(squares_of(patches, patch_px=self.patch_px, bands=self.bands))


def build_patch_stem(stem: str, *, patch_px: int, inputs: int, width: int) -> nn.Module:
    """The stem as `stem` says: patches [g n c] of c = `inputs` values to tokens [g n width]."""
    config = read_stem(stem)
    if isinstance(config, LinearConfig):
        return Stem(inputs=inputs, width=width, norm=config.norm)
    bands = inputs // patch_px**2
    made = build_stem(stem, patch_px=patch_px, bands=bands, width=width)
    return Reassembled(made, patch_px=patch_px, bands=bands)


def check_patch_stem(stem: str, *, patch_px: int, width: int, setting: str) -> None:
    """ValueError for a stem that does not fit, or that lets groups see each other."""
    config = read_stem(stem, setting=setting)
    if isinstance(config, XcitConfig) and config.norm == "batch":
        raise ValueError(
            f"{setting} {stem!r} would let the groups of a batch change each other in training: "
            "take 'xcit', whose norm is over a group"
        )
    with torch.device("meta"):
        build_stem(stem, patch_px=patch_px, bands=1, width=width)
