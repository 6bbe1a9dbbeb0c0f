"""Measure a trained model on images that it has not seen, and put the figures into its run.

Run      farreach evaluate CONFIG.yaml [key=value ...]
Submit   farreach submit evaluate CONFIG.yaml [key=value ...] --address http://HEAD:8265
Reads    `model`: NAME@alias or NAME/version of the registry, or a folder; `dataset`
Writes   to the MLflow run that trained the model (a new run for a folder): loss, accuracy, balanced
         accuracy, AUROC and a picture of the confusion matrix; errors and R^2 for numbers; of a
         diffusion model its loss at ten noise levels; of an autoregressive one bits a sub-pixel
Needs    a CPU core (or a GPU) a worker
Again    measures again, and writes over the figures of the same split

Example  farreach evaluate evaluate.yaml model=scenes@challenger split=test
"""

from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from fit_model import weights
from fit_model.bounded.config import BoundedConfig, require_chunks
from fit_model.pixels import GenerateConfig
from jobs import registry
from jobs.cluster import connect
from jobs.model_source import Source, is_folder, source
from jobs.predictions import measure
from jobs.scores import score
from jobs.targets import HeadConfig, Labelled, read_labelled, require_grid
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
    bounded: BoundedConfig | None = None
    """Groups go through the model a chunk at a time, as in training; None for all at once."""
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
        require_chunks(config.bounded, face=model.config.face)
        labelled = read_labelled(dataset, model.config.head, split=config.split)
        require_grid(model.config, labelled)
        with connect():
            require_workers(config.workers)
            measured = measure(
                model,
                str(Location.of(config.dataset)),
                labelled,
                images_per_batch=config.images_per_batch,
                bounded=config.bounded,
                config=config.workers,
                console=console,
            )
        scores = score(model, measured, labelled)
        named = {f"{config.split}/{name}": value for name, value in scores.values.items()}
        with run_of(found, config) as run:
            for name, draw in scores.pictures.items():
                run.log_figure(draw(), f"{config.split}/{name}.png")
            if found.registered is None:
                run.log_metrics(named, step=0)
            else:
                registry.record_metrics(found.registered, named)
            run.log_dataset(
                config.dataset,
                name=config.split,
                digest=dataset.info.digest,
                context="evaluation",
                counts={"images": len(labelled.records)},
            )
    tell(config, named, labelled, model.config.head, console)
    return named


def run_of(found: Source, config: EvaluateConfig) -> AbstractContextManager[Run]:
    """The run that trained the model, as it ended; a new one where nobody knows of it."""
    if found.registered is not None:
        return ended_run(found.registered.run_id)
    return open_run(config.experiment, name=f"evaluate {Path(config.model).name}")


def tell(
    config: EvaluateConfig,
    scores: dict[str, float],
    labelled: Labelled,
    head: HeadConfig,
    console: Console,
) -> None:
    """The scores as a table, and what to type next."""
    table = Table(title=f"{config.model} on {len(labelled.records)} images of {config.split!r}")
    table.add_column("score")
    table.add_column("value", justify="right")
    for name, value in scores.items():
        table.add_row(name, f"{value:.4f}")
    console.print(table)
    if isinstance(head, GenerateConfig):
        console.print(f"next: farreach generate {config.model} output=made")
    if not is_folder(config.model):
        console.print(f"next: farreach models promote {config.model} champion")


if __name__ == "__main__":
    from jobs.runner import run_entry

    run_entry(EvaluateConfig, main, "evaluate")
