"""An exponential moving average of the weights, kept as a part of the optimizer's state.

    before the first step   average = w
    after each step         average <- decay average + (1 - decay) w

As a state of the optimizer, the average is cut and saved with it wherever that is done, and any
torch optimizer can have one. It is kept in float32.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

AVERAGE = "ema"


def keep_average(optimizer: torch.optim.Optimizer, *, decay: float) -> None:
    """From its next step on the optimizer keeps, as state "ema", the average of each parameter."""
    hooks = _Hooks(decay)
    optimizer.register_step_pre_hook(hooks.before)
    optimizer.register_step_post_hook(hooks.after)


@contextmanager
def averaged_weights(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Inside, the optimizer's parameters are their averages; make no step there.

    A parameter without an average, because it was never stepped, is its own.
    """
    _exchange(optimizer)
    try:
        yield
    finally:
        _exchange(optimizer)


@torch.no_grad()
def _exchange(optimizer: torch.optim.Optimizer) -> None:
    """Each parameter and its average change places, one after another: no second copy of all."""
    for parameter, state in optimizer.state.items():
        if AVERAGE in state:
            weight = parameter.clone()
            parameter.copy_(state[AVERAGE])
            state[AVERAGE].copy_(weight)


class _Hooks:
    """What is done before and after a step, on the groups that this step is about."""

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.starts: dict[Tensor, Tensor] = {}

    def before(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        """Copy what is stepped for the first time; the optimizer wants to see its state empty."""
        for parameter in _parameters(optimizer):
            known = AVERAGE in optimizer.state.get(parameter, {})
            if not known and parameter.grad is not None:
                start = parameter.detach().to(torch.float32, copy=True)
                self.starts[parameter] = start

    @torch.no_grad()
    def after(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        """Move the averages on, also of what had no gradient this time."""
        for parameter, start in self.starts.items():
            optimizer.state[parameter][AVERAGE] = start
        self.starts.clear()
        for parameter in _parameters(optimizer):
            average = optimizer.state.get(parameter, {}).get(AVERAGE)
            if average is not None:
                average.lerp_(parameter.to(torch.float32), 1.0 - self.decay)


def _parameters(optimizer: torch.optim.Optimizer) -> Iterator[Tensor]:
    for group in optimizer.param_groups:
        yield from group["params"]
