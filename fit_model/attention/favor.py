"""FAVOR+: positive random features whose inner products are softmax scores on average.

    c = d^(-1/4),  u = (c x) omega^T,  g = |c x|^2 / 2
    phi(x)[f] = exp(u[f] - g) + eps,   omega [f, d] random
    mean over omega of exp(u_q[f] - g_q) exp(u_k[f] - g_k) = exp(q . k / sqrt(d))
    output[q] = phi(q) . sum_k phi(k) value[k]^T / (phi(q) . sum_k phi(k))

Before eps is added, exponents are shifted by their maximum, which cancels in the ratio but for
eps. For a query it is the maximum over its features, so that g cancels too; for keys the maximum
over features and tokens of a sequence, or, in the causal form, over the tokens that the query sees.
Gradients are those of all this. The stabiliser "projection" is performer-pytorch's: it shifts by
the maximum of u instead, which is left out of gradients.

Source: Choromanski et al. 2021, arXiv:2009.14794.
"""

import math
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fit_model.attention.chunks import at_chunk_ends, chunk_mask

AT_ONCE = 64
"""Tokens whose scores stand beside each other in the causal form."""

Stabiliser = Literal["exponent", "projection"]
PerHead = Float[Tensor, "b h n d"]
Features = Float[Tensor, "b h n f"]
Omega = Float[Tensor, "f d"]
Seen = Bool[Tensor, "#b #n"]


def orthogonal_features(
    count: int, *, width: int, generator: torch.Generator | None = None
) -> Float[Tensor, "{count} {width}"]:
    """Random directions, orthogonal in blocks of `width`, with the lengths of Gaussian vectors.

    QR alone gives directions that lean to one side (its R may have either sign on the diagonal),
    and an error that more features do not remove; multiplied by those signs they are uniform.
    """
    blocks = []
    for _ in range(0, count, width):
        square = torch.randn(width, width, generator=generator, dtype=torch.float64)
        orthogonal, upper = torch.linalg.qr(square)
        blocks.append((orthogonal * upper.diagonal().sign()).T)
    lengths = torch.randn(count, width, generator=generator, dtype=torch.float64).norm(dim=-1)
    return (torch.cat(blocks)[:count] * lengths[:, None]).float()


def projections(x: PerHead, omega: Omega) -> tuple[Features, Float[Tensor, "b h n 1"]]:
    """U and g of every token."""
    scaled = x * x.shape[-1] ** -0.25
    return scaled @ omega.T, scaled.square().sum(-1, keepdim=True) / 2


def query_features(query: PerHead, omega: Omega, *, stabiliser: Stabiliser, eps: float) -> Features:
    """Phi of queries."""
    u, g = projections(query, omega)
    if stabiliser == "exponent":
        return (u - u.amax(-1, keepdim=True)).exp() + eps
    return (u - g - u.detach().amax(-1, keepdim=True)).exp() + eps


def key_exponents(
    key: PerHead, omega: Omega, seen: Seen | None, *, stabiliser: Stabiliser
) -> tuple[Features, Float[Tensor, "b h n"]]:
    """U - g of keys and the largest that a token has of what they are shifted by."""
    u, g = projections(key, omega)
    exponents = u - g
    peaks = (exponents if stabiliser == "exponent" else u.detach()).amax(-1)
    if seen is None:
        return exponents, peaks
    lowest = torch.finfo(peaks.dtype).min
    hidden = ~seen[:, None, :]
    return exponents.masked_fill(hidden[..., None], lowest), peaks.masked_fill(hidden, lowest)


def with_ones(value: PerHead, seen: Seen | None) -> Float[Tensor, "b h n e"]:
    """Values and a 1 that counts the token: sums of both give numerator and denominator at once."""
    counted = torch.cat([value, torch.ones_like(value[..., :1])], -1)
    return counted if seen is None else counted.where(seen[:, None, :, None], 0.0)


def ratio(sums: Float[Tensor, "b h n e"]) -> PerHead:
    """Numerators over denominators; zeros, and no gradient, where no key was met."""
    met = sums[..., -1:] > 1e-30
    sums = torch.where(met, sums, 1.0)
    return torch.where(met, sums[..., :-1] / sums[..., -1:], 0.0)


def mix(
    query: PerHead,
    key: PerHead,
    value: PerHead,
    omega: Omega,
    *,
    seen: Seen | None,
    stabiliser: Stabiliser,
    eps: float,
) -> PerHead:
    """Every query reads all keys; n f d time, n f + f d memory."""
    asked = query_features(query, omega, stabiliser=stabiliser, eps=eps)
    exponents, peaks = key_exponents(key, omega, seen, stabiliser=stabiliser)
    offered = (exponents - peaks.amax(-1)[..., None, None]).exp() + eps
    return ratio(asked @ (offered.transpose(-2, -1) @ with_ones(value, seen)))


def part_size(*, chunk: int) -> int:
    """How many tokens the causal form takes at once: whole chunks, about AT_ONCE tokens."""
    return max(1, AT_ONCE // chunk) * chunk


def causal_mix(
    query: PerHead,
    key: PerHead,
    value: PerHead,
    omega: Omega,
    *,
    seen: Seen | None,
    stabiliser: Stabiliser,
    eps: float,
    chunk: int,
) -> PerHead:
    """Every query reads its chunk and what came before, and depends on nothing else, eps or not.

    Whole chunks are taken some at a time: within such a part, queries meet keys directly; of all
    earlier ones there is a running sum, kept relative to the largest exponent so far so that it
    cannot overflow.
    """
    asked = query_features(query, omega, stabiliser=stabiliser, eps=eps)
    exponents, peaks = key_exponents(key, omega, seen, stabiliser=stabiliser)
    offered = (exponents - peaks[..., None]).exp()
    values = with_ones(value, seen)
    tops = at_chunk_ends(peaks.cummax(-1).values, chunk=chunk, axis=2)
    top = torch.full_like(peaks[..., :1, None], torch.finfo(peaks.dtype).min)
    past = values.new_zeros(*values.shape[:2], len(omega), values.shape[-1])
    counted = at_chunk_ends(values.cumsum(-2), chunk=chunk, axis=2) * eps
    sums = []
    # split once, not sliced in the loop: the gradient of every slice would be as long as the whole
    tokens = (asked, offered, values, peaks[..., None], tops[..., None])
    size = part_size(chunk=chunk)
    for q, k, v, peak, highest in zip(*(each.split(size, 2) for each in tokens), strict=True):
        met = chunk_mask(q.shape[2], q.shape[2], chunk=chunk, device=q.device)
        fade = (peak.transpose(-2, -1) - highest).masked_fill(~met, -math.inf).exp()
        recent = (q @ k.transpose(-2, -1) * fade) @ v
        sums.append(recent + (top - highest).exp() * (q @ past))
        last = highest[:, :, -1:]
        past = (top - last).exp() * past
        past = past + (k * (peak - last).exp()).transpose(-2, -1) @ v
        top = last
    return ratio(torch.cat(sums, -2) + asked.sum(-1, keepdim=True) * counted)
