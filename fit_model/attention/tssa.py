"""TSSA, attention by the statistics of tokens: every token is its own projection, rescaled."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from fit_model.attention.place import Place
from fit_model.attention.seen import keys_seen, zero_unseen
from fit_model.attention.starts import head_width, vision_linear
from fit_model.attention.token_mixer import TokenMixer


@dataclass(frozen=True, kw_only=True)
class TssaConfig:
    """Token statistics self-attention; in causal places its prefix form."""

    kind: Literal["tssa"] = "tssa"
    temperature: float = 1.0
    """What the learned temperature of every head starts from."""
    score_bias: Literal["positions", "none"] = "positions"
    """Causal form only: "positions" learns a bias for every head and position, as the paper's
    language model does, which fixes the longest sequence; "none" leaves any length."""
    qkv_bias: bool = True
    out_bias: bool = True
    norm_eps: float = 1e-12
    membership_eps: float = 1e-8
    cumsum_minimum: float = 1e-12
    """Causal form only: the least that a prefix sum of squares is taken to be."""

    def __post_init__(self) -> None:
        if self.kind != "tssa":
            raise ValueError(f"kind is {self.kind!r}; these are the settings of 'tssa'")
        if self.score_bias not in ("positions", "none"):
            raise ValueError(f"score_bias is {self.score_bias!r}; use 'positions' or 'none'")
        for name in ("norm_eps", "membership_eps", "cumsum_minimum"):
            if not getattr(self, name) > 0.0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be positive")


def rescaled(
    values: Float[Tensor, "b h n d"],
    membership: Float[Tensor, "b h n"],
    moment: Float[Tensor, "b h #n d"],
) -> Float[Tensor, "b h n d"]:
    """-W Pi / (1 + S): each token, less of it where its head already has much."""
    return -values * membership[..., None] / (1.0 + moment)


class Tssa(TokenMixer):
    """Each token is rescaled by how much of the sequence lies along its own channels.

        W  = x Wqkv                                 one projection, split into heads
        Pi = softmax over HEADS of temperature[h] * sum_d W^2 / max(sum_n W^2, norm_eps^2)
        S  = sum_n Pi W^2 / (sum_n Pi + membership_eps)      per head and channel
        O  = -W Pi / (1 + S);  y = O Wout

    No pair of tokens is ever compared. Tokens that nobody sees are left out of both sums and give
    zeros before the output projection. Gradients flow through Pi.

    Quirks kept: the minus sign, and Pi that is nearly 1/h in long sequences of even tokens,
    because every head shares the same sum of scores.

    Cost:
        2 n d^2 multiply-adds for the projections, 6 n d for the rest; n d numbers in memory.

    Source:
        Wu et al. 2024, ToST, arXiv:2412.17810; vision code at RobinWu218/ToST@071ea98.
    """

    def __init__(self, config: TssaConfig, *, width: int, heads: int, place: Place) -> None:
        super().__init__()
        head_width(width, heads=heads, operator="tssa")
        if place.causal != "none":
            raise ValueError("this is the form of tssa without an order; use CausalTssa")
        self.config = config
        self.heads = heads
        self.qkv = vision_linear(width, width, bias=config.qkv_bias)
        self.out = vision_linear(width, width, bias=config.out_bias)
        self.temperature = nn.Parameter(torch.full((heads, 1), config.temperature))

    def forward(
        self,
        x: Float[Tensor, "b n c"],
        may_attend: Bool[Tensor, "#b #h #n #n"] | None = None,
    ) -> Float[Tensor, "b n c"]:
        """The residual of every token."""
        seen = keys_seen(may_attend, name="tssa")
        values = self.qkv(x)
        exact = values.to(torch.promote_types(values.dtype, torch.float32))
        exact = zero_unseen(exact, seen).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        squares = exact.square()
        membership = self.membership(squares)
        counted = membership
        if seen is not None:
            counted = membership.where(seen[:, None], 0.0)
        total = counted.sum(-1)[..., None, None] + self.config.membership_eps
        moment = (counted[..., None] * squares).sum(2, keepdim=True) / total
        mixed = rescaled(exact, membership, moment)
        return self.out(mixed.transpose(1, 2).flatten(2).to(values.dtype))

    def macs(self, num_tokens: int) -> int:
        """Multiply-adds of a sequence: the projections alone."""
        return num_tokens * self.linear_macs()

    def membership(self, squares: Float[Tensor, "b h n d"]) -> Float[Tensor, "b h n"]:
        """How much of each token belongs to each head; the heads add up to 1."""
        sums = squares.sum(2, keepdim=True).clamp_min(self.config.norm_eps**2)
        scores = self.temperature.to(squares.dtype) * (squares / sums).sum(-1)
        return scores.softmax(1)
