"""What every token mixer is: a layer over sequences that knows what it costs."""

from abc import ABC, abstractmethod

from jaxtyping import Bool, Float
from torch import Tensor, nn


class TokenMixer(nn.Module, ABC):
    """The tokens of a sequence told of each other, each in its own way."""

    @abstractmethod
    def forward(
        self, x: Float[Tensor, "b n c"], may_attend: Bool[Tensor, "#b #h #n #n"] | None = None
    ) -> Float[Tensor, "b n c"]:
        """The residual to add to the sequence that x is the norm of."""

    @abstractmethod
    def macs(self, num_tokens: int) -> int:
        """Multiply-adds of a sequence in matrix products and convolutions.

        Left out are element-wise work, sums, Fourier transforms, and what is made of weights alone,
        such as AFT's table of biases, which is made once for all sequences of a batch.
        """

    def linear_macs(self) -> int:
        """Multiply-adds that a token costs in all linear layers."""
        return sum(each.weight.numel() for each in self.modules() if isinstance(each, nn.Linear))
