"""What two trainings left, compared: every loss, every image, the weights, the record in MLflow."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from fit_model.weights import WEIGHTS
from jobs.exporting import MODEL
from jobs.trace import TracedStep, read_trace
from pipeline.storage import Location

FIGURES = ("loss", "lr", "grad_norm")
FINISHED = "FINISHED"


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """An MLflow run."""

    status: str
    points: Mapping[str, Sequence[tuple[int, float]]]
    """Of each of FIGURES: (step, value), in the order of steps."""
    restarts: int
    """As the run tells them."""


@dataclass(frozen=True, kw_only=True)
class History:
    """All that is compared of one training."""

    steps: Sequence[TracedStep]
    weights: Mapping[str, Tensor]
    runs: Sequence[Recorded]
    """Of its name; there should be one."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One question and its answer."""

    what: str
    compared: str
    """How much of it."""
    difference: str | None = None
    """The first one; None where all is equal."""
    judged: bool = True
    """Whether a difference counts."""

    @property
    def is_different(self) -> bool:
        """Whether a difference that counts was found."""
        return self.judged and self.difference is not None


def compare(
    undisturbed: History, killed: History, *, total_steps: int, tolerance: float, restarts: int
) -> list[Comparison]:
    """All comparisons, the most telling first.

    Args:
        undisturbed: never killed.
        killed: the same training, killed and continued.
        total_steps: how many either must have.
        tolerance: relative, of losses and gradient norms; 0 asks for the same bits, also of the
            weights, which are otherwise told and not judged: where a gradient is next to nothing
            AdamW makes steps out of rounding.
        restarts: how many the killed one's record must tell at least.
    """
    return [
        _images(undisturbed.steps, killed.steps, total_steps=total_steps),
        _losses(undisturbed.steps, killed.steps, total_steps=total_steps, tolerance=tolerance),
        _weights(undisturbed.weights, killed.weights, judged=tolerance == 0.0),
        *_record(undisturbed, killed, total_steps=total_steps, tolerance=tolerance),
        _told(killed, restarts=restarts),
    ]


def equal(left: float, right: float, *, tolerance: float) -> bool:
    """The same bits, or within a share of the left one."""
    if tolerance == 0.0:
        return left.hex() == right.hex()
    return left == right or abs(left - right) <= tolerance * abs(left)


def _steps_once(name: str, steps: Sequence[int], *, total_steps: int) -> str | None:
    """What is wrong with a run of steps that should be 1 to total_steps."""
    for place, step in enumerate(steps, start=1):
        if step != place:
            return f"step {place}: {name} has step {step} in its place"
    if len(steps) != total_steps:
        return f"step {len(steps) + 1}: {name} does not have it"
    return None


def _traced(
    what: str,
    left: Sequence[TracedStep],
    right: Sequence[TracedStep],
    *,
    total_steps: int,
    compared: str,
    differ: Callable[[TracedStep, TracedStep], str | None],
) -> Comparison:
    """Two traces step by step."""
    difference = None
    for name, steps in (("the undisturbed training", left), ("the killed one", right)):
        difference = difference or _steps_once(
            name, [each.step for each in steps], total_steps=total_steps
        )
    for one, other in zip(left, right, strict=False):
        if difference is None and (found := differ(one, other)):
            difference = f"step {one.step}: {found}"
    return Comparison(what=what, compared=compared, difference=difference)


def _images(
    left: Sequence[TracedStep], right: Sequence[TracedStep], *, total_steps: int
) -> Comparison:
    def differ(one: TracedStep, other: TracedStep) -> str | None:
        if one.images == other.images:
            return None
        extra = sorted(set(one.images) ^ set(other.images))
        which = f"of one alone: {', '.join(extra[:3])}" if extra else "the same ids, not as often"
        return f"{len(one.images)} and {len(other.images)} images, {which}"

    compared = f"{sum(len(each.images) for each in left)} in {total_steps} steps"
    return _traced(
        "image ids", left, right, total_steps=total_steps, compared=compared, differ=differ
    )


def _losses(
    left: Sequence[TracedStep],
    right: Sequence[TracedStep],
    *,
    total_steps: int,
    tolerance: float,
) -> Comparison:
    def differ(one: TracedStep, other: TracedStep) -> str | None:
        if equal(one.loss, other.loss, tolerance=tolerance):
            return None
        return f"loss {one.loss!r} and {other.loss!r}"

    return _traced(
        "losses",
        left,
        right,
        total_steps=total_steps,
        compared=f"{total_steps} steps, {in_words(tolerance)}",
        differ=differ,
    )


