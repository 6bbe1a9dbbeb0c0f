"""Which processes of a training are killed, and when: drawn once, from a seed."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal, get_args

Victim = Literal["worker", "driver", "ray"]
Moment = Literal["training", "saving", "starting"]
VICTIMS: tuple[Victim, ...] = get_args(Victim)
LAST_SHARE = 0.85
"""Of the steps: a kill behind it might find the training over."""


@dataclass(frozen=True, kw_only=True)
class PlannedKill:
    """One kill, as it is meant to come."""

    victim: Victim
    moment: Moment
    step: int
    """It comes once so many steps are in the record; when starting, right after the one before."""
    chance: float
    """In [0, 1): of several such processes which one, and how long after the moment."""


def plan_kills(
    *, kills: int, steps: int, victims: Sequence[Victim], seed: int
) -> list[PlannedKill]:
    """So many kills at different steps, in their order.

    Victims come in turn, in an order drawn by chance; every third kill waits until a checkpoint is
    being written; every fourth, but never the first, hits a training that is just starting again.
    """
    chance = Random(seed)  # noqa: S311 - for repeating, not for secrets
    places = sorted(chance.sample(range(1, max(kills, int(steps * LAST_SHARE)) + 1), kills))
    in_turn = [victims[number % len(victims)] for number in range(kills)]
    chance.shuffle(in_turn)
    return [
        PlannedKill(victim=victim, moment=_moment(number), step=step, chance=chance.random())
        for number, (step, victim) in enumerate(zip(places, in_turn, strict=True))
    ]


def _moment(number: int) -> Moment:
    if number % 4 == 3:
        return "starting"
    return "saving" if number % 3 == 1 else "training"
