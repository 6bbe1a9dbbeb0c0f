"""Means of values weighted by exp(key + bias), channel by channel, without a cube of scores.

    mean[t, c] = sum_i exp(key[i, c] + bias[t, i]) value[i, c] / sum_i exp(key[i, c] + bias[t, i])

The sums are matrix products of exp(bias - its row's maximum) and exp(key - its channel's maximum),
a few rows of the bias at a time. Such a product underflows where bias and key have their maxima at
different tokens and far apart: entries of which too little is left are computed again as plain
softmaxes, and only those. Sums that look back only, to the end of the row's chunk, take blocks of
whole chunks: the one on the diagonal score by score where it has several, because a maximum over a
block must not look ahead. Everything is computed again in the backward pass, so that between the
passes only keys, values and what makes the bias are kept.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from fit_model.attention.chunks import chunk_mask
from fit_model.attention.prefix_means import prefix_means, suffix_means
from fit_model.recompute import recomputed

Bias = Callable[[slice, slice], Float[Tensor, "q k"]]
"""The bias of some rows (queries) and columns (keys)."""
UNSEEN = -1e30
"""The key of a token that nobody sees: finite, so that a sequence of them has a softmax."""
CAUSAL_ROWS = 32
BIASES_A_BLOCK = 1 << 20
SCORES_A_PART = 1 << 22


class Sums(NamedTuple):
    """Sums over a part of the keys in units of exp(top), each (b, q or 1, d)."""

    top: Tensor
    weight: Tensor
    total: Tensor


def merged(parts: Sequence[Sums]) -> Sums:
    """The sums over all parts in units of the largest."""
    top = parts[0].top
    for part in parts[1:]:
        top = torch.maximum(top, part.top)
    scales = [(part.top - top).exp() for part in parts]
    weight = sum(part.weight * scale for part, scale in zip(parts, scales, strict=True))
    total = sum(part.total * scale for part, scale in zip(parts, scales, strict=True))
    return Sums(top, torch.as_tensor(weight), torch.as_tensor(total))


def by_products(
    key: Float[Tensor, "b k d"], value: Float[Tensor, "b k d"], bias: Float[Tensor, "q k"]
) -> Sums:
    """The sums over keys that every row sees, as one matrix product; they may underflow."""
    highest_key = key.detach().amax(1, keepdim=True)
    highest_bias = bias.detach().amax(1, keepdim=True)
    weights = (key - highest_key).exp()
    products = (bias - highest_bias).exp() @ torch.cat([weights, weights * value], -1)
    weight, total = products.chunk(2, -1)
    return Sums(highest_key + highest_bias, weight, total)


def by_scores(
    key: Float[Tensor, "b q d"],
    value: Float[Tensor, "b q d"],
    bias: Float[Tensor, "q q"],
    *,
    chunk: int,
) -> Sums:
    """The causal sums of a block on the diagonal, score by score; they cannot underflow."""
    scores = key[:, None] + without_future(bias, chunk=chunk)[..., None]
    top = scores.detach().amax(2)
    weights = (scores - top[:, :, None]).exp()
    return Sums(top, weights.sum(2), torch.einsum("bqkd,bkd->bqd", weights, value))


def without_future(bias: Float[Tensor, "q k"], *, chunk: int) -> Float[Tensor, "q k"]:
    """The bias of the last rows, -inf where a key lies behind the row's chunk."""
    seen = chunk_mask(*bias.shape, chunk=chunk, device=bias.device)[0, 0]
    return bias.masked_fill(~seen, -math.inf)


def by_softmax(
    key: Float[Tensor, "b n d"],
    value: Float[Tensor, "b n d"],
    bias: Float[Tensor, "q n"],
    entries: Int64[Tensor, "m 3"],
) -> Float[Tensor, " m"]:
    """The means of single entries (batch, row of the bias, channel), safe for every number."""
    batch, row, channel = entries.unbind(1)
    weights = (key[batch, :, channel] + bias[row]).softmax(-1)
    return (weights * value[batch, :, channel]).sum(-1)


