"""How time and memory of an operator should grow with the length n, and how they do.

Width, heads and the operator's own settings are fixed, so that what counts is the highest power
of n in forward and backward pass of the layer as it is written here:

-   softmax: n^2 scores, of which the fused kernels keep none. Its projections are n w^2: the slope
    comes near 2 only where n is several times the width w.
-   softmax_reference: keeps the n^2 scores.
-   aft_full: n^2 biases, a block at a time; without factors (rank none) an n x n table of weights.
-   fnet: the Fourier transform's n log n.
-   mlp_mixer: its hidden width is fixed (None is half the width of a token) and not tied to n.
-   tssa, aft_simple, aft_local, aft_conv, performer, linformer, nystromformer, xca: n, for a fixed
    window, kernel, number of features, rank or landmarks, or none of those.

Memory counts what the layer keeps for the backward pass, so it is never less than n, also where a
paper counts the operator's state alone (TSSA: O(width)).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from fit_model.attention.mixers import read_operator


@dataclass(frozen=True, kw_only=True)
class Growth:
    """n^power (log n)^logs."""

    power: int
    logs: int = 0

    def __str__(self) -> str:
        n = "n" if self.power == 1 else f"n^{self.power}"
        return n + " log n" * self.logs

    def at(self, length: int) -> float:
        """In no unit: only ratios mean something."""
        return length**self.power * math.log2(max(2, length)) ** self.logs


@dataclass(frozen=True, kw_only=True)
class Law:
    """What the theory says of an operator."""

    time: Growth
    memory: Growth
    source: str


LINEAR, LOG_LINEAR = Growth(power=1), Growth(power=1, logs=1)
QUADRATIC = Growth(power=2)

LAWS = {
    "softmax_reference": Law(time=QUADRATIC, memory=QUADRATIC, source="arXiv:1706.03762, table 1"),
    "softmax": Law(time=QUADRATIC, memory=LINEAR, source="arXiv:2205.14135, theorem 1"),
    "tssa": Law(time=LINEAR, memory=LINEAR, source="arXiv:2412.17810, table 1"),
    "aft_simple": Law(time=LINEAR, memory=LINEAR, source="arXiv:2105.14103, table 1"),
    "aft_full": Law(time=QUADRATIC, memory=LINEAR, source="arXiv:2105.14103, table 1"),
    "aft_local": Law(time=LINEAR, memory=LINEAR, source="arXiv:2105.14103, table 1"),
    "aft_conv": Law(time=LINEAR, memory=LINEAR, source="arXiv:2105.14103, table 1"),
    "performer": Law(time=LINEAR, memory=LINEAR, source="arXiv:2009.14794, section 2"),
    "linformer": Law(time=LINEAR, memory=LINEAR, source="arXiv:2006.04768, table 1"),
    "nystromformer": Law(time=LINEAR, memory=LINEAR, source="arXiv:2102.03902, section 3"),
    "xca": Law(time=LINEAR, memory=LINEAR, source="arXiv:2106.09681, section 3"),
    "fnet": Law(time=LOG_LINEAR, memory=LINEAR, source="arXiv:2105.03824, section 3"),
    "mlp_mixer": Law(time=LINEAR, memory=LINEAR, source="arXiv:2105.01601, section 2"),
}


def law_of(operator: str) -> Law:
    """The law of an operator with the settings behind its @."""
    config = read_operator(operator, setting="operator")
    law = LAWS[operator.partition("@")[0]]
    is_table = operator.startswith("aft_") and getattr(config, "rank", 0) is None
    return replace(law, memory=QUADRATIC) if is_table else law


def slope(lengths: Sequence[int], values: Sequence[float]) -> float | None:
    """The power of n that fits the values best (least squares of logarithms); None below two."""
    if len(lengths) < 2:
        return None
    return float(np.polyfit(np.log(lengths), np.log(values), 1)[0])


def predicted(value: float, growth: Growth, *, measured_at: int, length: int) -> float:
    """What a cost measured at one length will be at a longer one."""
    return value * growth.at(length) / growth.at(measured_at)
