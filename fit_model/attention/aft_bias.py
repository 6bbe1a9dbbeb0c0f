"""The position bias of AFT: how much a query at one place prefers a key at another."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fit_model.attention.place import require_length


class PositionBias(nn.Module):
    """w[t, i], the same for all channels: a table of numbers, or the product u v^T of two.

    Starts as N(0, initial_std^2), in w itself or in both factors. With a rank it holds 2 n rank
    numbers instead of n^2, which also generalises better: AFT, arXiv:2105.14103, table 3.
    """

    def __init__(self, num_tokens: int, *, rank: int | None, initial_std: float) -> None:
        super().__init__()
        self.num_tokens = num_tokens
        self.rank = rank
        if rank is None:
            self.w = nn.Parameter(initial_std * torch.randn(num_tokens, num_tokens))
        else:
            self.u = nn.Parameter(initial_std * torch.randn(num_tokens, rank))
            self.v = nn.Parameter(initial_std * torch.randn(num_tokens, rank))

    def block(self, rows: slice, columns: slice, *, dtype: torch.dtype) -> Float[Tensor, "q k"]:
        """The bias of some queries and some keys."""
        if self.rank is None:
            return self.w[rows, columns].to(dtype)
        return self.u[rows].to(dtype) @ self.v[columns].to(dtype).T

    def check(self, length: int, *, operator: str) -> None:
        """Refuse a sequence that is longer than the table."""
        require_length(length, longest=self.num_tokens, operator=operator)
