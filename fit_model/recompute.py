"""How a layer is called: plainly, or so that its activations are computed again for gradients.

Recomputing keeps only a layer's inputs until the backward pass and costs one more forward pass.
Source: Chen et al. 2016, arXiv:1604.06174.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Run = Callable[..., Tensor]


def plainly(layer: Callable[..., Tensor], *inputs: Tensor | None) -> Tensor:
    """Call the layer; autograd keeps what it needs."""
    return layer(*inputs)


def recomputed(layer: Callable[..., Tensor], *inputs: Tensor | None) -> Tensor:
    """Call the layer and keep only its inputs; dropout draws the same numbers both times."""
    if not torch.is_grad_enabled():
        return layer(*inputs)
    return checkpoint(layer, *inputs, use_reentrant=False)


CHECKPOINTING: dict[str, Run] = {"none": plainly, "layer": recomputed}
