"""The registry of attention operators: a new one is a file beside this one and a line here.

All share one signature, `(query, key, value, *, may_attend=None)`, and the promise that a query
which may see nothing gives zeros. The first of them is the reference.
"""

from typing import Protocol, runtime_checkable

from jaxtyping import Bool, Float
from torch import Tensor

from fit_model.attention.softmax import causal_softmax, softmax
from fit_model.attention.softmax_reference import causal_softmax_reference, softmax_reference


@runtime_checkable
class Operator(Protocol):
    """What an attention operator is called with; shapes as in `softmax_reference`."""

    def __call__(
        self,
        query: Float[Tensor, "b h q d"],
        key: Float[Tensor, "b h k d"],
        value: Float[Tensor, "b h k e"],
        *,
        may_attend: Bool[Tensor, "#b #h #q k"] | None = None,
    ) -> Float[Tensor, "b h q e"]:
        """Mix values by how well their keys match each query."""


OPERATORS: dict[str, Operator] = {
    "softmax_reference": softmax_reference,
    "softmax": softmax,
}
CAUSAL_OPERATORS: dict[str, Operator] = {
    "softmax_reference": causal_softmax_reference,
    "softmax": causal_softmax,
}
"""Those that have a form in which no position sees a later one, under the same names."""
