"""Linformer: keys and values are shortened to a fixed number of mixtures of tokens."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from fit_model.attention.head_layout import exact, head_width, merge_heads, projection, split_heads
from fit_model.attention.place import Place, require_length
from fit_model.attention.rotary import Rotary
from fit_model.attention.seen import keys_seen
from fit_model.attention.softmax import softmax
from fit_model.attention.token_mixer import TokenMixer


@dataclass(frozen=True, kw_only=True)
class LinformerConfig:
    """Settings of a Linformer mixer."""

    kind: Literal["linformer"] = "linformer"
    rank: int = 256
    """Length of shortened keys and values."""
    sharing: Literal["none", "key_value"] = "none"
    """"key_value": values are the keys, shortened alike."""
    key_heads: Literal["all", "one"] = "all"
    """"one": all heads read one narrow head of keys and values."""
    qkv_bias: bool = False

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"linformer: rank is {self.rank}; use at least 1, such as 256")
        if self.sharing not in ("none", "key_value"):
            raise ValueError(f"linformer: sharing is {self.sharing!r}; use 'none' or 'key_value'")
        if self.key_heads not in ("all", "one"):
            raise ValueError(f"linformer: key_heads is {self.key_heads!r}; use 'all' or 'one'")


class Linformer(TokenMixer):
    """Softmax attention to r mixtures of the n tokens.

        K' = E^T K,  V' = F^T V                 E, F [n, r], the same for every head
        out = softmax(Q_h K'_h^T / sqrt(d)) V'_h

    E and F belong to positions: a shorter sequence uses their first rows, a longer one is refused,
    and reordered tokens give another result. Tokens that nobody sees enter neither mixture, so
    padding at the end changes nothing. With a rotary code, keys are turned before they are
    shortened and values, shared or not, are not turned; the score then no longer depends on
    differences of positions alone. E and F start uniform within 1 / sqrt(r). No causal form.

    Cost: b n (4 w^2 + 4 r w) multiply-adds, b h n r memory or less; 2 n r weights in E and F.
    Source: Wang et al. 2020, arXiv:2006.04768; options as in linformer 0.2.3.
    """

    def __init__(
        self,
        config: LinformerConfig,
        *,
        width: int,
        heads: int,
        place: Place,
        rotary: Rotary | None = None,
    ) -> None:
        super().__init__()
        place.refuse_causal(operator="linformer")
        num_tokens = place.length(operator="linformer")
        head = head_width(width, heads, operator="linformer")
        self.heads = heads
        self.key_heads = heads if config.key_heads == "all" else 1
        self.query = projection(width, width, bias=config.qkv_bias)
        self.key = projection(width, self.key_heads * head, bias=config.qkv_bias)
        self.shorten_keys = mixtures(num_tokens, config.rank)
        self.value: nn.Linear | None = None
        self.shorten_values: nn.Parameter | None = None
        if config.sharing == "none":
            self.value = projection(width, self.key_heads * head, bias=config.qkv_bias)
            self.shorten_values = mixtures(num_tokens, config.rank)
        self.out = projection(width, width, bias=True)
        self.rotary = rotary

    def forward(
        self, x: Float[Tensor, "b n w"], may_attend: Bool[Tensor, "#b #h #n #n"] | None = None
    ) -> Float[Tensor, "b n w"]:
        """What every token reads in the mixtures."""
        require_length(x.shape[1], longest=len(self.shorten_keys), operator="linformer")
        seen = keys_seen(may_attend, name="linformer")
        query = split_heads(self.query(x), self.heads)
        key = split_heads(self.key(x), self.key_heads)
        value = key if self.value is None else split_heads(self.value(x), self.key_heads)
        if self.rotary is not None:
            query, key = self.rotary(query, key)
        by = self.shorten_keys if self.shorten_values is None else self.shorten_values
        short_keys = shortened(key, self.shorten_keys, seen)
        short_values = shortened(value, by, seen)
        every = (-1, self.heads, -1, -1)
        mixed = softmax(query, short_keys.expand(every), short_values.expand(every))
        return self.out(merge_heads(mixed))

    def macs(self, num_tokens: int) -> int:
        """Multiply-adds of a sequence."""
        rank, width = self.shorten_keys.shape[1], self.query.in_features
        return num_tokens * (self.linear_macs() + 2 * rank * (self.key.out_features + width))


def mixtures(num_tokens: int, rank: int) -> nn.Parameter:
    """Weights of `rank` mixtures of tokens, uniform within 1 / sqrt(rank)."""
    limit = rank**-0.5
    return nn.Parameter(torch.empty(num_tokens, rank).uniform_(-limit, limit))


def shortened(
    x: Float[Tensor, "b h n d"], by: Float[Tensor, "t r"], seen: Bool[Tensor, "#b #n"] | None
) -> Float[Tensor, "b h r d"]:
    """Mixtures of the tokens that are seen, summed in float32 at least."""
    if seen is not None:
        x = x.where(seen[:, None, :, None], 0.0)
    return (exact(by[: x.shape[2]]).T.to(exact(x).dtype) @ exact(x)).to(x.dtype)
