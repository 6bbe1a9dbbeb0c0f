"""What bare matrix products reach while a training step runs: the yardstick of its speed.

A machine that others use is faster now and slower then. So the products do not come before the step
but in between, about one a second, and both see the same machine.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from fit_model.layers import FeedForward

ROWS = 4096
EVERY_S = 1.0

WAITS: dict[str, Callable[[], None]] = {"cpu": lambda: None, "cuda": torch.cuda.synchronize}


class Products:
    """rows [ROWS w] times a weight [w r], as the first half of the model's feed-forwards has them.

    Args:
        model: with at least one feed-forward; its own device and precision.
    """

    def __init__(self, model: nn.Module) -> None:
        self._layers = [each for each in model.modules() if isinstance(each, FeedForward)]
        weight = self._layers[0].expand.weight
        self._rows = torch.randn(ROWS, weight.shape[1]).to(weight)
        self._weight = torch.randn(weight.shape[1], weight.shape[0]).to(weight)
        self._product = weight.new_empty(ROWS, weight.shape[0])
        self._flops = 2 * ROWS * weight.numel()
        self.wait = WAITS[weight.device.type]
        self._due_s = 0.0
        self._count, self._product_s = 0, 0.0
        self.spent_s = 0.0
        """All that the products took from the step."""

    @property
    def flops_per_s(self) -> float:
        """Of all products so far."""
        return self._count * self._flops / self._product_s if self._count else 0.0

    @contextmanager
    def between(self) -> Iterator[None]:
        """While this lasts, the model's feed-forwards begin with a product where one is due."""
        handles = [layer.register_forward_pre_hook(self._turn) for layer in self._layers]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _turn(self, layer: nn.Module, inputs: object) -> None:
        if time.perf_counter() < self._due_s:
            return
        # until then a device computes what the step asked for
        self.wait()
        began_s = time.perf_counter()
        self._multiply()  # its matrices are in no cache yet
        started_s = time.perf_counter()
        self._multiply()
        ended_s = time.perf_counter()
        self._product_s += ended_s - started_s
        self._count += 1
        self.spent_s += ended_s - began_s
        self._due_s = ended_s + EVERY_S

    def _multiply(self) -> None:
        with torch.no_grad():
            torch.mm(self._rows, self._weight, out=self._product)
        self.wait()
