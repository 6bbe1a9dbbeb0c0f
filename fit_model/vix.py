"""ViX, the plain vision transformer, with any operator, stem and position code.

    x = stem(image) [after a class token] + position
    a layer:  x <- x + scale * operator(norm x);  [x <- x + scale * local patches(norm x);]
              x <- x + scale * feed-forward(norm x)
    output    = the class token, the mean of x, or a class token that reads x in two layers more

An image is a fixed grid of groups, put together into one picture; patches of groups that are not
stored and of what lies outside the image are seen by nobody. The models of `vision_models` are
settings of this one. Source: Jeevan & Sethi 2021, Vision X-formers, arXiv:2107.02239; Dosovitskiy
et al. 2021, arXiv:2010.11929; El-Nouby et al. 2021, XCiT, arXiv:2106.09681.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from fit_model import checks
from fit_model.attention.mixers import read_operator, require_rotary
from fit_model.attention.place import Place
from fit_model.attention.rotary import build_rotary, read_rotary
from fit_model.moves import keys_alone
from fit_model.stems import build_stem, read_stem
from fit_model.vix_ends import POSITIONS, ClassAttention, ClassToken, FirstToken, Mean
from fit_model.vix_layers import LocalPatchInteraction, VixLayer, mixer_of

MOST_LAYERS = 9999
"""As in a string of FIT's layers; a configuration that was downloaded may declare any number."""


@dataclass(frozen=True, kw_only=True)
class VixConfig:
    """A plain vision transformer; defaults are DeiT's."""

    kind: Literal["vix"] = "vix"
    patch_px: int
    width: int
    depth: int
    heads: int
    mlp_ratio: int = 4
    operator: str | tuple[str, ...] = "softmax"
    """How tokens are mixed: see `attention.mixers`; one for all layers, or one a layer."""
    qkv_bias: bool = True
    """Of softmax; other operators have a setting of this name themselves."""
    grid_rows: int = 1
    """Groups of every image, one below the other."""
    grid_columns: int = 1
    stem: str = "linear@norm=none"
    """See `stems`; "xcit@norm=batch" is that of XCiT and ToST."""
    position: Literal["learned", "sin_cos_2d", "fourier", "none"] = "learned"
    """What is added to tokens once; Fourier codes go through a linear layer."""
    position_std: float = 0.02
    """Deviation that learned positions and class tokens start with; 1 in the ViX paper."""
    rotary: str = "none"
    """The code that turns queries and keys, as "rotary_1d"; see `attention.rotary`."""
    pooling: Literal["class_token", "mean", "class_attention"] = "class_token"
    local_patch_interaction: Literal["none", "convolutions"] = "none"
    """"convolutions" puts XCiT's two of 3 x 3 before every feed-forward. Their batch norm is the
    paper's, like that of stem "xcit@norm=batch": while they learn, images depend on those that
    share their micro-batch on their worker; in evaluation no image depends on another."""
    layer_scale: float | None = None
    """What the learned factors of residuals start from; None for no factors."""
    dropout: float = 0.0
    """Inside the feed-forwards."""
    drop_path: float = 0.0
    """Of all residuals of a layer, the same in every layer."""

    def __post_init__(self) -> None:
        checks.one_of(("vix",), kind=self.kind)
        sizes = ("patch_px", "width", "depth", "heads", "mlp_ratio", "grid_rows", "grid_columns")
        checks.positive(**{name: getattr(self, name) for name in sizes})
        if self.depth > MOST_LAYERS:
            raise ValueError(f"depth is {self.depth}: at most {MOST_LAYERS} layers are made")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is no multiple of its {self.heads} heads")
        checks.one_of(POSITIONS, position=self.position)
        checks.one_of(POOLINGS, pooling=self.pooling)
        checks.one_of(
            ("none", "convolutions"), local_patch_interaction=self.local_patch_interaction
        )
        checks.rate(dropout=self.dropout, drop_path=self.drop_path)
        checks.finite(
            position_std=(self.position_std,),
            layer_scale=() if self.layer_scale is None else (self.layer_scale,),
        )
        if self.position_std < 0:
            raise ValueError(f"position_std is {self.position_std}: it must be at least 0")
        read_stem(self.stem)
        if len(self.operators) != self.depth:
            raise ValueError(
                f"operator names {len(self.operators)} operators for {self.depth} layers: give one "
                "a layer, or one for all of them"
            )
        for operator in self.operators:
            read_operator(operator, setting="operator")
        self._check_rotary()
        if self.local_patch_interaction != "none" and self.pooling == "class_token":
            raise ValueError(
                "local_patch_interaction works on a grid, and a class token stands outside: set "
                "pooling to 'class_attention', as XCiT does, or to 'mean'"
            )

    def _check_rotary(self) -> None:
        width, heads = self.width, self.heads
        if read_rotary(self.rotary, width=width, heads=heads, setting="rotary") is not None:
            for operator in self.operators:
                require_rotary(operator, setting="operator")

    @property
    def operators(self) -> tuple[str, ...]:
        """That of every layer."""
        given = self.operator
        return (given,) * self.depth if isinstance(given, str) else given

    def place(self, *, group_side_px: int) -> Place:
        """Of the tokens of an image: its patches row by row, after the class token if any."""
        patches = group_side_px // self.patch_px
        grid = (self.grid_rows * patches, self.grid_columns * patches)
        prefix = int(self.pooling == "class_token")
        return Place(num_tokens=prefix + grid[0] * grid[1], grid=grid, prefix=prefix)


