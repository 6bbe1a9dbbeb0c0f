"""What a search draws settings from; all trials are drawn before the first one starts."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

Value = str | int | float | bool | None


@dataclass(frozen=True, kw_only=True)
class Uniform:
    """A number between two, each as likely."""

    kind: Literal["uniform"] = "uniform"
    low: float
    high: float

    def __post_init__(self) -> None:
        _require_order(self)


@dataclass(frozen=True, kw_only=True)
class LogUniform:
    """A number between two, each order of magnitude as likely."""

    kind: Literal["log_uniform"] = "log_uniform"
    low: float
    high: float

    def __post_init__(self) -> None:
        _require_order(self)
        if not self.low > 0.0:
            raise ValueError(f"low {self.low:g} of a log_uniform must be more than 0")


@dataclass(frozen=True, kw_only=True)
class Integer:
    """A whole number from `low` to `high`, both included."""

    kind: Literal["integer"] = "integer"
    low: int
    high: int

    def __post_init__(self) -> None:
        _require_order(self)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One of these."""

    kind: Literal["choice"] = "choice"
    values: tuple[Value, ...]

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError("values of a choice are empty: give at least one")


Domain = Uniform | LogUniform | Integer | Choice


def _require_order(domain: Any) -> None:
    if not domain.low < domain.high:
        raise ValueError(f"low {domain.low} of a {domain.kind} must be below high {domain.high}")


def domains() -> dict[str, Callable[[Any], Any]]:
    """What Ray Tune calls each kind; it takes a second to import."""
    from ray import tune

    return {
        "uniform": lambda each: tune.uniform(each.low, each.high),
        "log_uniform": lambda each: tune.loguniform(each.low, each.high),
        "integer": lambda each: tune.randint(each.low, each.high + 1),
        "choice": lambda each: tune.choice(list(each.values)),
    }


def draw(search: Mapping[str, Domain], *, trials: int, seed: int) -> list[dict[str, Value]]:
    """The settings of every trial, by dotted name; more trials of a seed begin with the same."""
    made = domains()
    spaces = {name: made[domain.kind](domain) for name, domain in search.items()}
    random = np.random.RandomState(seed)
    return [
        {name: _plain(space.sample(random_state=random)) for name, space in spaces.items()}
        for _ in range(trials)
    ]


def _plain(value: Any) -> Value:
    """Python's own number in the place of NumPy's."""
    return value.item() if isinstance(value, np.generic) else value


def laid_over(settings: Mapping[str, Any], values: Mapping[str, Value]) -> dict[str, Any]:
    """Nested settings with the values of dotted names in their places."""
    made = dict(settings)
    for name, value in values.items():
        first, dot, rest = name.partition(".")
        below = made.get(first)
        known = below if isinstance(below, dict) else {}
        made[first] = laid_over(known, {rest: value}) if dot else value
    return made
