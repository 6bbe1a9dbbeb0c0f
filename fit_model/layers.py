"""The layers of FIT: pre-norm attention around an operator, and the feed-forward.

    self layer   x <- x + out(attend(norm x, norm x));  x <- x + contract(gelu(expand(norm x)))
    cross layer  x <- x + out(attend(norm x, norm' y)), no feed-forward

LayerNorm's eps is 1e-6, GELU is exact, every projection has a bias, and the width of a head is
width // heads. Weights start as Keras starts them, because the official code runs on Keras.
Source: google-research/pix2seq, architectures/transformers.py; facts of Chen & Li 2023,
arXiv:2305.12689.
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from fit_model.attention.operators import OPERATORS, Operator

EPSILON = 1e-6

Positions = Float[Tensor, "b n d"]
MayAttend = Bool[Tensor, "#b #h #n k"]
PerHead = Float[Tensor, "b h k w"]


def layer_norm(width: int) -> nn.LayerNorm:
    """LayerNorm with scale and bias, eps 1e-6."""
    return nn.LayerNorm(width, eps=EPSILON)


KEY_NORMS: dict[str, Callable[[int], nn.Module]] = {"layer_norm": layer_norm, "none": nn.Identity}


def dense(inputs: int, outputs: int, *, fans: int | None = None) -> nn.Linear:
    """A linear layer with weights uniform within sqrt(6 / fans) and zero bias.

    `fans` is Glorot's fan_in + fan_out. Keras counts them on the kernel's own axes, which for
    attention are three, so attention passes other fans than inputs + outputs.
    """
    linear = nn.Linear(inputs, outputs)
    limit = math.sqrt(6.0 / (fans or inputs + outputs))
    nn.init.uniform_(linear.weight, -limit, limit)
    nn.init.zeros_(linear.bias)
    return linear


def drop_path(residual: Positions, *, rate: float, training: bool) -> Positions:
    """Leave a residual out for a whole sequence with probability `rate`; Huang et al. 2016."""
    if rate == 0.0 or not training:
        return residual
    kept = torch.empty_like(residual[:, :1, :1]).bernoulli_(1.0 - rate)
    return residual * (kept / (1.0 - rate))


class Heads(nn.Module):
    """Query, key and value heads mixed by an operator and projected back to the query's width.

    The heads together are heads * (width // heads) wide; width is the narrower of the two sides.
    Keras' kernels have the axes (in, heads, head) and (heads, head, out), hence the fans.
    """

    def __init__(self, *, query_width: int, key_width: int, heads: int, attend: Operator) -> None:
        super().__init__()
        head = min(query_width, key_width) // heads
        inner = heads * head
        self.heads = heads
        self.attend = attend
        self.query = dense(query_width, inner, fans=query_width * (heads + head))
        self.key_value = dense(key_width, 2 * inner, fans=key_width * (heads + head))
        self.out = dense(inner, query_width, fans=heads * (head + query_width))

    def forward(
        self,
        asking: Positions,
        offering: Float[Tensor, "b k c"],
        may_attend: MayAttend | None = None,
    ) -> Positions:
        """Each position of `asking` reads all of `offering` that it may see."""
        key, value = self.keys_and_values(offering)
        return self.mix(asking, key, value, may_attend)

    def keys_and_values(self, offering: Float[Tensor, "b k c"]) -> tuple[PerHead, PerHead]:
        """What `offering` is matched by and what it hands over, a head at a time."""
        return self.apart(self.key_value(offering))

    def apart(self, pairs: Float[Tensor, "b k pair"]) -> tuple[PerHead, PerHead]:
        """Keys and values as they were projected, a head at a time."""
        key, value = pairs.unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return key, value

    def mix(
        self, asking: Positions, key: PerHead, value: PerHead, may_attend: MayAttend | None = None
    ) -> Positions:
        """Each position of `asking` reads all keys that it may see."""
        return self.out(self.read(self.query(asking), key, value, may_attend))

    def read(
        self,
        query: Float[Tensor, "b n inner"],
        key: PerHead,
        value: PerHead,
        may_attend: MayAttend | None = None,
    ) -> Float[Tensor, "b n inner"]:
        """What projected queries read, before it is projected back."""
        asking = query.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        mixed = self.attend(asking, key, value, may_attend=may_attend)
        return mixed.transpose(1, 2).flatten(2)


class SelfHeads(Heads):
    """Heads whose positions ask each other."""

    def __init__(self, *, width: int, heads: int, attend: Operator) -> None:
        super().__init__(query_width=width, key_width=width, heads=heads, attend=attend)

    def forward(self, x: Positions, may_attend: MayAttend | None = None) -> Positions:  # type: ignore[override]  # one sequence
        """Each position reads all others that it may see."""
        return super().forward(x, x, may_attend)


class FeedForward(nn.Module):
    """contract(dropout(gelu(expand(norm x)))): every position on its own, mlp_ratio times wider."""

    def __init__(self, *, width: int, mlp_ratio: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.norm = layer_norm(width)
        self.expand = dense(width, mlp_ratio * width)
        self.contract = dense(mlp_ratio * width, width)

    def forward(self, x: Positions) -> Positions:
        """The residual to add to x."""
        hidden = functional.gelu(self.expand(self.norm(x)))
        if self.dropout > 0.0:
            hidden = functional.dropout(hidden, self.dropout, training=self.training)
        return self.contract(hidden)


class SelfLayer(nn.Module):
    """One transformer layer: the positions of a sequence see each other, then each thinks alone.

    Cost: (4 + 2 r) n d^2 + 2 n^2 d multiply-adds a sequence, r the mlp_ratio.
    """

    def __init__(
        self,
        *,
        width: int,
        mixer: nn.Module,
        mlp_ratio: int,
        dropout: float,
        drop_path: float,
    ) -> None:
        super().__init__()
        self.drop_path = drop_path
        self.norm = layer_norm(width)
        self.attention = mixer
        self.feed_forward = FeedForward(width=width, mlp_ratio=mlp_ratio, dropout=dropout)

    def forward(self, x: Positions, may_attend: MayAttend | None = None) -> Positions:
        """The positions with both residuals added."""
        return self.told(x, self.attention(self.norm(x), may_attend))

    def told(self, x: Positions, mixed: Positions) -> Positions:
        """The positions with both residuals added, of which the first one is `mixed`."""
        x = x + self._drop(mixed)
        return x + self._drop(self.feed_forward(x))

    def _drop(self, residual: Positions) -> Positions:
        return drop_path(residual, rate=self.drop_path, training=self.training)


class FeedForwardLayer(nn.Module):
    """Each position thinks alone: x <- x + feed-forward(x)."""

    def __init__(self, *, width: int, mlp_ratio: int, dropout: float, drop_path: float) -> None:
        super().__init__()
        self.drop_path = drop_path
        self.feed_forward = FeedForward(width=width, mlp_ratio=mlp_ratio, dropout=dropout)

    def forward(self, x: Positions, may_attend: MayAttend | None = None) -> Positions:
        """The positions with the residual added; who may see whom does not matter here."""
        return x + drop_path(self.feed_forward(x), rate=self.drop_path, training=self.training)


class CrossLayer(nn.Module):
    """FIT's read and write: one attention from one stream to the other, each with its own norm.

    There is no feed-forward and no dropout here; the official code has neither by default.
    Cost: 2 a (n d + k c) + 2 n k a multiply-adds a sequence, a the width of all heads together.
    """

    def __init__(
        self,
        *,
        query_width: int,
        key_width: int,
        heads: int,
        key_norm: Literal["layer_norm", "none"] = "layer_norm",
    ) -> None:
        super().__init__()
        self.query_norm = layer_norm(query_width)
        self.key_norm = KEY_NORMS[key_norm](key_width)
        self.attention = Heads(
            query_width=query_width, key_width=key_width, heads=heads, attend=OPERATORS["softmax"]
        )

    def forward(
        self,
        asking: Positions,
        offering: Float[Tensor, "b k c"],
        may_attend: MayAttend | None = None,
    ) -> Positions:
        """`asking` with what it read in `offering` added."""
        return asking + self.attention(self.query_norm(asking), self.key_norm(offering), may_attend)
