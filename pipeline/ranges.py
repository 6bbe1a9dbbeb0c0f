"""Byte ranges of files afar: in pieces, several in flight, patient with a store that is away."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipeline.cache import CacheConfig
from pipeline.patience import patiently
from pipeline.storage import Location

PIECE_BYTES = 32 << 20
"""The most that one request asks for: so large, for some stores count requests more than bytes."""


@dataclass(frozen=True, kw_only=True)
class ReadingConfig:
    """How a dataset is read that lies afar; a local one is mapped into memory."""

    patience_s: float = 120.0
    """How long a store that does not answer is asked again before reading gives up."""
    in_flight: int = 8
    """Requests at a time, of 32 MiB at most; so much memory each beside what is read."""
    cache: CacheConfig | None = None
    """Where each node keeps what it has read; None keeps nothing."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.patience_s < float("inf"):
            raise ValueError(f"reading.patience_s {self.patience_s} must be a time from 0 s up")
        if self.in_flight < 1:
            raise ValueError(f"reading.in_flight {self.in_flight} must be at least 1")


class Ranges:
    """Reads ranges; safe to use from several threads, which share the requests in flight.

    Memory: the range itself, and a piece for every request in flight.
    """

    def __init__(self, config: ReadingConfig) -> None:
        self.config = config
        self._pool = ThreadPoolExecutor(config.in_flight, thread_name_prefix="ranges")

    def read(self, place: Location, start: int, size: int) -> pa.Buffer:
        """`size` bytes from `start`, or fewer where the file ends.

        Raises:
            TimeoutError: the store has not answered for patience_s.
        """
        if 0 < size <= PIECE_BYTES:
            return pa.py_buffer(self._pool.submit(self._piece, place, start, size).result())
        whole = np.empty(size, np.uint8)

        def fill(at: int) -> int:
            content = self._piece(place, start + at, min(PIECE_BYTES, size - at))
            whole[at : at + len(content)] = np.frombuffer(content, np.uint8)
            return len(content)

        pieces = [self._pool.submit(fill, at) for at in range(0, size, PIECE_BYTES)]
        try:
            filled = sum(piece.result() for piece in pieces)
        finally:
            for piece in pieces:
                piece.cancel()
        return pa.py_buffer(whole).slice(0, filled)

    def _piece(self, place: Location, start: int, size: int) -> bytes:
        """One request, repeated with growing, random pauses while the store is away."""
        return patiently(
            lambda: place.read_range(start, size),
            patience_s=self.config.patience_s,
            setting="reading.patience_s",
        )