def biased_means(
    key: Float[Tensor, "b n d"],
    value: Float[Tensor, "b n d"],
    bias: Bias,
    *,
    reach: int | None = None,
    chunk: int | None,
) -> Float[Tensor, "b n d"]:
    """The means above, in float32 at least.

    Args:
        key: UNSEEN where nobody sees a token, whose value is then zero.
        value: what each token hands over.
        bias: called for some rows and columns; only differences within a row matter.
        reach: the bias counts where |t - i| < reach and is zero elsewhere; None: everywhere.
        chunk: leave the tokens after the end of t's chunk out of the sums; None: sum over all.

    Cost:
        b n^2 d multiply-adds, with a reach b n (reach + rows of a block) d; b n d numbers kept.
    """
    with torch.autocast(key.device.type, enabled=False):
        blocks = Blocks(key, value, bias, reach=reach, chunk=chunk)
        starts = blocks.plan.starts
        return torch.cat([recomputed(blocks.rows(start), key, value) for start in starts], 1)


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The rows of the bias in blocks, and which keys a block meets."""

    length: int
    reach: int
    chunk: int | None

    @classmethod
    def of(cls, length: int, *, reach: int | None = None, chunk: int | None) -> "Rows":
        """For a sequence, where the bias reaches everywhere or less far."""
        within = length if reach is None else max(1, min(reach, length))
        return cls(length=length, reach=within, chunk=chunk)

    @property
    def starts(self) -> range:
        """The first row of every block."""
        if self.chunk is not None:
            return range(0, self.length, max(1, CAUSAL_ROWS // self.chunk) * self.chunk)
        size = max(CAUSAL_ROWS, BIASES_A_BLOCK // max(1, min(self.length, 2 * self.reach)))
        if self.reach < self.length:
            size = min(size, max(CAUSAL_ROWS, self.reach))
        return range(0, self.length, size)

    @property
    def inner_chunk(self) -> int | None:
        """The chunk, where a block holds several and its rows see different keys of the block."""
        return None if self.chunk == self.starts.step else self.chunk

    def block(self, start: int) -> tuple[slice, slice]:
        """Rows of the block that starts there, and the keys within the reach of any of them."""
        stop = min(start + self.starts.step, self.length)
        last = min(self.length, stop - 1 + self.reach) if self.chunk is None else stop
        return slice(start, stop), slice(max(0, start - self.reach + 1), last)

    def macs(self, *, width: int) -> int:
        """Multiply-adds of the matrix products, weights and weighted values being `width` each."""
        total = 0
        for rows, keys in map(self.block, self.starts):
            num_rows, near = rows.stop - rows.start, keys.stop - keys.start
            alone = 0 if self.inner_chunk is None else num_rows
            total += num_rows * (2 * (near - alone) + alone) * width
        return total


class Blocks:
    """The means of blocks of rows."""

    def __init__(
        self, key: Tensor, value: Tensor, bias: Bias, *, reach: int | None, chunk: int | None
    ) -> None:
        self.length = key.shape[1]
        self.bias, self.chunk = bias, chunk
        self.plan = Rows.of(self.length, reach=reach, chunk=chunk)
        self.reach = self.plan.reach
        self.zero = reach == 0
        self.tiles = Tiles(key, value, size=self.plan.starts.step)
        self.before: dict[int, Sums] = {}
        self.after: dict[int, Sums] = {}
        if self.reach < self.length:
            near = [keys for _, keys in map(self.plan.block, self.plan.starts)]
            self.before = sums_at(
                prefix_means(key, value), [keys.start - 1 for keys in near if keys.start > 0]
            )
            if chunk is None:
                ends = [keys.stop for keys in near if keys.stop < self.length]
                self.after = sums_at(suffix_means(key, value), ends)

    def biases(self, rows: slice, columns: slice) -> Float[Tensor, "q k"]:
        """The bias with zeros beyond its reach."""
        bias = self.bias(rows, columns)
        row, column = (
            torch.arange(each.start, each.stop, device=bias.device) for each in (rows, columns)
        )
        apart = (row[:, None] - column).abs()
        return bias.masked_fill(apart >= (0 if self.zero else self.reach), 0.0)

    def rows(self, start: int) -> Callable[[Tensor, Tensor], Tensor]:
        """The function that gives the means of the rows from `start` on."""
        rows, keys = self.plan.block(start)

        def means(key: Tensor, value: Tensor) -> Tensor:
            sums = merged(self.parts(rows=rows, keys=keys))
            enough = sums.weight >= math.sqrt(torch.finfo(key.dtype).tiny)
            found = sums.total / sums.weight.where(enough, 1.0)
            lost = (~enough).nonzero()
            if not len(lost):
                return found
            return self.replaced(found, lost, key, value, rows=rows)

        return means

    def parts(self, *, rows: slice, keys: slice) -> list[Sums]:
        """Sums over all that the rows see: near keys with their bias, and all those beyond."""
        bias = self.biases(rows, keys)
        parts = []
        if self.plan.inner_chunk is None:
            parts.append(by_products(*self.tiles.span(keys), bias))
        else:
            own = bias[:, rows.start - keys.start :]
            parts.append(by_scores(*self.tiles.span(rows), own, chunk=self.plan.inner_chunk))
            past = slice(keys.start, rows.start)
            if past.stop > past.start:
                known = bias[:, : rows.start - keys.start]
                parts.append(by_products(*self.tiles.span(past), known))
        if keys.start - 1 in self.before:
            parts.append(self.before[keys.start - 1])
        if keys.stop in self.after:
            parts.append(self.after[keys.stop])
        return parts

    def replaced(
        self, found: Tensor, lost: Tensor, key: Tensor, value: Tensor, *, rows: slice
    ) -> Tensor:
        """`found` with the entries `lost` computed one by one."""
        seen = self.length if self.chunk is None else rows.stop
        bias = self.biases(rows, slice(0, seen))
        if self.chunk is not None:
            bias = without_future(bias, chunk=self.chunk)
        parts = [
            recomputed(by_softmax, key[:, :seen], value[:, :seen], bias, entries)
            for entries in lost.split(max(1, SCORES_A_PART // seen))
        ]
        return found.index_put(lost.unbind(1), torch.cat(parts))


class Tiles:
    """Keys and values cut once, so that the gradient of a few tokens is only as long as they are.

    A slice's gradient is as long as the whole sequence: many slices would cost its square.
    """

    def __init__(self, key: Tensor, value: Tensor, *, size: int) -> None:
        self.size = size
        self.keys, self.values = key.split(size, 1), value.split(size, 1)

    def span(self, tokens: slice) -> tuple[Tensor, Tensor]:
        """Key and value of these tokens."""
        first, last = tokens.start // self.size, -(-tokens.stop // self.size)
        inner = slice(tokens.start - first * self.size, tokens.stop - first * self.size)
        key, value = (
            torch.cat(tiles[first:last], 1)[:, inner] for tiles in (self.keys, self.values)
        )
        return key, value


def sums_at(means: tuple[Tensor, Tensor, Tensor], places: list[int]) -> dict[int, Sums]:
    """The sums of prefixes or suffixes that end at each of `places`, from their means."""
    if not places:
        return {}
    number = torch.tensor(places, device=means[0].device)
    taken = (each.index_select(1, number).split(1, 1) for each in means)
    return {
        place: Sums(top, weight, weight * mean)
        for place, top, weight, mean in zip(places, *taken, strict=True)
    }
