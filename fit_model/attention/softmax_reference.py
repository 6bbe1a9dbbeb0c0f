"""Softmax attention written to be read: the operator that every other one is tested against."""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def softmax_reference(
    query: Float[Tensor, "b h q d"],
    key: Float[Tensor, "b h k d"],
    value: Float[Tensor, "b h k e"],
    *,
    may_attend: Bool[Tensor, "#b #h #q k"] | None = None,
) -> Float[Tensor, "b h q e"]:
    """Mix values by how well their keys match each query.

        scores[q, k] = query[q] . key[k] / sqrt(d)
        output[q]    = sum_k softmax_k(scores[q, k]) value[k]

    In FIT, b counts groups in local layers and images in global ones.

    Args:
        query: what each position looks for.
        key: what each position offers.
        value: what each position hands over; e may differ from d.
        may_attend: True where a query may see a key; None lets every query see every key.
            A query that may see nothing gives zeros, not NaN, and zero gradients.

    Returns:
        One mixed value per query, in the dtype of value; scores are kept in float32 at least.

    Cost:
        b h q k (d + e) multiply-adds, and b h q k scores in memory.

    Source:
        Vaswani et al. 2017, arXiv:1706.03762, eq. 1.
    """
    exact = torch.promote_types(query.dtype, torch.float32)
    scores = query.to(exact) @ key.to(exact).transpose(-2, -1) / math.sqrt(query.shape[-1])
    if may_attend is None:
        return (scores.softmax(-1) @ value.to(exact)).to(value.dtype)
    # The lowest finite score, not -inf: a row of -inf has no softmax and a gradient of NaN.
    scores = scores.masked_fill(~may_attend, torch.finfo(exact).min)
    weights = scores.softmax(-1).masked_fill(~may_attend, 0.0)
    return (weights @ value.to(exact)).to(value.dtype)


def seen_by(
    num_queries: int, num_keys: int, *, device: torch.device | None = None
) -> Bool[Tensor, "1 1 {num_queries} {num_keys}"]:
    """True where a query may see a key when it sees none after it: the last query sees all keys."""
    every = torch.ones(1, 1, num_queries, num_keys, dtype=torch.bool, device=device)
    return every.tril(num_keys - num_queries)


def causal_softmax_reference(
    query: Float[Tensor, "b h q d"],
    key: Float[Tensor, "b h k d"],
    value: Float[Tensor, "b h k e"],
    *,
    may_attend: Bool[Tensor, "#b #h #q k"] | None = None,
) -> Float[Tensor, "b h q e"]:
    """softmax_reference in which a position sees itself and what came before it.

    Queries are the last of the positions that the keys belong to: with fewer queries than keys, as
    in sampling, the last query still sees all keys.
    """
    past = seen_by(query.shape[2], key.shape[2], device=query.device)
    seen = past if may_attend is None else may_attend & past
    return softmax_reference(query, key, value, may_attend=seen)
