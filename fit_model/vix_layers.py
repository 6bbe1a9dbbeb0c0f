"""The layers of ViX: a mixer, perhaps XCiT's local patches, a feed-forward; and class attention.

Source: Touvron et al. 2021, CaiT, arXiv:2103.17239 (factors of residuals, class attention);
El-Nouby et al. 2021, XCiT, arXiv:2106.09681 (local patch interaction).
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from fit_model.attention.mixers import build_mixer
from fit_model.attention.operators import OPERATORS
from fit_model.attention.place import Place
from fit_model.attention.rotary import Rotary
from fit_model.attention.seen import keys_seen, zero_unseen
from fit_model.layers import (
    FeedForward,
    Heads,
    MayAttend,
    Positions,
    SelfHeads,
    dense,
    drop_path,
    layer_norm,
)
from fit_model.stems import BatchNorm


def mixer_of(
    operator: str,
    *,
    width: int,
    heads: int,
    qkv_bias: bool,
    place: Place,
    rotary: Rotary | None,
) -> nn.Module:
    """The layer that mixes tokens as `operator` says; `qkv_bias` is about softmax alone."""
    mixer = build_mixer(operator, width=width, heads=heads, place=place, rotary=rotary)
    if isinstance(mixer, SelfHeads) and not qkv_bias:
        mixer.query.register_parameter("bias", None)
        mixer.key_value.register_parameter("bias", None)
    return mixer


class LayerScale(nn.Module):
    """A learned factor for every channel of a residual."""

    def __init__(self, width: int, *, start: float) -> None:
        super().__init__()
        self.layer_scale = nn.Parameter(torch.full((width,), start))

    def forward(self, residual: Positions) -> Positions:
        """The residual, scaled."""
        return residual * self.layer_scale


def scale_of(width: int, start: float | None) -> nn.Module:
    """The factors of a residual; what gives it back as it is, where `start` is None."""
    return nn.Identity() if start is None else LayerScale(width, start=start)


class LocalPatchInteraction(nn.Module):
    """Neighbouring patches of a grid see each other, each channel on its own.

        residual = conv(batch_norm(gelu(conv(norm x)))),  both 3 x 3 with bias, a filter a channel

    Patches that nobody sees are zeros before both convolutions, as is what lies beyond the grid;
    while it learns, the batch norm counts them too.
    Cost: 18 n d multiply-adds.
    """

    def __init__(self, width: int, *, grid: tuple[int, int]) -> None:
        super().__init__()
        self.grid = grid
        self.norm = layer_norm(width)
        self.first = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.batch_norm = BatchNorm(width)
        self.second = nn.Conv2d(width, width, 3, padding=1, groups=width)

    def forward(self, x: Positions, may_attend: MayAttend | None = None) -> Positions:
        """The residual to add to x."""
        seen = keys_seen(may_attend, name="local_patch_interaction")
        shown = None if seen is None else seen.unflatten(1, self.grid)[:, None]
        maps = zero_unseen(self.norm(x), seen).transpose(1, 2).unflatten(2, self.grid)
        maps = self.batch_norm(functional.gelu(self.first(maps)))
        if shown is not None:
            maps = maps.where(shown, 0.0)
        return self.second(maps).flatten(2).transpose(1, 2)


class VixLayer(nn.Module):
    """One layer on the tokens of an image.

    Cost: a mixer's, and 2 r n d^2 multiply-adds, r the mlp_ratio.
    """

    def __init__(
        self,
        *,
        width: int,
        mixer: nn.Module,
        local: nn.Module | None,
        mlp_ratio: int,
        layer_scale: float | None,
        dropout: float,
        drop_path: float,
    ) -> None:
        super().__init__()
        self.drop_path = drop_path
        self.norm = layer_norm(width)
        self.attention = mixer
        self.attention_scale = scale_of(width, layer_scale)
        self.local = local
        if local is not None:
            self.local_scale = scale_of(width, layer_scale)
        self.feed_forward = FeedForward(width=width, mlp_ratio=mlp_ratio, dropout=dropout)
        self.feed_forward_scale = scale_of(width, layer_scale)

    def forward(self, x: Positions, may_attend: MayAttend | None = None) -> Positions:
        """The tokens with all residuals added."""
        x = x + self._drop(self.attention_scale(self.attention(self.norm(x), may_attend)))
        if self.local is not None:
            x = x + self._drop(self.local_scale(self.local(x, may_attend)))
        return x + self._drop(self.feed_forward_scale(self.feed_forward(x)))

    def _drop(self, residual: Positions) -> Positions:
        return drop_path(residual, rate=self.drop_path, training=self.training)


class ClassAttentionLayer(nn.Module):
    """The first token reads all, then thinks alone.

        x <- x + scale * [attend(norm x) of the first token; norm x of the others]
        x <- norm' x
        x <- x + [scale' * feed-forward(x) of the first token; x of the others]

    XCiT's public code is kept, quirks included, so that its weights mean the same here: the second
    sum starts from the normed x, and the other tokens leave doubled. Cost: 2 n d^2 for keys and
    values, 2 n d for scores and values, (2 + 2 r) d^2 for the one token.
    """

    def __init__(
        self,
        *,
        width: int,
        heads: int,
        mlp_ratio: int,
        layer_scale: float | None,
        dropout: float,
        drop_path: float,
    ) -> None:
        super().__init__()
        self.dropout, self.drop_path = dropout, drop_path
        self.norm = layer_norm(width)
        self.attention = Heads(
            query_width=width, key_width=width, heads=heads, attend=OPERATORS["softmax"]
        )
        self.attention_scale = scale_of(width, layer_scale)
        self.feed_forward_norm = layer_norm(width)
        self.expand = dense(width, mlp_ratio * width)
        self.contract = dense(mlp_ratio * width, width)
        self.feed_forward_scale = scale_of(width, layer_scale)

    def forward(self, x: Positions, may_attend: MayAttend | None = None) -> Positions:
        """The tokens after both sums."""
        normed = self.norm(x)
        read = self.attention(normed[:, :1], normed, may_attend)
        x = x + self._drop(self.attention_scale(torch.cat([read, normed[:, 1:]], 1)))
        x = self.feed_forward_norm(x)
        thought = self.feed_forward_scale(self.think(x[:, :1]))
        return x + self._drop(torch.cat([thought, x[:, 1:]], 1))

    def think(self, token: Float[Tensor, "b 1 d"]) -> Float[Tensor, "b 1 d"]:
        """The feed-forward."""
        hidden = functional.gelu(self.expand(token))
        return self.contract(functional.dropout(hidden, self.dropout, training=self.training))

    def _drop(self, residual: Positions) -> Positions:
        return drop_path(residual, rate=self.drop_path, training=self.training)
