"""Which tokens anybody sees, for operators that have no score for a pair of tokens."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def keys_seen(
    may_attend: Bool[Tensor, "#b #h #n #k"] | None, *, name: str
) -> Bool[Tensor, "#b #k"] | None:
    """True for a token that others see; None where all are seen.

    Only a mask that says the same to every head and every query can be met by an operator `name`
    that mixes through sums over tokens: any other is refused with a ValueError.
    """
    if may_attend is None:
        return None
    if may_attend.shape[1] != 1 or may_attend.shape[2] != 1:
        raise ValueError(
            f"{name} cannot keep single pairs of tokens apart, as a mask of shape "
            f"{tuple(may_attend.shape)} asks; mask whole tokens with a shape (b, 1, 1, n), or use "
            "softmax"
        )
    return may_attend[:, 0, 0]


def zero_unseen(x: Float[Tensor, "b n c"], seen: Bool[Tensor, "#b #n"] | None) -> Tensor:
    """Zeros, and no gradient, in place of the tokens of x that nobody sees."""
    return x if seen is None else torch.where(seen[..., None], x, 0.0)


def zero_without_seen(x: Float[Tensor, "b n c"], seen: Bool[Tensor, "#b #n"] | None) -> Tensor:
    """Zeros, and no gradient, in place of every sequence of x in which nothing is seen."""
    return x if seen is None else torch.where(seen.any(-1)[:, None, None], x, 0.0)
