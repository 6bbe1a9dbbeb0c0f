"""Which steps of a training are taken: none that is not finite, and no spike of the loss.

    bound = max(median + spike_deviations max(1.4826 MAD, LEAST_SHARE |median|), start)

over the losses of the newest accepted steps. start is the median of the first ones: a model that
has learned everything still meets images that it gets wrong, and what is no worse than where
training began is no spike. MAD is the median distance from the median, and 1.4826 MAD the standard
deviation where values are normal. What follows a step is a pure function of what all workers agree
on, so all of them decide alike.
"""

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from fit_model import checks
from jobs.errors import MachineFault

MAD_TO_DEVIATION = 1.4826
LEAST_SHARE = 0.25
"""Of the median: a deviation counts as at least so much, for a loss that hardly moves."""


@dataclass(frozen=True, kw_only=True)
class GuardConfig:
    """Steps that are not taken, and what is done when there are many of them.

    A loss or gradient that is not finite is never stepped on.
    """

    window_steps: int = 100
    """Accepted steps that a new one is compared with."""
    least_steps: int = 30
    """Accepted steps before anything is called a spike."""
    spike_deviations: float | None = 20.0
    """Of the loss, above the median of the window; None takes every step that is finite. A large
    gradient is left to optimizer.clip_norm."""
    max_skips_in_a_row: int = 5
    """After so many, training goes back to a checkpoint and goes around these batches."""
    margin_steps: int = 10
    """So many batches before the first skipped one are gone around, too."""
    max_rollbacks: int = 3
    """After so many, training ends."""

    def __post_init__(self) -> None:
        for name in ("window_steps", "least_steps", "max_skips_in_a_row"):
            if getattr(self, name) < 1:
                raise ValueError(f"guard.{name} {getattr(self, name)} must be at least 1")
        for name in ("margin_steps", "max_rollbacks"):
            if getattr(self, name) < 0:
                raise ValueError(f"guard.{name} {getattr(self, name)} must not be negative")
        if self.least_steps > self.window_steps:
            raise ValueError(
                f"guard.least_steps {self.least_steps} is more than guard.window_steps "
                f"{self.window_steps}: no step would ever be called a spike"
            )
        if self.spike_deviations is not None:
            checks.finite(**{"guard.spike_deviations": (self.spike_deviations,)})
            if self.spike_deviations <= 0:
                raise ValueError(
                    f"guard.spike_deviations {self.spike_deviations:g} must be more than 0; null "
                    "takes every step that is finite"
                )


@dataclass(frozen=True, kw_only=True)
class Skip:
    """A step that was not taken."""

    step: int
    """Counted from 0, as steps are while they are made."""
    reason: str
    images: tuple[str, ...] = ()
    """Ids of those that stand out."""

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> "Skip":
        """A step from what `dataclasses.asdict` and JSON made of it."""
        return cls(**{**fields, "images": tuple(fields["images"])})


@dataclass(frozen=True)
class Around:
    """Steps to go around; as ranges, which a file may make as long as it likes."""

    ranges: tuple[range, ...]

    def __contains__(self, step: object) -> bool:
        return any(step in each for each in self.ranges)


class RollBack(Exception):  # noqa: N818 - no error: training goes on
    """Raised on all workers alike: go back to a checkpoint, and around these steps."""

    def __init__(self, around: range, *, text: str) -> None:
        super().__init__(text)
        self.around = around


class Diverged(MachineFault):
    """Going back has not helped; nothing is gained by trying the same again."""


class Guard:
    """Judges one step after another.

    Args:
        config: when a step is refused.
        state: what `state` gave; empty at the beginning.
    """

    def __init__(self, config: GuardConfig, *, state: Mapping[str, Any]) -> None:
        self.config = config
        self._accepted = deque(state.get("losses", ()), maxlen=config.window_steps)
        self._start: float | None = state.get("first_loss")
        self.row = [Skip.of(each) for each in state.get("row", ())]
        self.around = tuple(range(*each) for each in state.get("around", ()))
        """Steps to go around, a range a rollback."""
        self.loss = self.norm = math.nan
        """Of the last step."""
        self.reason = ""
        """Why that step was not to be taken."""

    def state(self) -> dict[str, Any]:
        """JSON-able, and bounded by the configuration."""
        return {
            "losses": list(self._accepted),
            "first_loss": self._start,
            "row": [asdict(each) for each in self.row],
            "around": [[each.start, each.stop] for each in self.around],
        }

    def goes_around(self) -> Around:
        """The steps whose batches were left behind by rollbacks."""
        return Around(self.around)

    def judge(self, *, loss: float, norm: float) -> str:
        """Why this step is not to be taken, or nothing; every worker calls it, once a step.

        Args:
            loss: of the whole step.
            norm: of the whole gradient; both the same on all workers.
        """
        self.loss, self.norm = loss, norm
        self.reason = self._against()
        if self.reason:
            return self.reason
        self._accepted.append(self.loss)
        if self._start is None and len(self._accepted) >= self.config.least_steps:
            self._start = float(np.median(self._accepted))
        self.row = []
        return ""

    def _against(self) -> str:
        for name, value in (("loss", self.loss), ("gradient", self.norm)):
            if not math.isfinite(value):
                return f"the {name} is not finite"
        window, deviations = self._accepted, self.config.spike_deviations
        if deviations is None or self._start is None:
            return ""
        bound = max(spike_bound(window, deviations=deviations), self._start)
        if self.loss <= bound:
            return ""
        return (
            f"the loss is {self.loss:.4g}, more than {bound:.4g}: a spike above the median "
            f"{float(np.median(window)):.4g} of {len(window)} steps"
        )

    def skipped(self, skip: Skip) -> None:
        """Count a step that was not taken; raises RollBack, or Diverged, when the row is full."""
        self.row.append(skip)
        if len(self.row) < self.config.max_skips_in_a_row:
            return
        told = _told(self.row)
        if len(self.around) >= self.config.max_rollbacks:
            raise Diverged(
                f"{told}, and going back to a checkpoint {len(self.around)} times has not helped: "
                "look at the run's artifacts offenders/, lower optimizer.lr, or leave these images "
                "out"
            )
        first = max(0, self.row[0].step - self.config.margin_steps)
        raise RollBack(range(first, skip.step + 1), text=told)


def spike_bound(values: Any, *, deviations: float) -> float:
    """The largest value that is no spike among these."""
    median = float(np.median(values))
    spread = MAD_TO_DEVIATION * float(np.median(np.abs(np.asarray(values) - median)))
    return median + deviations * max(spread, LEAST_SHARE * abs(median))


def _told(row: list[Skip]) -> str:
    images = list(dict.fromkeys(image for skip in row for image in skip.images))
    named = f" (images {', '.join(map(repr, images[:6]))})" if images else ""
    return (
        f"steps {row[0].step + 1} to {row[-1].step + 1} were not taken, for {row[-1].reason}{named}"
    )
