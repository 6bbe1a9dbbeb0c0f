"""Data tokens in a file without a name: it is gone with the process, whatever ends it."""

import os
import tempfile
import weakref
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import torch
from torch import Tensor

from fit_model.bounded.stores import Store, arrived, pinned, to_device, to_host
from fit_model.shapes import DataTokens

WRITES_AHEAD = 2
"""Chunks that may wait in memory for the disk."""


class OnDisk(Store):
    """Slots of a file, written and read by a thread while the device computes on."""

    def __init__(self, device: torch.device, *, folder: str | None) -> None:
        self._device, self._folder = device, folder or tempfile.gettempdir()
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None
        try:
            self._file, name = tempfile.mkstemp(prefix="farreach-", dir=self._folder)
        except OSError as error:
            raise self._clear(error) from error
        os.unlink(name)
        self._release = weakref.finalize(self, os.close, self._file)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="tokens")
        self._writes: deque[Future[None]] = deque()
        self._reads: dict[int, Future[Tensor]] = {}
        self._slot_bytes = 0
        self._dtype = torch.float32
        self._shapes: dict[int, torch.Size] = {}

    def put(self, slot: int, tokens: DataTokens) -> None:
        """Written behind the caller's back; the disk's errors come with a later call."""
        # the first chunk is the largest
        self._slot_bytes = self._slot_bytes or tokens.nbytes
        self._dtype = tokens.dtype
        self._reads.pop(slot, None)
        self._shapes[slot] = tokens.shape
        while len(self._writes) >= WRITES_AHEAD:
            self._done(self._writes.popleft())
        self._writes.append(self._thread.submit(self._write, slot, *self._on_host(tokens)))

    def soon(self, slot: int) -> None:
        """Read while the device computes on."""
        if slot not in self._reads:
            # from the caller's heap: each thread's heap keeps what it once held
            room = torch.empty if self._copies is None else pinned
            tokens = room(self._shapes[slot], dtype=self._dtype)
            self._reads[slot] = self._thread.submit(self._read, slot, tokens)

    def get(self, slot: int) -> DataTokens:
        """On the device again."""
        self.soon(slot)
        read = self._reads.pop(slot)
        wait([read])
        # what could not be written before says more than what was then read in its place
        while self._writes and self._writes[0].done():
            self._done(self._writes.popleft())
        home = self._done(read)
        if self._copies is None:
            return home
        return arrived(to_device(home, self._device, copies=self._copies), self._copies)

    def close(self) -> None:
        """The file is gone when this returns."""
        self._thread.shutdown(wait=True, cancel_futures=True)
        self._release()

    def _on_host(self, tokens: DataTokens) -> tuple[DataTokens, torch.cuda.Event | None]:
        """The tokens in the host's memory, and what has to happen before they are there."""
        if self._copies is None:
            return tokens.detach().contiguous(), None
        home = pinned(tokens.shape, dtype=tokens.dtype)
        to_host(tokens, home, copies=self._copies)
        return home, self._copies.record_event()

    def _write(self, slot: int, tokens: DataTokens, ready: torch.cuda.Event | None) -> None:
        if ready is not None:
            ready.synchronize()
        left, place = bytes_of(tokens), slot * self._slot_bytes
        while left:
            written = os.pwrite(self._file, left, place)
            left, place = left[written:], place + written

    def _read(self, slot: int, tokens: DataTokens) -> DataTokens:
        left, place = bytes_of(tokens), slot * self._slot_bytes
        while left:
            read = os.preadv(self._file, [left], place)
            if read == 0:
                raise OSError(f"slot {slot} was not written")
            left, place = left[read:], place + read
        return tokens

    def _done(self, future: Future[Any]) -> Any:
        try:
            return future.result()
        except OSError as error:
            raise self._clear(error) from error

    def _clear(self, error: OSError) -> OSError:
        # of its kind: a folder that is not there is the user's mistake, a full disk is not
        return type(error)(
            f"data tokens cannot wait in {self._folder}: {error.strerror or error}; free some "
            "space there, or choose another bounded.folder or bounded.offload",
        )


def bytes_of(tokens: Tensor) -> memoryview:
    """The tensor's own memory."""
    return tokens.view(torch.uint8).numpy().data.cast("B")