def in_words(tolerance: float) -> str:
    """How near two figures must be."""
    return "bit by bit" if tolerance == 0.0 else f"within {tolerance:g} relative"


def _weights(
    left: Mapping[str, Tensor], right: Mapping[str, Tensor], *, judged: bool
) -> Comparison:
    difference = None if left else "the undisturbed training left no model"
    for name in sorted(left.keys() | right.keys()):
        if difference is not None:
            break
        if name not in left or name not in right:
            difference = f"{name}: only one of the two has it"
        elif left[name].shape != right[name].shape:
            difference = f"{name}: {list(left[name].shape)} and {list(right[name].shape)}"
        elif not torch.equal(_bits(left[name]), _bits(right[name])):
            furthest = (left[name].double() - right[name].double()).abs().max()
            difference = f"{name}: up to {float(furthest):.3g} apart"
    numbers = sum(each.numel() for each in left.values())
    compared = f"{len(left)} tensors, {numbers:,} numbers, bit by bit"
    return Comparison(what="weights", compared=compared, difference=difference, judged=judged)


def _bits(weight: Tensor) -> Tensor:
    return weight.contiguous().view(torch.uint8) if weight.dim() else weight


def _record(
    undisturbed: History, killed: History, *, total_steps: int, tolerance: float
) -> list[Comparison]:
    counts = [len(undisturbed.runs), len(killed.runs)]
    if counts != [1, 1]:
        said = f"{counts[0]} and {counts[1]} runs, where each training is one"
        return [Comparison(what="MLflow runs", compared="one each", difference=said)]
    (left,), (right,) = undisturbed.runs, killed.runs
    states = [left.status, right.status]
    said = f"{states[0]} and {states[1]}"
    return [
        Comparison(
            what="MLflow runs",
            compared="one each, finished",
            difference=None if states == [FINISHED, FINISHED] else said,
        ),
        *(
            _figure(name, left, right, total_steps=total_steps, tolerance=tolerance)
            for name in FIGURES
        ),
    ]


def _figure(
    name: str, left: Recorded, right: Recorded, *, total_steps: int, tolerance: float
) -> Comparison:
    difference = None
    for whose, run in (("the undisturbed run", left), ("the killed one", right)):
        steps = [step for step, _ in run.points[name]]
        difference = difference or _steps_once(whose, steps, total_steps=total_steps)
    for (step, one), (_, other) in zip(left.points[name], right.points[name], strict=False):
        if difference is None and not equal(one, other, tolerance=tolerance):
            difference = f"step {step}: {one!r} and {other!r}"
    compared = f"{total_steps} steps, each once, {in_words(tolerance)}"
    return Comparison(what=f"MLflow {name}", compared=compared, difference=difference)


def _told(killed: History, *, restarts: int) -> Comparison:
    told = max((each.restarts for each in killed.runs), default=0)
    difference = None if told >= restarts else f"{told} restarts told, {restarts} made"
    return Comparison(
        what="MLflow restarts", compared=f"at least {restarts} told", difference=difference
    )


def read_history(folder: Location, *, experiment: str, name: str, store: str) -> History:
    """What the training in a folder left there and in an MLflow store."""
    model = folder.child(f"{MODEL}/{WEIGHTS}")
    return History(
        steps=read_trace(str(folder)),
        weights=safetensors.torch.load(model.read_bytes()) if model.exists() else {},
        runs=_runs(experiment, name=name, store=store),
    )


def _runs(experiment: str, *, name: str, store: str) -> list[Recorded]:
    import mlflow

    client = mlflow.MlflowClient(store)
    known = client.get_experiment_by_name(experiment)
    if known is None:
        return []
    found = client.search_runs([known.experiment_id])
    return [_recorded(client, each) for each in found if each.info.run_name == name]


def _recorded(client: Any, run: Any) -> Recorded:
    points = {}
    for figure in FIGURES:
        history = client.get_metric_history(run.info.run_id, figure)
        points[figure] = sorted((each.step, each.value) for each in history)
    return Recorded(
        status=run.info.status, points=points, restarts=int(run.data.tags.get("restarts", 0))
    )
