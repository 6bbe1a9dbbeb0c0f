"""Dropout is for training alone, whatever mode a model was left in."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def without_dropout(module: nn.Module) -> Iterator[None]:
    """The module as it is used after training; its mode comes back in the end."""
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)
