"""How good the model is on images that it does not learn from, while it learns.

Every worker measures its share of the images with a copy of the weights (the averaged ones where an
average is kept: that is what is exported), filled in anew each time. The figures are those of
`farreach evaluate`, and training goes on as if nobody had looked.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from fit_model.bounded.engine import runner_of
from fit_model.crew import Crew
from fit_model.heads import ClassifyConfig
from fit_model.model import Model, ModelConfig
from fit_model.models import build
from fit_model.objective import PREFIX
from jobs.assignment import Assignment
from jobs.best import has_model, name_best, write_best
from jobs.engine import full_weights
from jobs.events import Event
from jobs.measuring import measures_of
from jobs.scores import score
from jobs.sharing import Seat
from jobs.standing import Standing, ValidationConfig, known_figures
from jobs.targets import HeadConfig, Labelled, read_labelled
from pipeline.dataset import Dataset
from pipeline.order import deal, epoch_permutation


@dataclass(frozen=True, kw_only=True)
class Validated:
    """What one validation found."""

    metrics: Mapping[str, float]
    events: Sequence[Event]


class Validator:
    """One worker's part of every validation; all workers call its methods at the same time.

    Memory: a whole copy of the weights in float32 on every worker, while it lasts.

    Args:
        config: what is measured when.
        task: of the training.
        dataset: where the images lie.
        seat: the worker's place among all.
        crew: who holds the images' other groups.
        device: of the worker.
        advances: hears of every part of the images that is measured.
    """

    def __init__(
        self,
        config: ValidationConfig,
        *,
        task: Assignment,
        dataset: Dataset,
        seat: Seat,
        crew: Crew,
        device: torch.device,
        advances: Callable[[], None],
    ) -> None:
        self.advances = advances
        self.config, self.task, self.dataset = config, task, dataset
        self.seat, self.device = seat, device
        self.runner = runner_of(task.bounded, crew=crew)
        self.labelled = read_labelled(dataset, task.model.head, split=config.split)
        self.numbers = chosen_images(config, dataset, num_images=len(self.labelled.records))
        self.standing = Standing.of(config, {})

    @property
    def stopped(self) -> bool:
        """Whether the figure has not improved for too long."""
        return self.config.patience is not None and self.standing.since >= self.config.patience

    def due(self, step: int) -> bool:
        """Whether the model is to be validated after so many steps."""
        return step % self.config.every_steps == 0 or step == self.task.total_steps

    def resume(self, told: Mapping[str, Any]) -> None:
        """Go on from the standing that a checkpoint told."""
        standing = Standing.of(self.config, told)
        if self._first:
            if standing.best is not None and not has_model(self.task.folder, standing.best_step):
                standing = replace(standing, best=None, best_step=0, figures={})
            name_best(self.task.folder, standing)
        # the first worker looks, for all to decide alike
        if self._told(float(standing.best is not None)) == 0.0:
            standing = replace(standing, best=None, best_step=0, figures={})
        self.standing = standing

    def saved(self) -> dict[str, Any]:
        """The standing for a checkpoint that is now written."""
        record = self.task.record
        self.standing = self.standing.saved(keep=record.keep_last + record.keep_best + 1)
        return self.standing.as_json()

    def __call__(self, engine: Any, *, step: int) -> Validated:
        """Measure the engine's model after so many steps, and keep it if it is the best."""
        started_s = time.perf_counter()
        tensors = {name.removeprefix(PREFIX): each for name, each in full_weights(engine)}
        model = model_of(self.task.model, tensors).to(self.device).eval()
        figures = self.figures(model)
        del model
        value = figures.get(self.config.figure, math.nan)
        events: list[Event] = []
        if self._first:
            value = self._keep_if_best(value, figures, tensors, step=step, events=events)
        self.standing = self._after(self._told(value), figures, step=step)
        if self.stopped and self._first:
            events.append(self._stopped_early(step))
        metrics = {f"validation/{name}": each for name, each in figures.items()}
        metrics["validation/time_s"] = time.perf_counter() - started_s
        return Validated(metrics=metrics, events=events)

    def figures(self, model: Model) -> dict[str, float]:
        """The scores over all workers' images."""
        measured = self._gathered(dict(self._measured(model)))
        values = self.labelled.values
        shown = Labelled(
            records=tuple(self.labelled.records[number] for number in self.numbers),
            values=None if values is None else values[list(self.numbers)],
            without_groups=0,
        )
        return score(model.cpu(), measured, shown).values

    def _measured(self, model: Model) -> Iterator[tuple[int, Tensor]]:
        """Places among the chosen images, and their measures."""
        for part in filter(None, self._dealt()):
            numbers = [self.numbers[place] for place in part]
            found = measures_of(
                model,
                numbers,
                dataset=self.dataset,
                labelled=self.labelled,
                runner=self.runner,
                seat=self.seat,
            )
            self.advances()
            yield from zip(part, found, strict=True)

    def _dealt(self) -> list[list[int]]:
        """The worker's share, in parts of no more images than a micro-step has on average."""
        batch = self.task.batch
        at_once = -(-batch.images_per_step // (self.seat.num_sets * batch.accumulation))
        num_parts = -(-len(self.numbers) // (self.seat.num_sets * at_once))
        sizes = [len(self.labelled.records[number].groups) for number in self.numbers]
        return deal(sizes, num_workers=self.seat.num_sets, num_parts=num_parts)[self.seat.set]

    def _gathered(self, mine: Mapping[int, Tensor]) -> np.ndarray:
        """The measures of all chosen images, each from the one worker that speaks for its set."""
        width = torch.tensor(max(map(len, mine.values()), default=0), device=self.device)
        dist.all_reduce(width, op=dist.ReduceOp.MAX)
        rows = torch.zeros(len(self.numbers), int(width), dtype=torch.float64)
        for place, measures in mine.items() if self.seat.worker == 0 else ():
            rows[place] = measures
        rows = rows.to(self.device)
        dist.all_reduce(rows)
        return rows.cpu().numpy()

    def _keep_if_best(
        self,
        value: float,
        figures: Mapping[str, float],
        tensors: Mapping[str, Tensor],
        *,
        step: int,
        events: list[Event],
    ) -> float:
        """Write the model down if it is; what cannot be written does not count as the best."""
        standing = self._after(value, figures, step=step)
        if standing.best_step != step:
            return value
        told = f"validation/{self.config.figure} {value:.6g}"
        try:
            write_best(self.task.folder, standing, tensors=tensors, config=self.task.model)
        except OSError as error:
            text = f"step {step}: the best model so far ({told}) could not be written: {error}"
            events.append(Event(kind="checkpoint failed", step=step, text=text))
            return math.nan
        facts = {"figure": self.config.figure, "value": value}
        text = f"step {step}: the best model so far, {told}"
        events.append(Event(kind="best", step=step, text=text, facts=facts))
        return value

    def _after(self, value: float, figures: Mapping[str, float], *, step: int) -> Standing:
        margin = self.config.min_improvement
        return self.standing.after(value, step=step, figures=figures, min_improvement=margin)

    def _stopped_early(self, step: int) -> Event:
        standing = self.standing
        best = "none was a number" if standing.best is None else f"the best is {standing.best:.6g}"
        return Event(
            kind="stopped early",
            step=step,
            text=f"step {step}: validation/{self.config.figure} has not improved in "
            f"{standing.since} validations ({best}, of step {standing.best_step}): training ends",
            facts={"best_step": standing.best_step},
        )

    @property
    def _first(self) -> bool:
        return dist.get_rank() == 0

    def _told(self, value: float) -> float:
        """What the first worker says."""
        told = torch.tensor(value, dtype=torch.float64, device=self.device)
        dist.broadcast(told, src=0)
        return told.item()


def model_of(config: ModelConfig, tensors: Mapping[str, Tensor]) -> Model:
    """A model of these weights, which it shares; no random number is drawn."""
    with torch.device("meta"):
        model = build(config)
    model.load_state_dict(tensors, assign=True)
    return model


def chosen_images(config: ValidationConfig, dataset: Dataset, *, num_images: int) -> list[int]:
    """Numbers of the images that are measured every time, rising."""
    digest = dataset.info.digest
    drawn = epoch_permutation(digest=digest, seed=config.seed, epoch=0, num_images=num_images)
    return sorted(drawn[: config.images].tolist())


def require_validation(
    config: ValidationConfig | None, *, model: ModelConfig, dataset: Dataset, training_split: str
) -> Labelled | None:
    """Refuse a split that is not there or is trained on, and a figure that nobody will have."""
    if config is None:
        return None
    if config.split == training_split:
        raise ValueError(
            f"validation.split {config.split!r} is what is trained on: name another split"
        )
    try:
        labelled = read_labelled(dataset, model.head, split=config.split)
    except ValueError as error:
        raise ValueError(f"validation: {error}") from error
    figures = known_figures(model)
    if config.figure not in figures:
        raise ValueError(
            f"validation.figure {config.figure!r}: this model has {', '.join(figures)}"
        )
    chosen = chosen_images(config, dataset, num_images=len(labelled.records))
    _require_figure(config.figure, model.head, labelled, chosen)
    return labelled


def _require_figure(figure: str, head: HeadConfig, labelled: Labelled, chosen: list[int]) -> None:
    """Refuse a figure that these images do not give."""
    if figure == "auroc" and isinstance(head, ClassifyConfig) and labelled.values is not None:
        missing = set(range(len(head.classes))) - set(labelled.values[chosen].tolist())
        if missing:
            raise ValueError(
                f"validation.figure 'auroc' needs images of every class, and none is of class "
                f"{head.classes[min(missing)]!r}: take more validation.images, or another figure"
            )
    if figure.endswith("/r2") and len(chosen) < 2:
        raise ValueError(f"validation.figure {figure!r} needs at least 2 images: there is 1")
