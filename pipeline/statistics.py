"""Mean and spread per band over the values that are there: no padding, no missing values.

    count, mean, m2 = n, sum x / n, sum (x - mean)^2       of one group
    a + b: n = na + nb, mean = ma + d nb / n, m2 = m2a + m2b + d^2 na nb / n,   d = mb - ma
    std = sqrt(m2 / n)

Groups are merged in the order of (image, group): the numbers are the same to the last bit however
the groups were spread over shards and workers. Source: Chan, Golub, LeVeque 1983. Inside a group,
integers of up to 16 bits are summed exactly, and m2 = (n sum x^2 - (sum x)^2) / n.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np

from pipeline.background import is_missing, is_possible

CHUNK_BYTES = 1 << 19  # about as much stays in a core's own cache; small for any group
BYTES_SUMMED = 256
"""Rows: so many values of 8 bits add up to less than 2^16."""
SHORTS_SUMMED = 1 << 21
"""Rows: so many squares of 16 bits add up to at most 2^53."""


@dataclass(frozen=True, kw_only=True)
class Moments:
    """Per band: how many values, their mean, and their summed squared distance from it."""

    count: np.ndarray
    mean: np.ndarray
    m2: np.ndarray

    @classmethod
    def nothing(cls, bands: int) -> Self:
        """Of no values: what a sum starts from."""
        return cls(count=np.zeros(bands), mean=np.zeros(bands), m2=np.zeros(bands))

    def __add__(self, other: "Moments") -> "Moments":
        count = self.count + other.count
        share = other.count / np.maximum(count, 1)
        apart = other.mean - self.mean
        return Moments(
            count=count,
            mean=self.mean + apart * share,
            m2=self.m2 + other.m2 + apart * apart * self.count * share,
        )

    @property
    def std(self) -> np.ndarray:
        """Per band, over all values (not n - 1)."""
        return np.sqrt(self.m2 / np.maximum(self.count, 1))

    def row(self) -> list[float]:
        """Flat, as it travels in a table: count, mean, m2 of every band."""
        return np.concatenate([self.count, self.mean, self.m2]).tolist()

    @classmethod
    def from_row(cls, row: np.ndarray) -> Self:
        """What `row` flattened."""
        count, mean, m2 = np.asarray(row, np.float64).reshape(3, -1)
        return cls(count=count, mean=mean, m2=m2)


def measure(tile: np.ndarray, *, nodata: float | None) -> Moments:
    """The moments of [height, width, bands]: the valid extent of one group.

    Cost     uint8 a quarter of a nanosecond a value; other types up to six times that
    Memory   a few times CHUNK_BYTES, or one row of a very wide group
    """
    return (_exactly if tile.dtype in SUMS else _in_floats)(tile, nodata=nodata)


def _exactly(tile: np.ndarray, *, nodata: float | None) -> Moments:
    """Integers of up to 16 bits: sums of whole numbers, rounded once at the very end."""
    bands = tile.shape[-1]
    rows = tile.reshape(tile.shape[0], -1)
    gone = np.zeros(bands, np.int64)
    value = 0
    if is_possible(nodata, dtype=tile.dtype):
        value = int(nodata)
        gone = _of_bands(_sums_of_bytes(rows == value), bands=bands)[0]
    count = rows.size // bands - gone
    total, squares = _of_bands(SUMS[rows.dtype](rows), bands=bands)
    total, squares = total - gone * value, squares - gone * value * value
    exact = zip(count.tolist(), total.tolist(), squares.tolist(), strict=True)
    m2 = [(n * square - one * one) / n if n else 0.0 for n, one, square in exact]
    return Moments(
        count=count.astype(np.float64), mean=total / np.maximum(count, 1), m2=np.array(m2)
    )


def _sums_of_bytes(rows: np.ndarray) -> np.ndarray:
    """[sum, sum of squares] of every column, as whole numbers.

        sum x^2 = 2^8 high + low,   high = sum floor(x^2 / 2^8),   low = sum (x^2 mod 2^8) < 2^16

    so low = (sum x^2 - 2^8 high) mod 2^16: all of it fits 16 bits, which are summed fastest.
    """
    step = min(BYTES_SUMMED, max(1, CHUNK_BYTES // rows.shape[1]))
    starts = range(0, len(rows), step)
    room = np.empty((min(step, len(rows)), rows.shape[1]), np.uint16)
    sums = np.empty((len(starts), 3, rows.shape[1]), np.uint16)
    for start, (total, low, high) in zip(starts, sums, strict=True):
        chunk = rows[start : start + step]
        values = room[: len(chunk)]
        np.copyto(values, chunk)
        np.add.reduce(values, axis=0, dtype=np.uint16, out=total)
        np.multiply(values, values, out=values)
        np.add.reduce(values, axis=0, dtype=np.uint16, out=low)
        np.right_shift(values, 8, out=values)
        np.add.reduce(values, axis=0, dtype=np.uint16, out=high)
        low -= high << 8
    total, low, high = sums.sum(axis=0, dtype=np.int64)
    return np.stack([total, low + (high << 8)])


def _sums_of_shorts(rows: np.ndarray) -> np.ndarray:
    """The same in float64, which holds these sums exactly."""
    sums = np.zeros((2, rows.shape[1]), np.int64)
    step = min(SHORTS_SUMMED, max(1, CHUNK_BYTES // (8 * rows.shape[1])))
    room = np.empty((min(step, len(rows)), rows.shape[1]), np.float64)
    ones = np.ones(len(room))
    for top in range(0, len(rows), step):
        chunk = rows[top : top + step]
        values = room[: len(chunk)]
        np.copyto(values, chunk)
        sums[0] += (ones[: len(chunk)] @ values).astype(np.int64)
        sums[1] += np.einsum("rc,rc->c", values, values).astype(np.int64)
    return sums


SUMS = {
    np.dtype(name): sums
    for sums, names in (
        (_sums_of_bytes, ("uint8", "bool")),
        (_sums_of_shorts, ("int8", "uint16", "int16")),
    )
    for name in names
}
"""Of integers whose sums are exact."""


def _of_bands(sums: np.ndarray, *, bands: int) -> np.ndarray:
    """From columns of values to bands."""
    return sums.reshape(len(sums), -1, bands).sum(axis=1)


def _in_floats(tile: np.ndarray, *, nodata: float | None) -> Moments:
    """Everything else, in float64: the mean of a chunk first, then the distances from it."""
    bands = tile.shape[-1]
    rows = tile.reshape(tile.shape[0], -1)
    step = max(1, CHUNK_BYTES // (8 * rows.shape[1]))
    total = Moments.nothing(bands)
    for top in range(0, len(rows), step):
        chunk = rows[top : top + step]
        values = chunk.astype(np.float64)
        gone = is_missing(chunk, nodata=nodata)
        count = np.full(bands, float(values.size // bands))
        if some_gone := bool(gone.any()):
            values[gone] = 0
            count -= np.count_nonzero(gone.reshape(-1, bands), axis=0)
        mean = _of_bands(values.sum(axis=0)[None], bands=bands)[0] / np.maximum(count, 1)
        values -= np.tile(mean, rows.shape[1] // bands)
        if some_gone:
            values[gone] = 0
        m2 = _of_bands(np.multiply(values, values, out=values).sum(axis=0)[None], bands=bands)[0]
        total = total + Moments(count=count, mean=mean, m2=m2)
    return total
