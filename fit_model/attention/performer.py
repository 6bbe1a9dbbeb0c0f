"""Performer: softmax attention through random features, in time linear in the tokens."""

import math
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from fit_model.attention import favor
from fit_model.attention.head_layout import exact, head_width, merge_heads, projection, split_heads
from fit_model.attention.place import Place
from fit_model.attention.rotary import Rotary
from fit_model.attention.seen import keys_seen
from fit_model.attention.token_mixer import TokenMixer


@dataclass(frozen=True, kw_only=True)
class PerformerConfig:
    """Settings of a Performer mixer."""

    kind: Literal["performer"] = "performer"
    features: int | None = None
    """Random features of a head; None for d ln d, d the width of a head."""
    eps: float = 1e-4
    """Added to every feature, so that no query is without keys."""
    stabiliser: favor.Stabiliser = "exponent"
    """What a feature's maximum is taken of: "exponent" u - g, safe for inputs of any size, or
    "projection" u, as performer-pytorch does; they differ by eps alone."""
    qkv_bias: bool = True

    def __post_init__(self) -> None:
        if self.features is not None and self.features < 1:
            raise ValueError(f"performer: features is {self.features}; use at least 1, or leave it")
        if not 0.0 <= self.eps < math.inf:
            raise ValueError(f"performer: eps is {self.eps}; use 0 or a small number such as 1e-4")
        if self.stabiliser not in get_args(favor.Stabiliser):
            raise ValueError(
                f"performer: stabiliser is {self.stabiliser!r}; use 'exponent' or 'projection'"
            )


class Performer(TokenMixer):
    """FAVOR+ attention: phi(q) . sum phi(k) v^T over phi(q) . sum phi(k); see `favor`.

    Keys that nobody sees have no features. Causal by prefix sums, up to the end of a token's chunk
    where there are chunks. The features omega [f, d] are shared by the heads and no parameter; they
    are saved with the weights and stay as drawn until `redraw`. With eps 0 a query that no key's
    features meet gives zeros.

    Cost: b n (4 w^2 + 2 f (w + h d)) multiply-adds, b h n f memory; causal adds b n 64 (f + d) h.
    Source: Choromanski et al. 2021, arXiv:2009.14794; eps and d ln d as performer-pytorch 1.1.4.
    """

    def __init__(
        self,
        config: PerformerConfig,
        *,
        width: int,
        heads: int,
        place: Place,
        rotary: Rotary | None = None,
    ) -> None:
        super().__init__()
        head = head_width(width, heads, operator="performer")
        self.config, self.heads, self.sight = config, heads, place.sight
        self.query = projection(width, width, bias=config.qkv_bias)
        self.key = projection(width, width, bias=config.qkv_bias)
        self.value = projection(width, width, bias=config.qkv_bias)
        self.out = projection(width, width, bias=True)
        self.rotary = rotary
        features = config.features or max(1, int(head * math.log(head)))
        self.omega: Tensor
        self.register_buffer("omega", favor.orthogonal_features(features, width=head))

    @torch.no_grad()
    def redraw(self, *, generator: torch.Generator | None = None) -> None:
        """Draw the features anew; `generator` is one of the CPU, the same on every process."""
        count, head = self.omega.shape
        drawn = favor.orthogonal_features(count, width=head, generator=generator)
        self.omega.copy_(drawn)

    def forward(
        self, x: Float[Tensor, "b n w"], may_attend: Bool[Tensor, "#b #h #n #n"] | None = None
    ) -> Float[Tensor, "b n w"]:
        """What every token reads in the others."""
        seen = keys_seen(may_attend, name="performer")
        query, key, value = (
            split_heads(linear(x), self.heads) for linear in (self.query, self.key, self.value)
        )
        if self.rotary is not None:
            query, key = self.rotary(query, key)
        mix = favor.mix if self.sight is None else partial(favor.causal_mix, chunk=self.sight)
        mixed = mix(
            exact(query),
            exact(key),
            exact(value),
            self.omega.to(exact(query).dtype),
            seen=seen,
            stabiliser=self.config.stabiliser,
            eps=self.config.eps,
        )
        return self.out(merge_heads(mixed).to(x.dtype))

    def macs(self, num_tokens: int) -> int:
        """Multiply-adds of a sequence."""
        width, heads, features = self.query.in_features, self.heads, len(self.omega)
        total = num_tokens * (self.linear_macs() + 2 * features * (2 * width + heads))
        if self.sight is not None:
            size = favor.part_size(chunk=self.sight)
            parts = [size] * (num_tokens // size) + [num_tokens % size]
            total += sum(part**2 for part in parts) * (heads * (features + 1) + width)
        return total


def redraw_features(model: nn.Module, *, generator: torch.Generator | None = None) -> int:
    """Draw anew the features of every Performer in `model`; gives their number."""
    performers = [module for module in model.modules() if isinstance(module, Performer)]
    for performer in performers:
        performer.redraw(generator=generator)
    return len(performers)
