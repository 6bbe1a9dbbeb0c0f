"""Where data tokens wait until their groups' turn comes: on the device, or in the host's memory.

A store has slots; a slot holds the tokens of one chunk, or their gradient, always of one size.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from fit_model.shapes import DataTokens


class Store(ABC):
    """Slots of data tokens."""

    @abstractmethod
    def put(self, slot: int, tokens: DataTokens) -> None:
        """Keep these, in place of what the slot held; nobody changes them any more."""

    @abstractmethod
    def get(self, slot: int) -> DataTokens:
        """What was put there last."""

    def soon(self, slot: int) -> None:
        """Told that a slot will be asked for next."""
        return

    def drop(self, slot: int) -> None:
        """Told that a slot will not be asked for before something is put there."""
        return

    def close(self) -> None:
        """Forget everything."""
        return


class OnDevice(Store):
    """Tokens stay where they are."""

    def __init__(self) -> None:
        self._held: dict[int, Tensor] = {}

    def put(self, slot: int, tokens: DataTokens) -> None:
        """A reference, no copy."""
        self._held[slot] = tokens.detach()

    def get(self, slot: int) -> DataTokens:
        """The same tensor."""
        return self._held[slot]

    def drop(self, slot: int) -> None:
        """Let the tensor go."""
        del self._held[slot]

    def close(self) -> None:
        """Let the tensors go."""
        self._held.clear()


class PinnedHost(Store):
    """Tokens of a GPU in pinned memory; they travel on a stream of their own."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._copies = torch.cuda.Stream(device)
        self._held: dict[int, Tensor] = {}
        self._coming: dict[int, Tensor] = {}

    def put(self, slot: int, tokens: DataTokens) -> None:
        """Leaves while the device computes on."""
        self._coming.pop(slot, None)
        if slot not in self._held:
            self._held[slot] = pinned(tokens.shape, dtype=tokens.dtype)
        to_host(tokens, self._held[slot], copies=self._copies)

    def soon(self, slot: int) -> None:
        """Comes while the device computes on."""
        if slot not in self._coming:
            self._coming[slot] = to_device(self._held[slot], self._device, copies=self._copies)

    def get(self, slot: int) -> DataTokens:
        """On the device; what computes next waits for the copy, nobody else does."""
        self.soon(slot)
        return arrived(self._coming.pop(slot), self._copies)

    def drop(self, slot: int) -> None:
        """Let the memory go: whoever still copies from it holds it, too."""
        del self._held[slot]

    def close(self) -> None:
        """Let the memory go, once nothing travels any more."""
        self._copies.synchronize()
        self._held.clear()
        self._coming.clear()


def pinned(shape: torch.Size, *, dtype: torch.dtype) -> DataTokens:
    """Room in the host's memory that a GPU copies to and from while it computes."""
    return torch.empty(shape, dtype=dtype, pin_memory=True)


def to_host(tokens: DataTokens, home: DataTokens, *, copies: torch.cuda.Stream) -> None:
    """Copy to pinned memory, after what computes the tokens."""
    copies.wait_stream(torch.cuda.current_stream(tokens.device))
    with torch.cuda.stream(copies):
        home.copy_(tokens.detach(), non_blocking=True)
    tokens.record_stream(copies)


def to_device(home: DataTokens, device: torch.device, *, copies: torch.cuda.Stream) -> DataTokens:
    """Copy from pinned memory."""
    with torch.cuda.stream(copies):
        return home.to(device, non_blocking=True)


def arrived(tokens: DataTokens, copies: torch.cuda.Stream) -> DataTokens:
    """These tokens, which what computes next waits for."""
    here = torch.cuda.current_stream(tokens.device)
    here.wait_stream(copies)
    tokens.record_stream(here)
    return tokens
