"""Pixels of groups where they lie, for example in a file mapped into memory."""

from collections.abc import Iterator, Sequence, Set
from copy import copy
from typing import Any

import numpy as np
import torch
from jaxtyping import Shaped
from numpy.typing import NDArray
from torch import Tensor

from fit_model.augment.symmetries import Turn, turned
from fit_model.shapes import PerGroup

Pixels = Shaped[Tensor, "g side side bands"]


class StoredPixels:
    """A list of squares that becomes a tensor a part at a time; looks like the tensor until then.

    Args:
        squares: [side side bands] each, of one shape and dtype; at least one. They may be read-only
            and their values are not looked at before `to` or `split`.
        turns: what is done to each then, where it ends up; None for nothing to any of them.
    """

    device = torch.device("cpu")

    def __init__(
        self, squares: Sequence[NDArray[Any]], *, turns: Sequence[Turn | None] | None = None
    ) -> None:
        _require_one_format({(square.dtype, square.shape) for square in squares})
        self._squares = squares
        self._turns = [None] * len(squares) if turns is None else turns
        self.shape = torch.Size((len(squares), *squares[0].shape))
        self.dtype = torch.from_numpy(np.empty(0, squares[0].dtype)).dtype

    def __len__(self) -> int:
        return len(self._squares)

    def __getitem__(self, chosen: slice | PerGroup) -> "StoredPixels":
        """These of the squares; nothing is copied."""
        if isinstance(chosen, slice):
            return self._alike(self._squares[chosen], turns=self._turns[chosen])
        numbers = chosen.tolist()
        return self._alike(
            [self._squares[number] for number in numbers],
            turns=[self._turns[number] for number in numbers],
        )

    def is_floating_point(self) -> bool:
        """As a tensor says it."""
        return self.dtype.is_floating_point

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Pixels:
        """All squares as a tensor of their own, turned where it is."""
        squares = torch.from_numpy(np.stack(self._squares)).to(device, non_blocking=non_blocking)
        return turned(squares, self._turns)

    def split(self, count: int) -> Iterator[Pixels]:
        """All squares, `count` at a time."""
        for first in range(0, len(self), count):
            yield self[first : first + count].to(self.device)

    def followed_by(self, others: Sequence["StoredPixels"]) -> "StoredPixels":
        """These squares and those of the others."""
        parts = [self, *others]
        _require_one_format({(each.dtype, each.shape[1:]) for each in parts})
        return self._alike(
            [square for each in parts for square in each._squares],
            turns=[turn for each in parts for turn in each._turns],
        )

    def turned(self, turns: Sequence[Turn]) -> "StoredPixels":
        """These squares, which nothing was to be done to, each to be turned."""
        return self._alike(self._squares, turns=turns)

    def _alike(
        self, squares: Sequence[NDArray[Any]], *, turns: Sequence[Turn | None]
    ) -> "StoredPixels":
        """Squares of the format of these, which is not checked again: there may be very many."""
        made = copy(self)
        made._squares, made._turns = squares, turns
        made.shape = torch.Size((len(squares), *self.shape[1:]))
        return made


def _require_one_format(formats: Set[tuple[Any, tuple[int, ...]]]) -> None:
    if len(formats) != 1:
        named = sorted(f"{dtype} {list(shape)}" for dtype, shape in formats)
        raise ValueError(f"squares of {len(formats)} formats, {named}: one is needed")


def joined(parts: Sequence[Tensor | StoredPixels]) -> Tensor | StoredPixels:
    """The groups of all parts; copied where they are tensors."""
    stored = [each for each in parts if isinstance(each, StoredPixels)]
    if parts and len(stored) == len(parts):
        return stored[0].followed_by(stored[1:])
    return torch.cat([each.to(parts[0].device) for each in parts])
