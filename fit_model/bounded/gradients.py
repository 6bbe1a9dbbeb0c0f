"""The gradients of a model's parameters, added up over many small backward passes."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

Gradient = Tensor | None
"""None for what nothing depends on."""


class Gradients:
    """Sums in float32 at least, whatever the parameters are kept in."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self._parameters = parameters
        self._sums: list[Gradient] = [None] * len(parameters)

    def through(
        self, outputs: Sequence[Tensor], gradients: Sequence[Gradient], inputs: Sequence[Tensor]
    ) -> Sequence[Gradient]:
        """Gradients of `inputs`, of those of `outputs`; those of the parameters are added here."""
        pairs = [
            (output, gradient)
            for output, gradient in zip(outputs, gradients, strict=True)
            if gradient is not None and output.requires_grad
        ]
        if not pairs:
            return [None] * len(inputs)
        found = torch.autograd.grad(
            [output for output, _ in pairs],
            [*inputs, *self._parameters],
            [gradient for _, gradient in pairs],
            allow_unused=True,
        )
        for place, gradient in enumerate(found[len(inputs) :]):
            if gradient is not None:
                self._add(place, gradient)
        return found[: len(inputs)]

    def take(self) -> list[Gradient]:
        """The sums in the parameters' dtypes; they are forgotten here."""
        for place, parameter in enumerate(self._parameters):
            total = self._sums[place]
            if total is not None:
                self._sums[place] = total.to(parameter.dtype)
        taken, self._sums = self._sums, []
        return taken

    def _add(self, place: int, gradient: Tensor) -> None:
        total = self._sums[place]
        if total is None:
            exact = torch.promote_types(gradient.dtype, torch.float32)
            self._sums[place] = gradient.to(exact, copy=True)
        else:
            total.add_(gradient)


def leaf(tensor: Tensor) -> Tensor:
    """The same numbers as the start of a graph of their own."""
    return tensor.detach().requires_grad_()


class Rows:
    """A row for every group, filled a chunk at a time; None as long as nothing was put.

    One tensor from the first chunk on: small ones that outlive large ones would break up the heap,
    which then grows with every chunk.
    """

    def __init__(self, num_groups: int) -> None:
        self._num_groups = num_groups
        self.all: Gradient = None

    def put(self, groups: slice, rows: Gradient) -> None:
        """Those of a chunk; all chunks have some, or none."""
        if rows is None:
            return
        if self.all is None:
            self.all = rows.new_empty(self._num_groups, *rows.shape[1:])
        self.all[groups] = rows.detach()


def plus(one: Gradient, other: Gradient) -> Gradient:
    """The gradient of what was used twice."""
    if one is None or other is None:
        return other if one is None else one
    return one + other
