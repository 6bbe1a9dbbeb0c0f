"""Chunk-causal attention: a position sees all of its own chunk and of the chunks before it.

    may_attend[i, j] = j // chunk <= i // chunk

In FIT a chunk is the latents of one group. Queries of softmax are taken some at a time against the
keys that lie before their end, so neither scores nor mask of all pairs are ever there at once, and
what no query of a part may see is not computed. Operators that go by sums over the tokens so far
take them `at_chunk_ends`.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from fit_model.attention.operators import Operator
from fit_model.recompute import recomputed

QUERIES_AT_ONCE = 1024


@dataclass(frozen=True, kw_only=True)
class InChunks:
    """An operator whose positions look back, a chunk at a time."""

    attend: Operator
    chunk: int

    def __call__(
        self,
        query: Float[Tensor, "b h q d"],
        key: Float[Tensor, "b h k d"],
        value: Float[Tensor, "b h k e"],
        *,
        may_attend: Bool[Tensor, "#b 1 1 k"] | None = None,
    ) -> Float[Tensor, "b h q e"]:
        """Mix values; queries are the last of the positions that the keys belong to."""
        num_queries, before = query.shape[2], key.shape[2] - query.shape[2]
        size = max(1, QUERIES_AT_ONCE // self.chunk) * self.chunk
        if num_queries <= size:
            return self._part(query, key, value, may_attend)
        parts = []
        for start in range(0, num_queries, size):
            asking = query[:, :, start : start + size]
            end = before + start + asking.shape[2]
            seen = None if may_attend is None else may_attend[..., :end]
            # kept for the backward pass, the masks of all parts would be the mask of all pairs
            parts.append(recomputed(self._part, asking, key[:, :, :end], value[:, :, :end], seen))
        return torch.cat(parts, 2)

    def _part(
        self,
        query: Float[Tensor, "b h q d"],
        key: Float[Tensor, "b h k d"],
        value: Float[Tensor, "b h k e"],
        may_attend: Bool[Tensor, "#b 1 1 k"] | None,
    ) -> Float[Tensor, "b h q e"]:
        num_queries, num_keys = query.shape[2], key.shape[2]
        if num_queries > self.chunk:
            past = chunk_mask(num_queries, num_keys, chunk=self.chunk, device=query.device)
            may_attend = past if may_attend is None else may_attend & past
        return self.attend(query, key, value, may_attend=may_attend)


def chunk_mask(
    num_queries: int, num_keys: int, *, chunk: int, device: torch.device | None = None
) -> Bool[Tensor, "1 1 {num_queries} {num_keys}"]:
    """Which keys a query may see; queries are the last of the positions."""
    number = torch.arange(num_keys, device=device) // chunk
    return (number <= number[num_keys - num_queries :, None])[None, None]


def at_chunk_ends(
    so_far: Shaped[Tensor, "*rest"], *, chunk: int, axis: int
) -> Shaped[Tensor, "*rest"]:
    """What a running quantity has become at the end of the chunk that each place lies in.

    result[t] = so_far[min((t // chunk + 1) * chunk, n) - 1]
    """
    if chunk == 1:
        return so_far
    num = so_far.shape[axis]
    ends = torch.arange(chunk - 1, num + chunk - 1, chunk, device=so_far.device).clamp(max=num - 1)
    return so_far.index_select(axis, ends).repeat_interleave(chunk, axis).narrow(axis, 0, num)
