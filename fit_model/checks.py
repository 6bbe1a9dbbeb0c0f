"""What configurations check in common: each failure is a ValueError with the value and a remedy."""

import math
from collections.abc import Mapping, Sequence
from typing import Any


def positive(**counts: int) -> None:
    """Refuse counts and lengths below one."""
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"{name} is {value}: it must be at least 1")


def rate(**shares: float) -> None:
    """Refuse dropout rates outside [0, 1)."""
    for name, value in shares.items():
        if not 0.0 <= value < 1.0:
            raise ValueError(f"{name} is {value}: it must lie in [0, 1)")


def one_of(names: Sequence[str] | Mapping[str, Any], **chosen: str) -> None:
    """Refuse a name that is not among those known."""
    for name, value in chosen.items():
        if value not in names:
            raise ValueError(f"{name} is {value!r}: choose one of {', '.join(names)}")


def finite(**values: Sequence[float]) -> None:
    """Refuse NaN and infinity."""
    for name, numbers in values.items():
        for number in numbers:
            if not math.isfinite(number):
                raise ValueError(f"{name} holds {number}: every value must be finite")
