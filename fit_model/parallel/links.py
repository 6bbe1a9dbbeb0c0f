"""What the workers of a group set tell each other, forwards and backwards.

The objective of a training is the sum, over all workers, of a worker's losses divided by the
number of workers that share an image: all of them compute the same losses. Every operation here has
its true adjoint, so what reaches a worker's parameters is the derivative of that objective by its
own copy of them, and the sum over all workers is the gradient. Start, context and head, which
every worker computes, need no exception.

    forwards             backwards
    all get all rows     the gradients of a worker's rows, summed over all workers
    all get the sum      the sum of the gradients
    the next one's rows  the gradients of the one after
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Shaped
from torch import Tensor
from torch.autograd.function import once_differentiable

Rows = Shaped[Tensor, "r ..."]
OfAll = Shaped[Tensor, "w r ..."]


@dataclass(frozen=True, kw_only=True)
class Links:
    """The collectives of one group set; all of its workers call them in the same order."""

    group: Any
    """A process group of torch.distributed; its timeout ends a wait for a worker that is gone."""
    rank: int
    """This worker's place in the set."""
    size: int

    def all_rows(self, rows: Rows, *, of: str) -> OfAll:
        """The rows of every worker, all of one shape; `of` names them where it fails."""
        return AllRows.apply(rows, self, of)

    def sum(self, values: Rows, *, of: str) -> Rows:
        """The sum over the workers."""
        return Sum.apply(values, self, of)

    def rows_before(self, rows: Rows, *, of: str) -> Rows:
        """The rows of the worker before; zeros for the first one."""
        return RowsBefore.apply(rows, self, of)

    def gather(self, rows: Rows, *, of: str) -> OfAll:
        """all_rows without a gradient."""
        found = rows.new_empty(self.size, *rows.shape)
        with self._named(f"all-gather of {of}"):
            dist.all_gather(list(found.unbind(0)), rows.contiguous(), group=self.group)
        return found

    def reduce(self, values: Rows, *, of: str) -> Rows:
        """Sum without a gradient; added up in float32 at least."""
        floating = values.is_floating_point()
        exact = torch.promote_types(values.dtype, torch.float32) if floating else values.dtype
        total = values.to(exact, copy=True).contiguous()
        with self._named(f"all-reduce of {of}"):
            dist.all_reduce(total, group=self.group)
        return total.to(values.dtype)

    @contextmanager
    def _named(self, collective: str) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            cause = str(error).splitlines()[0]
            raise ConnectionError(
                f"group worker {self.rank} of {self.size} got no answer in the {collective}: "
                f"another one has died or hangs ({cause})"
            ) from error


class AllRows(torch.autograd.Function):
    """Links.gather and its adjoint."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, links: Links, of: str) -> Tensor:
        """[r ...] -> [w r ...]"""
        ctx.links, ctx.of = links, of
        return links.gather(rows, of=of)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Everybody's gradients of the own rows, summed."""
        total = ctx.links.reduce(gradient, of=f"the gradients of {ctx.of}")
        return total[ctx.links.rank], None, None


class Sum(torch.autograd.Function):
    """Links.reduce and its adjoint, which is the same."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, links: Links, of: str) -> Tensor:
        """The sum over the workers."""
        ctx.links, ctx.of = links, of
        return links.reduce(values, of=of)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """The sum of the gradients."""
        return ctx.links.reduce(gradient, of=f"the gradients of {ctx.of}"), None, None


class RowsBefore(torch.autograd.Function):
    """A shift along the workers, and back."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, links: Links, of: str) -> Tensor:
        """The rows of the worker before."""
        ctx.links, ctx.of = links, of
        found = links.gather(rows, of=of)
        return found[links.rank - 1].clone() if links.rank > 0 else torch.zeros_like(rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of the worker after."""
        links = ctx.links
        found = links.gather(gradient, of=f"the gradients of {ctx.of}")
        after = links.rank + 1
        return found[after] if after < links.size else torch.zeros_like(gradient), None, None