def layer_of(config: VixConfig, operator: str, *, place: Place) -> VixLayer:
    """One layer on tokens at `place`."""
    width, heads = config.width, config.heads
    code = read_rotary(config.rotary, width=width, heads=heads, setting="rotary")
    turned = None if code is None else build_rotary(code, width=width, heads=heads, place=place)
    mixer = mixer_of(
        operator, width=width, heads=heads, qkv_bias=config.qkv_bias, place=place, rotary=turned
    )
    local = None
    if config.local_patch_interaction == "convolutions":
        local = LocalPatchInteraction(width, grid=place.raster(operator="convolutions"))
    return VixLayer(
        width=width,
        mixer=mixer,
        local=local,
        mlp_ratio=config.mlp_ratio,
        layer_scale=config.layer_scale,
        dropout=config.dropout,
        drop_path=config.drop_path,
    )


def class_attention(config: VixConfig) -> ClassAttention:
    """XCiT's two layers for a class token."""
    return ClassAttention(
        width=config.width,
        std=config.position_std,
        heads=config.heads,
        mlp_ratio=config.mlp_ratio,
        layer_scale=config.layer_scale,
        dropout=config.dropout,
        drop_path=config.drop_path,
    )


POOLINGS: dict[str, Callable[[VixConfig], nn.Module]] = {
    "class_token": lambda config: FirstToken(),
    "mean": lambda config: Mean(),
    "class_attention": class_attention,
}


class Vix(nn.Module):
    """Stem, positions, layers, pooling.

    Cost: that of the stem, and a layer n 2 r d^2 multiply-adds besides its operator's, n the tokens
    of an image, d the width, r the mlp_ratio.
    """

    def __init__(self, config: VixConfig, *, group_side_px: int, bands: int) -> None:
        super().__init__()
        place, width = config.place(group_side_px=group_side_px), config.width
        self.stem = build_stem(config.stem, patch_px=config.patch_px, bands=bands, width=width)
        self.prefix = place.prefix
        self.class_token = (
            ClassToken(width, std=config.position_std) if place.prefix else nn.Identity()
        )
        self.position = POSITIONS[config.position](
            place=place, width=width, std=config.position_std
        )
        self.layers = nn.ModuleList(
            layer_of(config, operator, place=place) for operator in config.operators
        )
        self.pool = POOLINGS[config.pooling](config)

    def forward(
        self,
        images: Float[Tensor, "b height width bands"],
        seen: Bool[Tensor, "b n"] | None = None,
    ) -> Float[Tensor, "b d"]:
        """What is known of each image, before the norm of its head.

        Args:
            images: values of every pixel, 0 where nothing is known.
            seen: which patches show something of their image; None for all.
        """
        tokens = self.position(self.class_token(self.stem(images)))
        if seen is not None:
            seen = functional.pad(seen, (self.prefix, 0), value=True)
        for layer in self.layers:
            tokens = layer(tokens, keys_alone(seen))
        return self.pool(tokens, seen)
