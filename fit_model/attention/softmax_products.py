"""Softmax attention for half precision on a CPU, as plain matrix products, some scores at a time.

    P = softmax(Q K^T / sqrt(d)),   O = P V
    dV = P^T dO,   dS = P * (dO V^T - rowsum(dO V^T * P)),   dQ = dS K / sqrt(d),   dK = dS^T Q

A CPU multiplies bf16 matrices many times faster than PyTorch 2.13's fused kernel, which runs its
backward pass in small pieces. Scores are kept for nobody: the backward pass computes them again.
Scores and shares are rounded to the inputs' precision. Where scores are large they are computed
once more less the highest of their row, which is added before they are rounded: what counts in a
softmax is then small, and so is its error.
Cost: forwards 2 b h q k (d + e) floating point operations, backwards 2 b h q k (3 d + 2 e); beside
inputs and outputs 2 * SCORES scores, or those of 64 queries.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

SCORES = 2**22
"""At once; two tables of them fit a CPU's last cache."""
FEWEST_QUERIES = 64
"""At once, however many keys there are: a product of fewer rows is slow."""
LARGE = 4.0
"""Scores up to here are rounded to bf16 as they are: by less than 0.01."""

Rows = Float[Tensor, "s n d"]
"""One head of one sequence each."""


class SoftmaxProducts(torch.autograd.Function):
    """The mixed values; RuntimeError where a second derivative is asked for."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Float[Tensor, "b h q d"],
        key: Float[Tensor, "b h k d"],
        value: Float[Tensor, "b h k e"],
        hidden: Bool[Tensor, "b 1 1 k"] | None,
    ) -> Float[Tensor, "b h q e"]:
        """Each query reads all keys of its head that are not hidden."""
        scaled = (query * query.shape[-1] ** -0.5).flatten(0, 1)
        keys, values = key.flatten(0, 1), value.flatten(0, 1)
        unseen = None if hidden is None else hidden.expand(*key.shape[:2], 1, -1).flatten(0, 1)
        mixed = scaled.new_empty(*scaled.shape[:2], values.shape[2])
        tables = Tables.of(scaled, keys)
        for part in tables.parts():
            shares = tables.shares(part, scaled, keys, unseen)
            torch.bmm(shares, values[part.sequences], out=mixed[part.place])
        ctx.save_for_backward(scaled, keys, values, unseen)
        return mixed.unflatten(0, query.shape[:2])

    @staticmethod
    def backward(ctx: Any, of_mixed: Float[Tensor, "b h q e"]) -> tuple[Tensor | None, ...]:
        """The gradients of queries, keys and values."""
        # once_differentiable would give constants: of what was saved it knows no graph
        if torch.is_grad_enabled():
            raise RuntimeError(
                "attention by products has no second derivative: leave create_graph out"
            )
        scaled, keys, values, unseen = ctx.saved_tensors
        changes = of_mixed.flatten(0, 1).contiguous()
        of_scaled = torch.empty_like(scaled)
        tables = Tables.of(scaled, keys)
        of_keys, of_values = tables.sums(keys), tables.sums(values)
        for part in tables.parts():
            shares = tables.shares(part, scaled, keys, unseen)
            of_values.add(part, shares, changes[part.place])
            of_scores = tables.of_scores(part, shares, changes, values)
            torch.bmm(of_scores, keys[part.sequences], out=of_scaled[part.place])
            of_keys.add(part, of_scores, scaled[part.place])
        shape, scale = of_mixed.shape[:2], scaled.shape[-1] ** -0.5
        return (
            of_scaled.mul_(scale).unflatten(0, shape),
            of_keys.total.to(keys.dtype).unflatten(0, shape),
            of_values.total.to(values.dtype).unflatten(0, shape),
            None,
        )


@dataclass(frozen=True)
class Part:
    """Some queries of some sequences; of one sequence, where these are not all its queries."""

    sequences: slice
    queries: slice

    @property
    def place(self) -> tuple[slice, slice]:
        """Of these queries among all."""
        return self.sequences, self.queries


class Sums:
    """Gradients of keys or values, in float32 where several parts add to them."""

    def __init__(self, like: Rows, *, dtype: torch.dtype) -> None:
        self.total = torch.zeros(like.shape, dtype=dtype)

    def add(
        self, part: Part, table: Float[Tensor, "part q k"], rows: Float[Tensor, "part q d"]
    ) -> None:
        """The products of a transposed table with the rows of its queries."""
        self.total[part.sequences] += torch.bmm(table.transpose(1, 2), rows)


class Tables:
    """Room for two tables of scores, and which part of all scores is in it at a time."""

    def __init__(self, *, num: int, queries: int, keys: int, dtype: torch.dtype) -> None:
        self.num, self.num_queries, self.num_keys = num, queries, keys
        self.queries_at_once = max(1, min(queries, max(FEWEST_QUERIES, SCORES // max(1, keys))))
        self.whole = self.queries_at_once >= queries
        several = SCORES // max(1, queries * keys)
        self.at_once = max(1, min(num, several)) if self.whole else 1
        self.exact = dtype if self.whole else torch.float32
        room = self.at_once * self.queries_at_once * keys
        self._scores, self._shares = torch.empty(room, dtype=dtype), torch.empty(room, dtype=dtype)

    @classmethod
    def of(cls, queries: Float[Tensor, "s q d"], keys: Float[Tensor, "s k d"]) -> "Tables":
        """Those that these need."""
        return cls(
            num=queries.shape[0],
            queries=queries.shape[1],
            keys=keys.shape[1],
            dtype=queries.dtype,
        )

    def sums(self, like: Rows) -> Sums:
        """Room for the gradients of keys or values."""
        return Sums(like, dtype=self.exact)

    def parts(self) -> Iterator[Part]:
        """All scores."""
        for first in range(0, self.num, self.at_once):
            sequences = slice(first, min(first + self.at_once, self.num))
            for query in range(0, self.num_queries, self.queries_at_once):
                end = min(query + self.queries_at_once, self.num_queries)
                yield Part(sequences, slice(query, end))

    def shares(
        self,
        part: Part,
        scaled: Float[Tensor, "s n d"],
        keys: Float[Tensor, "s k d"],
        unseen: Bool[Tensor, "s 1 k"] | None,
    ) -> Float[Tensor, "part q k"]:
        """The softmax of a part's scores, until the next part is asked for."""
        scores, shares = self._view(self._scores, part), self._view(self._shares, part)
        hidden = None if unseen is None else unseen[part.sequences]
        queries, columns = scaled[part.place], keys[part.sequences].transpose(1, 2)
        torch.bmm(queries, columns, out=scores)
        if are_large(scores):
            highest = hide(scores, hidden).amax(-1, keepdim=True)
            scores.copy_(-highest).baddbmm_(queries, columns)
        return torch.softmax(hide(scores, hidden), -1, out=shares)

    def of_scores(
        self,
        part: Part,
        shares: Float[Tensor, "part q k"],
        changes: Float[Tensor, "s n e"],
        values: Float[Tensor, "s k e"],
    ) -> Float[Tensor, "part q k"]:
        """The gradient of a part's scores, in their place."""
        room = self._view(self._scores, part)
        torch.bmm(changes[part.place], values[part.sequences].transpose(1, 2), out=room)
        return torch._softmax_backward_data(room, shares, -1, shares.dtype, grad_input=room)

    def _view(self, room: Tensor, part: Part) -> Float[Tensor, "part q k"]:
        count = part.sequences.stop - part.sequences.start
        queries = part.queries.stop - part.queries.start
        return room[: count * queries * self.num_keys].view(count, queries, self.num_keys)


def are_large(scores: Float[Tensor, "part q k"]) -> bool:
    """Whether any is, of hidden keys too."""
    if not scores.numel():
        return False
    low, high = scores.aminmax()
    return max(-float(low), float(high)) > LARGE


def hide(
    scores: Float[Tensor, "part q k"], hidden: Bool[Tensor, "part 1 k"] | None
) -> Float[Tensor, "part q k"]:
    """The same scores, those of hidden keys out of everyone's reach."""
    return scores if hidden is None else scores.masked_fill_(hidden, float("-inf"))
