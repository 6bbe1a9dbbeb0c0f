"""Tokens to heads and back, and the linear layers around them, for mixers with heads."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fit_model.layers import dense


def head_width(width: int, heads: int, *, operator: str) -> int:
    """The width of one head; ValueError when the heads do not fill the width."""
    if heads < 1 or width % heads:
        raise ValueError(f"{operator}: width {width} is no multiple of heads {heads}")
    return width // heads


def projection(inputs: int, outputs: int, *, bias: bool) -> nn.Linear:
    """`dense`, with or without a bias."""
    linear = dense(inputs, outputs)
    if not bias:
        linear.register_parameter("bias", None)
    return linear


def split_heads(x: Float[Tensor, "b n w"], heads: int) -> Float[Tensor, "b {heads} n d"]:
    """Channels of a head are neighbours: head h has h * d ... (h + 1) * d."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def merge_heads(x: Float[Tensor, "b h n d"]) -> Float[Tensor, "b n w"]:
    """What `split_heads` took apart."""
    return x.transpose(1, 2).flatten(2)


def exact(x: Tensor) -> Tensor:
    """In float32 at least, for sums over many tokens."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
