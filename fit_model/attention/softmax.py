"""Softmax attention by PyTorch's fused kernels, or by plain products where those are faster."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from fit_model.attention.softmax_products import SoftmaxProducts
from fit_model.attention.softmax_reference import seen_by

BY_PRODUCTS = {("cpu", torch.bfloat16)}
"""Devices and precisions whose fused kernel is slower than plain products."""


def softmax(
    query: Float[Tensor, "b h q d"],
    key: Float[Tensor, "b h k d"],
    value: Float[Tensor, "b h k e"],
    *,
    may_attend: Bool[Tensor, "#b #h #q k"] | None = None,
) -> Float[Tensor, "b h q e"]:
    """softmax_reference without its matrix of all scores: same numbers, up to rounding."""
    if may_attend is None:
        return fused(query, key, value)
    # Kernels differ in what a row without keys gives, NaN included: such a row attends to
    # everything here, and its result is then replaced, which also stops its gradient.
    sees_something = may_attend.any(-1, keepdim=True)
    mixed = fused(query, key, value, may_attend | ~sees_something)
    return mixed.where(sees_something, 0.0)


def fused(
    query: Float[Tensor, "b h q d"],
    key: Float[Tensor, "b h k d"],
    value: Float[Tensor, "b h k e"],
    seen: Bool[Tensor, "#b #h #q k"] | None = None,
) -> Float[Tensor, "b h q e"]:
    """Attention in which every query sees something."""
    alike = query.dtype == key.dtype == value.dtype
    keys_alone = seen is None or seen.shape[1:3] == (1, 1)
    known = alike and keys_alone and not torch.compiler.is_compiling()
    if known and (query.device.type, query.dtype) in BY_PRODUCTS:
        return SoftmaxProducts.apply(query, key, value, None if seen is None else ~seen)
    return functional.scaled_dot_product_attention(query, key, value, attn_mask=seen)


def causal_softmax(
    query: Float[Tensor, "b h q d"],
    key: Float[Tensor, "b h k d"],
    value: Float[Tensor, "b h k e"],
    *,
    may_attend: Bool[Tensor, "#b #h #q k"] | None = None,
) -> Float[Tensor, "b h q e"]:
    """causal_softmax_reference by PyTorch's fused kernels: half the work, no score matrix."""
    if may_attend is None and query.shape[2] == key.shape[2]:
        return functional.scaled_dot_product_attention(query, key, value, is_causal=True)
    if may_attend is None and query.shape[2] == 1:
        return functional.scaled_dot_product_attention(query, key, value)
    past = seen_by(query.shape[2], key.shape[2], device=query.device)
    return softmax(query, key, value, may_attend=past if may_attend is None else may_attend & past)
