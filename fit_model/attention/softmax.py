"""Softmax attention by PyTorch's fused kernels."""

from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from fit_model.attention.softmax_reference import seen_by


def softmax(
    query: Float[Tensor, "b h q d"],
    key: Float[Tensor, "b h k d"],
    value: Float[Tensor, "b h k e"],
    *,
    may_attend: Bool[Tensor, "#b #h #q k"] | None = None,
) -> Float[Tensor, "b h q e"]:
    """softmax_reference by PyTorch's fused kernels: same numbers, no score matrix."""
    if may_attend is None:
        return functional.scaled_dot_product_attention(query, key, value)
    # Kernels differ in what a row without keys gives, NaN included: such a row attends to
    # everything here, and its result is then replaced, which also stops its gradient.
    sees_something = may_attend.any(-1, keepdim=True)
    mixed = functional.scaled_dot_product_attention(
        query, key, value, attn_mask=may_attend | ~sees_something
    )
    return mixed.where(sees_something, 0.0)


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
