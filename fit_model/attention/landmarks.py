"""Landmarks of a sequence, the means of its segments, and the inverse of how they see each other.

Source: Xiong et al. 2021, arXiv:2102.03902; the inverse after Razavi et al. 2014.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Landmarks:
    """Which tokens make which landmark."""

    members: Bool[Tensor, "#b m n"]
    used: Bool[Tensor, "#b m"] | None
    """False for a landmark without tokens; None where all have some."""

    @classmethod
    def of(
        cls,
        seen: Bool[Tensor, "#b #n"] | None,
        *,
        num_tokens: int,
        at_most: int,
        device: torch.device,
    ) -> "Landmarks":
        """Token i of the n that are seen belongs to floor(i m / n), m the fewer of n and at_most.

        A token that nobody sees belongs to none.
        """
        few = min(num_tokens, at_most)
        if seen is None:
            number = torch.arange(few, device=device)[:, None]
            segment = torch.arange(num_tokens, device=device) * few // num_tokens
            return cls(members=(segment == number)[None], used=None)
        seen = seen.expand(-1, num_tokens)
        count = seen.sum(-1, keepdim=True)
        used_of = count.clamp(max=few)
        segment = (seen.cumsum(-1) - 1) * used_of // count.clamp(min=1)
        number = torch.arange(few, device=device)
        members = (segment[:, None, :] == number[:, None]) & seen[:, None, :]
        return cls(members=members, used=number < used_of)

    def means(self, x: Float[Tensor, "b h n d"]) -> Float[Tensor, "b h m d"]:
        """The mean of x over the tokens of every landmark; zeros without any."""
        members = self.members.to(x)
        shares = members / members.sum(-1, keepdim=True).clamp(min=1.0)
        return shares[:, None] @ x

    def drop_unused(self, rows: Float[Tensor, "b h m k"]) -> Float[Tensor, "b h m k"]:
        """Zeros in the rows of landmarks without tokens."""
        return rows if self.used is None else rows.where(self.used[:, None, :, None], 0.0)


def softmax_of_seen(
    scores: Float[Tensor, "b h q k"], seen: Bool[Tensor, "#b #k"] | None
) -> Float[Tensor, "b h q k"]:
    """Softmax over the keys that are seen; zeros without any."""
    if seen is None:
        return scores.softmax(-1)
    hidden = ~seen[:, None, None, :]
    lowest = torch.finfo(scores.dtype).min
    return scores.masked_fill(hidden, lowest).softmax(-1).masked_fill(hidden, 0.0)


def inverse(
    matrix: Float[Tensor, "b h m m"], *, iterations: int, normaliser: Literal["matrix", "batch"]
) -> Float[Tensor, "b h m m"]:
    """Nearly the pseudo-inverse of matrices A whose rows sum to 1, or are zero.

        Z_0 = A^T / (largest column sum)
        Z <- Z (13 I - A Z (15 I - A Z (7 I - A Z))) / 4

    Zero rows and columns stay zero, as they should.
    """
    sums = matrix.sum(-2)
    largest = sums.amax(-1)[..., None, None] if normaliser == "matrix" else sums.amax()
    guess = matrix.transpose(-2, -1) / torch.where(largest > 0, largest, 1.0)
    identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    for _ in range(iterations):
        product = matrix @ guess
        inner = 15 * identity - product @ (7 * identity - product)
        guess = guess @ (13 * identity - product @ inner) / 4
    return guess
