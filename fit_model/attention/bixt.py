"""BiXT: tokens and latents read each other in one exchange."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from fit_model.layers import dense


@dataclass(frozen=True, kw_only=True)
class BixtConfig:
    """Bi-directional cross-attention, in place of a read and a write."""

    kind: Literal["bixt"] = "bixt"
    bias: bool = True
    layer_scale: float | None = None
    """What the learned factors of both residuals start from; None for no such factors."""
    norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        if self.kind != "bixt":
            raise ValueError(f"kind is {self.kind!r}; these are the settings of 'bixt'")
        if not self.norm_eps > 0.0:
            raise ValueError(f"norm_eps is {self.norm_eps}; it must be positive")


@dataclass(frozen=True, kw_only=True)
class Exchanged:
    """What one exchange gives to each of its streams."""

    tokens: Float[Tensor, "b n d"]
    latents: Float[Tensor, "b m e"]


class Side(nn.Module):
    """What a stream is matched by, what it hands over, and how it takes what it gets."""

    def __init__(self, *, width: int, heads: int, head: int, bias: bool) -> None:
        super().__init__()
        self.heads = heads
        inner = heads * head
        self.r = dense(width, inner, fans=width * (heads + head))
        self.v = dense(width, inner, fans=width * (heads + head))
        self.out = dense(inner, width, fans=heads * (head + width))
        if not bias:
            for linear in (self.r, self.v, self.out):
                linear.register_parameter("bias", None)

    def split(self, x: Float[Tensor, "b n c"]) -> tuple[Tensor, Tensor]:
        """Reference and value of every position, a head at a time, in float32 at least."""
        exact = torch.promote_types(x.dtype, torch.float32)
        reference, value = (
            linear(x).unflatten(-1, (self.heads, -1)).transpose(1, 2).to(exact)
            for linear in (self.r, self.v)
        )
        return reference, value


class BidirectionalCross(nn.Module):
    """Latents read tokens and tokens read latents by one and the same matrix of scores.

        R_L, V_L = latents W;  R_X, V_X = tokens W';  S = R_L R_X^T / sqrt(head)      (m, n)
        latents' = softmax_over_tokens(S) V_X Wout;  tokens' = softmax_over_latents(S^T) V_L Wout'

    Two projections a stream instead of three. Both sides speak of the streams as they were. Heads
    are min(token width, latent width) // heads wide, as in a read. There is no causal form.

    Tokens that are not valid are read by no latent, but read the latents themselves. Latents
    without a valid token get zeros before the output projection.

    Cost:
        3 a (n d + m e) + 3 n m a multiply-adds, a the width of all heads; 3 h n m numbers.

    Source:
        Hiller et al. 2024, arXiv:2402.12138; code at mrkshllr/BiXT@4ce7cae.
    """

    def __init__(
        self, config: BixtConfig, *, token_width: int, latent_width: int, heads: int
    ) -> None:
        super().__init__()
        head = min(token_width, latent_width) // heads if heads > 0 else 0
        if head < 1:
            raise ValueError(
                f"bixt: {heads} heads do not fit into widths {token_width} and {latent_width}"
            )
        self.tokens = Side(width=token_width, heads=heads, head=head, bias=config.bias)
        self.latents = Side(width=latent_width, heads=heads, head=head, bias=config.bias)

    def forward(
        self,
        tokens: Float[Tensor, "b n d"],
        latents: Float[Tensor, "b m e"],
        valid: Bool[Tensor, "#b n"] | None = None,
    ) -> Exchanged:
        """The residuals of both streams."""
        token_reference, token_value = self.tokens.split(tokens)
        latent_reference, latent_value = self.latents.split(latents)
        scores = latent_reference @ token_reference.transpose(-2, -1)
        scores = scores / math.sqrt(token_reference.shape[-1])
        to_tokens = scores.transpose(-2, -1).softmax(-1) @ latent_value
        if valid is None:
            to_latents = scores.softmax(-1) @ token_value
        else:
            # The lowest finite score, not -inf: no NaN even on the way where nothing is seen.
            unread = ~valid[:, None, None]
            weights = scores.masked_fill(unread, torch.finfo(scores.dtype).min).softmax(-1)
            to_latents = weights.masked_fill(unread, 0.0) @ token_value
        return Exchanged(
            tokens=self.tokens.out(to_tokens.transpose(1, 2).flatten(2).to(tokens.dtype)),
            latents=self.latents.out(to_latents.transpose(1, 2).flatten(2).to(latents.dtype)),
        )


class Stream(nn.Module):
    """How a stream enters an exchange, and how much of what it gets is added."""

    def __init__(self, config: BixtConfig, *, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=config.norm_eps)
        self.layer_scale: nn.Parameter | None = None
        if config.layer_scale is not None:
            self.layer_scale = nn.Parameter(torch.full((width,), config.layer_scale))

    def add(
        self, x: Float[Tensor, "b n c"], residual: Float[Tensor, "b n c"]
    ) -> Float[Tensor, "b n c"]:
        """The stream with layer_scale * residual added."""
        return x + (residual if self.layer_scale is None else self.layer_scale * residual)


class BidirectionalLayer(nn.Module):
    """stream <- stream + layer_scale * exchange(norm stream), for both streams at once.

    There is no feed-forward, as there is none around FIT's read and write.
    """

    def __init__(
        self, config: BixtConfig, *, token_width: int, latent_width: int, heads: int
    ) -> None:
        super().__init__()
        self.tokens = Stream(config, width=token_width)
        self.latents = Stream(config, width=latent_width)
        self.exchange = BidirectionalCross(
            config, token_width=token_width, latent_width=latent_width, heads=heads
        )

    def forward(
        self,
        tokens: Float[Tensor, "b n d"],
        latents: Float[Tensor, "b m e"],
        valid: Bool[Tensor, "#b n"] | None = None,
    ) -> Exchanged:
        """Both streams with what they read in each other added."""
        got = self.exchange(self.tokens.norm(tokens), self.latents.norm(latents), valid)
        return Exchanged(
            tokens=self.tokens.add(tokens, got.tokens),
            latents=self.latents.add(latents, got.latents),
        )
