"""How a layer is called: plainly, or so that its activations are computed again for gradients.

Recomputing keeps only a layer's inputs until the backward pass and costs one more forward pass.
Source: Chen et al. 2016, arXiv:1604.06174.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Run = Callable[..., Any]
"""Calls a layer that gives a tensor or several, and gives what it gives."""
POSITIONS_A_PART = 1 << 17
"""Data tokens that a recomputed layer works on at once."""


def plainly(layer: Run, *inputs: Tensor | None) -> Any:
    """Call the layer; autograd keeps what it needs."""
    return layer(*inputs)


def recomputed(layer: Run, *inputs: Tensor | None) -> Any:
    """Call the layer and keep only its inputs; dropout draws the same numbers both times."""
    if not torch.is_grad_enabled():
        return layer(*inputs)
    return checkpoint(layer, *inputs, use_reentrant=False)


def recomputed_in_parts(layer: Run, *inputs: Tensor | None) -> Any:
    """recomputed, a part of the groups at a time: what a layer needs inside is never there for all.

    For layers that treat each entry of the first axis alone.
    """
    num_groups = next(each.shape[0] for each in inputs if each is not None)
    longest = max(each.shape[1] for each in inputs if each is not None)
    groups_a_part = max(1, POSITIONS_A_PART // longest)
    if groups_a_part >= num_groups:
        return recomputed(layer, *inputs)
    parts = zip(*(_split(each, num_groups, groups_a_part) for each in inputs), strict=True)
    found = [recomputed(layer, *part) for part in parts]
    if isinstance(found[0], Tensor):
        return torch.cat(found)
    return tuple(torch.cat(each) for each in zip(*found, strict=True))


def _split(tensor: Tensor | None, num_groups: int, size: int) -> Sequence[Tensor | None]:
    """A part for every `size` groups; None, and what all groups share, is every part's."""
    if tensor is None or tensor.shape[0] != num_groups:
        return [tensor] * -(-num_groups // size)
    return tensor.split(size)


CHECKPOINTING: dict[str, Run] = {"none": plainly, "layer": recomputed}
GROUPWISE: dict[str, Run] = {"none": plainly, "layer": recomputed_in_parts}
"""The same names for layers in which groups do not see each other."""
