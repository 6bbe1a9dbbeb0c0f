"""AdamW with weights in float32 beside a model that computes in another precision; no engine.

    model w (bytes of its precision), master 4, moments 8, gradient 4 bytes a parameter

The gradient of a parameter moves to its master as soon as it is there.
"""

import torch
from torch import Tensor, nn


class MasterWeights:
    """What moves the weights of a model."""

    def __init__(self, model: nn.Module, *, lr: float) -> None:
        self.pairs = [(each, masters_of(each)) for each in model.parameters()]
        masters = [master for _, master in self.pairs]
        # a parameter after the other: no temporary tensors of the size of all
        self.optimizer = torch.optim.AdamW(masters, lr=lr, foreach=False)
        for parameter, master in self.pairs:
            parameter.register_post_accumulate_grad_hook(
                lambda each, to=master: hand_over(each, to)
            )

    def step(self) -> None:
        """Move the masters, and round them to the model's weights."""
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            for parameter, master in self.pairs:
                parameter.copy_(master)

    def make_state(self) -> None:
        """The moments, as a step with gradients of zero makes them."""
        for _, master in self.pairs:
            master.grad = torch.zeros_like(master)
        self.step()

    @property
    def num_bytes(self) -> int:
        """Of weights, masters, moments and gradients."""
        return sum(16 * m.numel() + p.nbytes for p, m in self.pairs)


def masters_of(parameter: nn.Parameter) -> nn.Parameter:
    """A copy in float32."""
    return nn.Parameter(parameter.detach().to(torch.float32, copy=True))


def hand_over(parameter: Tensor, master: nn.Parameter) -> None:
    """Give a gradient to whoever moves the parameter."""
    found = parameter.grad
    parameter.grad = None
    if found is not None:
        master.grad = found.to(torch.float32)
