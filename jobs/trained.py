"""What a training made: its model, registered if wanted, and what to type next."""

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from fit_model.model import ModelConfig
from jobs import registry
from jobs.best import Exported
from jobs.card import model_card
from jobs.exporting import MODEL, on_this_disk
from jobs.settings import to_flat_dict
from jobs.tracking import Run
from jobs.train_config import TrainConfig
from pipeline.dataset import Dataset
from pipeline.storage import Location


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """Where the training left its traces."""

    run_id: str
    model_folder: str
    """Weights and configuration, as fit_model.weights reads them."""
    version: int | None
    """In the registry; None when it was not registered."""
    last: dict[str, float]
    """Figures of the last step that this process saw."""
    measured: str
    """Which step's model it is."""


def hand_out(
    config: TrainConfig,
    model: ModelConfig,
    dataset: Dataset,
    *,
    run: Run,
    folder: str,
    steps: int,
    last: dict[str, float],
) -> TrainResult:
    """Register the model of a training that has ended: the best one where that was looked for.

    Args:
        config: of the training.
        model: what was trained.
        dataset: what it was trained on.
        run: in MLflow.
        folder: of the run.
        steps: that were made, fewer than configured where training ended early.
        last: figures of the last step.
    """
    made = Exported.last(str(Location.of(folder).child(MODEL)), figures=last)
    if config.validation is not None:
        made = Exported.best(folder) or made
    with on_this_disk(Location.of(made.folder)) as here:
        version = register(config, here, model, dataset, run, made, steps=steps)
    return TrainResult(
        run_id=run.run_id,
        model_folder=made.folder,
        version=version,
        last=last,
        measured=made.measured,
    )


def register(
    config: TrainConfig,
    folder: Path,
    model: ModelConfig,
    dataset: Dataset,
    run: Run,
    made: Exported,
    *,
    steps: int,
) -> int | None:
    """Make the trained model a version of `register_as`; its number, or None without a name."""
    if config.register_as is None:
        return None
    return registry.register(
        run.run_id,
        folder,
        config.register_as,
        pixel_dtype=dataset.format.dtype,
        alias=config.alias,
        # the run has these figures under their plain names, a point a step
        metrics={f"{made.prefix}/{name}": value for name, value in made.figures.items()},
        dataset_digest=dataset.info.digest,
        card=model_card(
            config.register_as,
            model,
            dataset,
            split=config.split,
            run_id=run.run_id,
            steps=steps,
            metrics=made.figures,
            measured=made.measured,
        ),
    )


def tell(config: TrainConfig, result: TrainResult, dataset: Dataset, console: Console) -> None:
    """What was made, and what to type next."""
    console.print(f"trained {config.name}: {result.model_folder}, MLflow run {result.run_id}")
    if config.validation is not None:
        console.print(f"the model is that of: {result.measured}")
    if result.version is None:
        address = result.model_folder
    else:
        address = f"{config.register_as}@{config.alias}"
        console.print(f"registered {config.register_as} version {result.version} as {address}")
    unseen = sorted(dataset.info.splits.keys() - {config.split}) or [config.split]
    # what trained in bounded memory may fit in no other
    bounded = to_flat_dict(config.bounded) if config.bounded else {}
    settings = [f" bounded.{name}={each}" for name, each in bounded.items() if each is not None]
    console.print(
        f"next: farreach evaluate model={address} dataset={config.dataset} split={unseen[0]}"
        + "".join(settings)
    )
