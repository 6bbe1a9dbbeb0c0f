"""What an optimizer is told: which parameters decay, and how the learning rate goes."""

import difflib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from fit_model import checks

NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
UNDECAYED = ("bias", "gain", "temperature", "layer_scale", "frequencies")
"""How the names end of parameters that shift or scale, or turn queries and keys."""


@dataclass(frozen=True, kw_only=True)
class ParameterGroup:
    """Parameters that learn at a pace of their own."""

    pattern: str
    """A glob on names of parameters, as "head.*" or "*.bias"; the first one that fits decides."""
    lr_factor: float = 1.0
    """Times the learning rate of all others; 0 leaves the parameters as they are."""
    weight_decay: float | None = None
    """Of those that decay at all; None for that of all others."""

    def __post_init__(self) -> None:
        checks.finite(lr_factor=(self.lr_factor,), weight_decay=(self.weight_decay or 0.0,))
        if self.lr_factor < 0.0 or (self.weight_decay or 0.0) < 0.0:
            raise ValueError(
                f"the group {self.pattern!r} has lr_factor {self.lr_factor} and weight_decay "
                f"{self.weight_decay}; they cannot be negative"
            )


ALL = ParameterGroup(pattern="*")


def parameter_groups(
    model: nn.Module, *, weight_decay: float, groups: Sequence[ParameterGroup] = ()
) -> list[dict[str, Any]]:
    """Groups for an optimizer: what decays, and biases, scales, shifts and the like.

    Every other parameter decays, position tables and embeddings too. The rule is that of the
    official LAMB (no "bias", "beta", "gamma"). It goes by modules and names, not by shapes, which
    a sharded parameter no longer has. Each of `groups` adds two of its own, those that are empty
    left out; their "lr_factor" is for whoever sets the rate.
    """
    require_matches(model, groups)
    held: dict[tuple[int, bool], list[nn.Parameter]] = {(len(groups), True): []}
    held[len(groups), False] = []
    for name, parameter, decays in _parameters(model):
        held.setdefault((_place(name, groups), decays), []).append(parameter)
    return [
        {"params": parameters} | _settings((*groups, ALL)[place], weight_decay, decays=decays)
        for (place, decays), parameters in held.items()
        if parameters or not groups
    ]


def layer_groups(
    model: nn.Module, *, weight_decay: float, groups: Sequence[ParameterGroup] = ()
) -> list[dict[str, Any]]:
    """A group for every parameter, which LAMB takes a layer to be.

    DeepSpeed lays the parameters of a group end to end and cuts them anew, so a norm of one
    parameter can only be taken when its group holds nothing else. What does not decay is not
    adapted either.
    """
    require_matches(model, groups)
    return [
        {"params": [parameter], "adapted": decays}
        | _settings((*groups, ALL)[_place(name, groups)], weight_decay, decays=decays)
        for name, parameter, decays in _parameters(model)
    ]


def _settings(group: ParameterGroup, weight_decay: float, *, decays: bool) -> dict[str, float]:
    own = weight_decay if group.weight_decay is None else group.weight_decay
    return {"weight_decay": own if decays else 0.0, "lr_factor": group.lr_factor}


def _place(name: str, groups: Sequence[ParameterGroup]) -> int:
    """Which group a parameter is in; behind the last one are all others."""
    fits = (place for place, group in enumerate(groups) if fnmatchcase(name, group.pattern))
    return next(fits, len(groups))


def require_matches(model: nn.Module, groups: Sequence[ParameterGroup]) -> None:
    """Refuse a group that nothing is in, or that gives a weight decay to what never decays."""
    found = [(name, decays, _place(name, groups)) for name, _, decays in _parameters(model)]
    for place, group in enumerate(groups):
        mine = [decays for _, decays, other in found if other == place]
        if not mine and any(fnmatchcase(name, group.pattern) for name, *_ in found):
            raise ValueError(
                f"all parameters of the group {group.pattern!r} are in groups before it already: "
                "name the narrower pattern first"
            )
        if not mine:
            names = [name for name, *_ in found]
            close = difflib.get_close_matches(group.pattern, names, n=3, cutoff=0.0)
            raise ValueError(
                f"no parameter is named as the group {group.pattern!r} says; the closest: "
                f"{', '.join(close)}"
            )
        if group.weight_decay and not any(mine):
            raise ValueError(
                f"the group {group.pattern!r} has weight_decay {group.weight_decay}, and biases, "
                "scales and shifts, of which it is made, do not decay: leave it out"
            )


def _parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter, bool]]:
    """Each parameter once, a shared one too, with its name, and whether it decays."""
    seen: set[int] = set()
    for place, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                decays = not (isinstance(module, NORMS) or name.endswith(UNDECAYED))
                yield f"{place}.{name}".removeprefix("."), parameter, decays


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
