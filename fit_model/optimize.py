"""What an optimizer is told: which parameters decay, and how the learning rate goes."""

import math
from collections.abc import Iterator
from typing import Any

from torch import nn

NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
UNDECAYED = ("bias", "gain", "temperature", "layer_scale", "frequencies")
"""How the names end of parameters that shift or scale, or turn queries and keys."""


def parameter_groups(model: nn.Module, *, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups for an optimizer: one that decays, and biases, scales, shifts and the like.

    Every other parameter decays, position tables and embeddings too. The rule is that of the
    official LAMB (no "bias", "beta", "gamma"). It goes by modules and names, not by shapes, which
    a sharded parameter no longer has.
    """
    decaying: list[nn.Parameter] = []
    kept: list[nn.Parameter] = []
    for parameter, decays in _parameters(model):
        (decaying if decays else kept).append(parameter)
    return [
        {"params": decaying, "weight_decay": weight_decay},
        {"params": kept, "weight_decay": 0.0},
    ]


def layer_groups(model: nn.Module, *, weight_decay: float) -> list[dict[str, Any]]:
    """A group for every parameter, which LAMB takes a layer to be.

    DeepSpeed lays the parameters of a group end to end and cuts them anew, so a norm of one
    parameter can only be taken when its group holds nothing else. What does not decay is not
    adapted either.
    """
    return [
        {
            "params": [parameter],
            "weight_decay": weight_decay if decays else 0.0,
            "adapted": decays,
        }
        for parameter, decays in _parameters(model)
    ]


def _parameters(model: nn.Module) -> Iterator[tuple[nn.Parameter, bool]]:
    """Each parameter once, a shared one too, and whether it decays."""
    seen: set[int] = set()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                yield parameter, not (isinstance(module, NORMS) or name.endswith(UNDECAYED))


def learning_rate_factor(
    step: int,
    *,
    warmup_steps: int,
    total_steps: int,
    end_factor: float = 0.0,
    cosine_share: float = 1.0,
) -> float:
    """The share of the peak learning rate that step number `step`, counted from 0, is made with.

        warm-up   (step + 1) / warmup_steps
        cosine    end + (1 - end) (1 + cos(pi q p)) / 2,  p = (step - warmup) / (total - warmup)

    q, the cosine_share, is how much of the cosine is gone through: the official cosine@0.7 ends at
    0.206, and 0 keeps the peak. From total_steps on the rate stays as it is at p = 1.
    Source: Loshchilov & Hutter 2017, arXiv:1608.03983, one cycle; google-research/pix2seq.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = 1.0
    if step < total_steps:
        progress = (step - warmup_steps) / (total_steps - warmup_steps)
    fallen = (1.0 + math.cos(math.pi * cosine_share * progress)) / 2.0
    return end_factor + (1.0 - end_factor) * fallen
