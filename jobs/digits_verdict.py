"""What runs of several seeds say: better than softmax, worse, or not distinguishable.

An operator differs from softmax in the same body when the mean difference of their accuracies,
seed by seed, is larger than both

    2 sd / sqrt(seeds)          twice its standard error; sd: of the differences
    sqrt(p (1 - p) / digits)    the error of a test with so few digits; p: accuracy of softmax

The second one keeps three seeds that happen to agree from saying more than the test can.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Literal

REFERENCE = "softmax"
Verdict = Literal["reference", "better", "not distinguishable", "worse"]


@dataclass(frozen=True, kw_only=True)
class Score:
    """Accuracies of one model over its seeds, and how they compare with softmax."""

    body: str
    operator: str
    learning_rate: float
    accuracies: tuple[float, ...]
    """A seed each, always in the same order."""
    difference: float
    """From softmax, mean over the seeds."""
    needed: float
    """Differences up to it are not distinguishable; 0 for softmax itself."""

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return fmean(self.accuracies)

    @property
    def spread(self) -> float:
        """Standard deviation over the seeds; 0 with one."""
        return spread(self.accuracies)

    @property
    def verdict(self) -> Verdict:
        """Better or worse where the difference is larger than needed."""
        if self.operator == REFERENCE:
            return "reference"
        if abs(self.difference) <= self.needed:
            return "not distinguishable"
        return "better" if self.difference > 0 else "worse"


def spread(values: Sequence[float]) -> float:
    """Standard deviation of a sample; 0 with one value."""
    return stdev(values) if len(values) > 1 else 0.0


def needed(differences: Sequence[float], *, reference: float, num_digits: int) -> float:
    """How large the mean difference must be to count; `reference` is the accuracy of softmax."""
    standard_error = spread(differences) / math.sqrt(len(differences))
    return max(2 * standard_error, math.sqrt(reference * (1 - reference) / num_digits))


def score(
    body: str,
    operator: str,
    *,
    learning_rate: float,
    accuracies: Sequence[float],
    reference: Sequence[float],
    num_digits: int,
) -> Score:
    """Compare a model with softmax in the same body, seed by seed."""
    differences = [one - other for one, other in zip(accuracies, reference, strict=True)]
    return Score(
        body=body,
        operator=operator,
        learning_rate=learning_rate,
        accuracies=tuple(accuracies),
        difference=fmean(differences),
        needed=needed(differences, reference=fmean(reference), num_digits=num_digits),
    )


def sentence(body: str, scores: Sequence[Score]) -> str:
    """What is better than softmax in a body, and what is not, best first."""
    parts = []
    for verdict in ("better", "not distinguishable", "worse"):
        found = [each for each in scores if each.body == body and each.verdict == verdict]
        found.sort(key=lambda each: -each.difference)
        names = ", ".join(f"{each.operator} ({each.difference:+.1%})" for each in found)
        than = " than softmax" if verdict == "better" else ""
        parts.append(f"{verdict}{than}: {names or 'none'}")
    return f"{body}: {'; '.join(parts)}"
