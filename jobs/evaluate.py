"""Measure a trained model on images that it has not seen, and put the figures into its run.

Run      farreach evaluate CONFIG.yaml [key=value ...]
Submit   farreach submit evaluate CONFIG.yaml [key=value ...] --address http://HEAD:8265
Reads    `model`: NAME@alias or NAME/version of the registry, or a folder; `dataset`
Writes   to the MLflow run that trained the model (a new run for a folder): accuracy, balanced
         accuracy, AUROC and a picture of the confusion matrix; errors and R^2 for numbers
Needs    a CPU core (or a GPU) a worker
Again    measures again, and writes over the figures of the same split

Example  farreach evaluate evaluate.yaml model=scenes@challenger split=test
"""

import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from fit_model import weights
from fit_model.heads import ClassifyConfig
from fit_model.models import Model
from jobs import registry
from jobs.cluster import connect
from jobs.metrics import class_scores, number_scores
from jobs.pictures import confusion_picture, prediction_picture
from jobs.predictions import predict
from jobs.targets import Labelled, read_labelled
from jobs.tracking import Run, ended_run, open_run
from jobs.workers import WorkersConfig, require_workers
from pipeline.dataset import open_dataset
from pipeline.storage import Location


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """One evaluation."""

    model: str
    """NAME@alias or NAME/version in the registry, or a folder, local or s3://."""
    dataset: str
    split: str = "test"
    images_per_batch: int = 8
    experiment: str = "farreach"
    """Where the figures of a model from a folder go."""
    workers: WorkersConfig = field(default_factory=WorkersConfig)

    def __post_init__(self) -> None:
        if self.images_per_batch < 1:
            raise ValueError(f"images_per_batch {self.images_per_batch} must be at least 1")


def main(config: EvaluateConfig) -> dict[str, float]:
    """Predict every image of the split on Ray workers, score, record; gives the scores by name."""
    console = Console(soft_wrap=True, markup=False, highlight=False)
    dataset = open_dataset(config.dataset)
    with source(config.model) as found:
        model = weights.load(found.folder)
        labelled = read_labelled(dataset, model.config.head, split=config.split)
        with connect():
            require_workers(config.workers)
            outputs = predict(
                model,
                str(Location.of(config.dataset)),
                labelled.records,
                images_per_batch=config.images_per_batch,
                config=config.workers,
                console=console,
            )
        with run_of(found, config) as run:
            scores = score(model, outputs, labelled, split=config.split, run=run)
            if found.registered is None:
                run.log_metrics(scores, step=0)
            else:
                registry.record_metrics(found.registered, scores)
            run.log_dataset(
                config.dataset,
                name=config.split,
                digest=dataset.info.digest,
                context="evaluation",
                counts={"images": len(labelled.records)},
            )
    tell(config, scores, labelled, console)
    return scores


@dataclass(frozen=True, kw_only=True)
class Source:
    """A model on this machine's disk, and where it came from."""

    folder: Path
    registered: registry.Registered | None


@contextmanager
def source(model: str) -> Iterator[Source]:
    """The model that the user named: a local folder as it is, all else fetched for the while."""
    if is_folder(model) and "://" not in model:
        yield Source(folder=Path(model), registered=None)
        return
    with tempfile.TemporaryDirectory(prefix="farreach-model-") as draft:
        folder = Path(draft) / "model"
        if is_folder(model):
            folder.mkdir()
            for name in (weights.CONFIG, weights.WEIGHTS):
                (folder / name).write_bytes(Location.of(model).child(name).read_bytes())
            yield Source(folder=folder, registered=None)
        else:
            yield Source(folder=folder, registered=registry.pull(model, folder))


def is_folder(model: str) -> bool:
    """Whether the user named a place, and not a model of the registry."""
    return "://" in model or Path(model).is_dir()


def run_of(found: Source, config: EvaluateConfig) -> AbstractContextManager[Run]:
    """The run that trained the model, as it ended; a new one where nobody knows of it."""
    if found.registered is not None:
        return ended_run(found.registered.run_id)
    return open_run(
        config.experiment, name=f"evaluate {Path(config.model).name}", system_metrics=False
    )


def score(
    model: Model, outputs: NDArray[np.float64], labelled: Labelled, *, split: str, run: Run
) -> dict[str, float]:
    """Scores by name, with the split before them; their pictures go into the run."""
    head = model.config.head
    truth = labelled.values.numpy()
    if isinstance(head, ClassifyConfig):
        classified = class_scores(outputs, truth)
        named = classified.as_metrics()
        picture = confusion_picture(classified.confusion, head.classes)
        run.log_figure(picture, f"{split}/confusion.png")
    else:
        predicted = model.head.predictions(torch.from_numpy(outputs)).numpy()
        named = number_scores(predicted, truth, head.targets)
        for column, name in enumerate(head.targets):
            picture = prediction_picture(truth[:, column], predicted[:, column], name)
            run.log_figure(picture, f"{split}/{name}.png")
    return {f"{split}/{name}": value for name, value in named.items()}


def tell(
    config: EvaluateConfig, scores: dict[str, float], labelled: Labelled, console: Console
) -> None:
    """The scores as a table, and what to type next."""
    table = Table(title=f"{config.model} on {len(labelled.records)} images of {config.split!r}")
    table.add_column("score")
    table.add_column("value", justify="right")
    for name, value in scores.items():
        table.add_row(name, f"{value:.4f}")
    console.print(table)
    if not is_folder(config.model):
        console.print(f"next: farreach models promote {config.model} champion")


if __name__ == "__main__":
    from jobs.runner import run_entry

    run_entry(EvaluateConfig, main, "evaluate")
