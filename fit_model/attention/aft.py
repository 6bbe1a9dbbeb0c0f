"""AFT: every channel mixes values by keys and a learned bias of places, without heads or queries.

    Q, K, V = x Wq + bq, x Wk + bk, x Wv + bv
    mix[t]  = sum_i exp(K[i] + w[t, i]) V[i] / sum_i exp(K[i] + w[t, i])      channel by channel
    y[t]    = (sigmoid(Q[t]) * mix[t]) Wout + bout

AFT-simple has w = 0. Causal forms sum over i <= t, or over i up to the end of t's chunk. A bias of
K cancels and learns nothing.
Source: Zhai et al. 2021, arXiv:2105.14103, eq. 2, 3 and 5; the projection `out` is the one of the
paper's image models, whose sizes count it.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fit_model.attention.aft_bias import PositionBias
from fit_model.attention.biased_means import UNSEEN, Rows, biased_means
from fit_model.attention.chunks import at_chunk_ends
from fit_model.attention.head_layout import exact, projection
from fit_model.attention.place import Place
from fit_model.attention.prefix_means import prefix_means
from fit_model.attention.seen import keys_seen, zero_unseen
from fit_model.attention.token_mixer import TokenMixer
from fit_model.checks import finite, positive
from fit_model.layers import dense


@dataclass(frozen=True, kw_only=True)
class AftSimpleConfig:
    """AFT without position biases."""

    kind: Literal["aft_simple"] = "aft_simple"
    hidden: int | None = None
    """Channels that are mixed; None for the width of the tokens."""
    qkv_bias: bool = True

    def __post_init__(self) -> None:
        if self.hidden is not None:
            positive(hidden=self.hidden)


@dataclass(frozen=True, kw_only=True)
class AftFullConfig:
    """AFT with a bias for every pair of places."""

    kind: Literal["aft_full"] = "aft_full"
    rank: int | None = 128
    """Width of the two factors of the bias (the paper: 64 CIFAR-10, 128 ImageNet); None: none."""
    initial_std: float = 0.1
    """Of the factors. The paper's N(0, 1e-2) is read as a variance; 0.01 is the other reading."""
    hidden: int | None = None
    """Channels that are mixed; None for the width of the tokens."""
    qkv_bias: bool = True

    def __post_init__(self) -> None:
        check_bias(rank=self.rank, initial_std=self.initial_std)
        if self.hidden is not None:
            positive(hidden=self.hidden)


def check_bias(*, rank: int | None, initial_std: float) -> None:
    """Refuse what is no rank and no standard deviation."""
    if rank is not None:
        positive(rank=rank)
    finite(initial_std=[initial_std])
    if initial_std < 0.0:
        raise ValueError(f"initial_std is {initial_std}: it must be at least 0")


class Aft(TokenMixer):
    """What AFT's forms share: projections, the gate, and who is seen; see the equation above.

    Sums are in float32 at least, and exact for keys and biases of any size. A token that nobody
    sees has no part in them; where nothing is seen, mix is 0.
    """

    def __init__(
        self,
        kind: str,
        *,
        width: int,
        hidden: int | None = None,
        keys: int | None = None,
        place: Place,
        qkv_bias: bool,
    ) -> None:
        super().__init__()
        hidden = hidden or width
        self.kind = kind
        self.sight = place.sight
        self.query = projection(width, hidden, bias=qkv_bias)
        self.key = projection(width, keys or hidden, bias=qkv_bias)
        self.value = projection(width, hidden, bias=qkv_bias)
        self.out = dense(hidden, width)

    def forward(
        self, x: Float[Tensor, "b n d"], may_attend: Bool[Tensor, "#b #h #n n"] | None = None
    ) -> Float[Tensor, "b n d"]:
        """The residual to add to the sequence that x is the norm of."""
        seen = keys_seen(may_attend, name=self.kind)
        query, key, value = self.query(x), self.key(x), self.value(x)
        key, value = exact(key), zero_unseen(exact(value), seen)
        if seen is not None:
            key = torch.where(seen[..., None], key, UNSEEN)
        with torch.autocast(x.device.type, enabled=False):
            mixed = self.mix(key, value) * exact(query).sigmoid()
        return self.out(mixed.to(x.dtype))

    def macs(self, num_tokens: int) -> int:
        """Multiply-adds of a sequence; what is summed score by score is no matrix product."""
        return num_tokens * self.linear_macs() + self.mixing_macs(num_tokens)

    @abstractmethod
    def mixing_macs(self, num_tokens: int) -> int:
        """Multiply-adds of `mix` for a sequence."""

    @abstractmethod
    def mix(
        self, key: Float[Tensor, "b n k"], value: Float[Tensor, "b n w"]
    ) -> Float[Tensor, "b n w"]:
        """The mix of the values, where tokens that nobody sees have the key UNSEEN and value 0."""


class AftSimple(Aft):
    """AFT with w = 0: a softmax over tokens for each channel, so every query has the same mix.

    Takes sequences of any length; heads play no part. Cost: b n d in time and memory for the sums,
    causal b n d log n in time, besides four projections. Permuting tokens permutes the result.
    Source: arXiv:2105.14103, eq. 5.
    """

    def __init__(self, config: AftSimpleConfig, *, width: int, heads: int, place: Place) -> None:
        super().__init__(
            config.kind, width=width, hidden=config.hidden, place=place, qkv_bias=config.qkv_bias
        )

    def mix(
        self, key: Float[Tensor, "b n d"], value: Float[Tensor, "b n d"]
    ) -> Float[Tensor, "b n d"]:
        """The mean of all values, or of those so far, weighted by the softmax of the keys."""
        if self.sight is not None:
            return at_chunk_ends(prefix_means(key, value)[2], chunk=self.sight, axis=1)
        return (key.softmax(1) * value).sum(1, keepdim=True).expand_as(value)

    def mixing_macs(self, num_tokens: int) -> int:
        """None: there are sums alone."""
        return 0


class AftFull(Aft):
    """AFT with a bias for every pair of places, for sequences of at most place.num_tokens.

    Heads play no part. A class token is row and column 0 of the bias. Cost: b n^2 d in time, b n d
    in memory beside the bias, of which only blocks exist at a time where it is factorised.
    Source: arXiv:2105.14103, eq. 2; factors: section 3.
    """

    def __init__(self, config: AftFullConfig, *, width: int, heads: int, place: Place) -> None:
        super().__init__(
            config.kind, width=width, hidden=config.hidden, place=place, qkv_bias=config.qkv_bias
        )
        self.position_bias = PositionBias(
            place.length(operator=config.kind), rank=config.rank, initial_std=config.initial_std
        )

    def mix(
        self, key: Float[Tensor, "b n d"], value: Float[Tensor, "b n d"]
    ) -> Float[Tensor, "b n d"]:
        """The means weighted by exp(key + bias)."""
        self.position_bias.check(key.shape[1], operator=self.kind)

        def bias(rows: slice, columns: slice) -> Tensor:
            return self.position_bias.block(rows, columns, dtype=key.dtype)

        return biased_means(key, value, bias, chunk=self.sight)

    def mixing_macs(self, num_tokens: int) -> int:
        """Every row of the bias times every key and value."""
        return Rows.of(num_tokens, chunk=self.sight).macs(width=self.out.in_features)
