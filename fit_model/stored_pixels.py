"""Pixels of groups where they lie, for example in a file mapped into memory."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Shaped
from numpy.typing import NDArray
from torch import Tensor

from fit_model.shapes import PerGroup

Pixels = Shaped[Tensor, "g side side bands"]


class StoredPixels:
    """A list of squares that becomes a tensor a part at a time; looks like the tensor until then.

    Args:
        squares: [side side bands] each, of one shape and dtype; at least one. They may be read-only
            and are not looked at before `to` or `split`.
    """

    device = torch.device("cpu")

    def __init__(self, squares: Sequence[NDArray[Any]]) -> None:
        kinds = {(square.dtype.str, square.shape) for square in squares}
        if len(kinds) != 1:
            raise ValueError(f"squares of {len(kinds)} formats, {sorted(kinds)}: one is needed")
        self._squares = squares
        self.shape = torch.Size((len(squares), *squares[0].shape))
        self.dtype = torch.from_numpy(np.empty(0, squares[0].dtype)).dtype

    def __len__(self) -> int:
        return len(self._squares)

    def __getitem__(self, chosen: slice | PerGroup) -> "StoredPixels":
        """These of the squares; nothing is copied."""
        if isinstance(chosen, slice):
            return StoredPixels(self._squares[chosen])
        return StoredPixels([self._squares[number] for number in chosen.tolist()])

    def is_floating_point(self) -> bool:
        """As a tensor says it."""
        return self.dtype.is_floating_point

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Pixels:
        """All squares as a tensor of their own."""
        return torch.from_numpy(np.stack(self._squares)).to(device, non_blocking=non_blocking)

    def split(self, count: int) -> Iterator[Pixels]:
        """All squares, `count` at a time."""
        for first in range(0, len(self), count):
            yield self[first : first + count].to(self.device)

    def followed_by(self, others: Sequence["StoredPixels"]) -> "StoredPixels":
        """These squares and those of the others."""
        return StoredPixels([*self._squares, *(one for each in others for one in each._squares)])


def joined(parts: Sequence[Tensor | StoredPixels]) -> Tensor | StoredPixels:
    """The groups of all parts; copied where they are tensors."""
    first, *others = parts
    if isinstance(first, StoredPixels):
        return first.followed_by([each for each in others if isinstance(each, StoredPixels)])
    return torch.cat([each.to(first.device) for each in parts])
