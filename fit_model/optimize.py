"""What an optimizer is told: which parameters decay, and how the learning rate goes."""

import math
from typing import Any

from torch import nn


def parameter_groups(model: nn.Module, *, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups for an optimizer: weights of linear layers decay, all else does not.

    All else is biases, norms, position tables and slots, as in the official code. Parameters are
    told apart by their module, not by their shape, which a sharded parameter no longer has.
    """
    decaying = {
        id(module.weight): module.weight
        for module in model.modules()
        if isinstance(module, nn.Linear)
    }
    kept = [parameter for parameter in model.parameters() if id(parameter) not in decaying]
    return [
        {"params": list(decaying.values()), "weight_decay": weight_decay},
        {"params": kept, "weight_decay": 0.0},
    ]


def learning_rate_factor(
    step: int, *, warmup_steps: int, total_steps: int, end_factor: float = 0.0
) -> float:
    """The share of the peak learning rate that step number `step`, counted from 0, is made with.

        warm-up   (step + 1) / warmup_steps
        cosine    end + (1 - end) (1 + cos(pi p)) / 2,  p = (step - warmup) / (total - warmup)

    From total_steps on it stays at end_factor.
    Source: Loshchilov & Hutter 2017, arXiv:1608.03983, one cycle.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if step >= total_steps:
        return end_factor
    progress = (step - warmup_steps) / (total_steps - warmup_steps)
    return end_factor + (1.0 - end_factor) * (1.0 + math.cos(math.pi * progress)) / 2.0
