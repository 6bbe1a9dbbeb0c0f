"""Mean and spread per band over the values that are there: no padding, no missing values.

    count, mean, m2 = n, sum x / n, sum (x - mean)^2       of one group
    a + b: n = na + nb, mean = ma + d nb / n, m2 = m2a + m2b + d^2 na nb / n,   d = mb - ma
    std = sqrt(m2 / n)

Groups are merged in the order of (image, group): the numbers are the same to the last bit however
the groups were spread over shards and workers. Source: Chan, Golub, LeVeque 1983.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np

from pipeline.background import is_missing

CHUNK_VALUES = 1 << 20  # float64 copies stay at 8 MB however large a group is


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
    """The moments of [height, width, bands]: the valid extent of one group."""
    bands = tile.shape[-1]
    step = max(1, CHUNK_VALUES // (tile.shape[1] * bands))
    total = Moments.nothing(bands)
    for top in range(0, tile.shape[0], step):
        # Band by band in memory: sums along the last axis are several times faster.
        chunk = np.ascontiguousarray(tile[top : top + step].reshape(-1, bands).T)
        there = ~is_missing(chunk, nodata=nodata)
        values = np.where(there, chunk, 0).astype(np.float64)
        count = np.count_nonzero(there, axis=1).astype(np.float64)
        mean = values.sum(axis=1) / np.maximum(count, 1)
        apart = np.where(there, values - mean[:, None], 0)
        total = total + Moments(count=count, mean=mean, m2=(apart * apart).sum(axis=1))
    return total
