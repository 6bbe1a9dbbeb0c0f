"""Train FIT or ViX on a preprocessed dataset, over Ray workers, with DeepSpeed, recorded in MLflow.

Run      farreach train CONFIG.yaml [key=value ...]
Submit   farreach submit train CONFIG.yaml [key=value ...] --address http://HEAD:8265
Reads    `dataset`, a folder or s3://bucket/prefix that `farreach preprocess` wrote
Writes   `storage_path`/`name`: checkpoints; one MLflow run; with `register_as` a model version
Needs    a CPU core (or a GPU) a worker
Again    a run that was killed continues from its last checkpoint, in the same MLflow run;
         a finished one is left alone: choose another `name`

Example  farreach train train.yaml dataset=scenes name=first model.trunk.width=96
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from fit_model.flops import num_parameters
from fit_model.model import ModelConfig
from fit_model.models import build
from fit_model.optimize import require_matches
from fit_model.tokens import InputConfig
from jobs import registry
from jobs.assignment import Assignment
from jobs.augmenting import head_of_views, require_augmentable
from jobs.best import Exported
from jobs.card import model_card
from jobs.checkpoints import MODEL_FOLDER, RunRecord
from jobs.cluster import connect, require_lasting
from jobs.memory_limit import bounded_of
from jobs.model_source import source
from jobs.monitor import Monitor
from jobs.profiling import log_profile
from jobs.resuming import unfinished_record
from jobs.settings import to_dict, to_flat_dict
from jobs.sharing import Seat, require_shares
from jobs.targets import Labelled, head_config, read_labelled, require_grid
from jobs.tracking import Run, open_run
from jobs.train_config import TrainConfig
from jobs.validation import require_validation
from jobs.workers import fit, require_workers
from pipeline.dataset import Dataset, open_dataset
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


def main(config: TrainConfig) -> TrainResult:
    """Train to the last step and register the model; a killed run continues where it was saved."""
    require_lasting(storage_path=config.storage_path)
    console = Console(soft_wrap=True, markup=False, highlight=False)
    dataset = open_dataset(config.dataset)
    model = model_config(config, dataset)
    labelled = trainable_images(config, model, dataset)
    bounded = bounded_of(config, model, labelled.records)
    folder = str(Location.of(config.storage_path).child(config.name))
    before = unfinished_record(config, folder, digest=dataset.info.digest)
    console.print(
        f"{config.name}: {len(labelled.records)} images of split {config.split!r}, "
        f"{num_parameters(model):,} parameters, {config.total_steps} steps of "
        f"{config.batch.images_per_step} images on {config.workers.num_workers} workers"
    )
    if bounded is not None:
        console.print(f"{bounded.groups_a_chunk} groups at a time, offload {bounded.offload}")
    if labelled.without_groups:
        console.print(f"{labelled.without_groups} images hold only background and are left out")
    console.print("starting Ray and the workers: this takes a moment")
    with connect():
        require_workers(config.workers)
        with open_run(
            config.experiment,
            name=config.name,
            run_id=before.run_id if before else None,
            params=to_flat_dict(config),
            tags=tags_of(config, dataset),
        ) as run:
            record = RunRecord(
                run_id=run.run_id, config=to_flat_dict(config), digest=dataset.info.digest
            )
            record.write(folder)
            run.log_json(to_dict(config), "config.json")
            run.log_dataset(
                config.dataset,
                name=config.name,
                digest=dataset.info.digest,
                context="training",
                counts={"images": len(labelled.records)},
            )
            result = train(replace(config, bounded=bounded), model, dataset, run, console)
            replace(record, finished=True).write(folder)
    tell(replace(config, bounded=bounded), result, dataset, console)
    return result


def tags_of(config: TrainConfig, dataset: Dataset) -> dict[str, Any]:
    """What the run is found by."""
    tags = {"dataset_digest": dataset.info.digest, "seed": config.batch.seed}
    if config.parent_run is not None:
        tags["mlflow.parentRunId"] = config.parent_run
    return tags


def model_config(config: TrainConfig, dataset: Dataset) -> ModelConfig:
    """The user's architecture, completed by what the dataset says of its pixels and labels."""
    pixels = dataset.format
    return ModelConfig(
        face=config.model,
        input=InputConfig(
            bands=pixels.bands,
            group_side_px=dataset.info.group_side_px,
            band_mean=pixels.band_mean,
            band_std=pixels.band_std,
        ),
        head=head_of_views(
            head_config(config.target, dataset, split=config.split), config=config.augment
        ),
    )


def trainable_images(config: TrainConfig, model: ModelConfig, dataset: Dataset) -> Labelled:
    """What is trained on; refuses images that the model or the workers cannot take."""
    labelled = read_labelled(dataset, model.head, split=config.split)
    require_grid(model, labelled)
    require_shares(labelled.records, parallel=config.parallel, face=config.model)
    require_augmentable(
        config.augment,
        model=model,
        records=labelled.records,
        side_px=dataset.info.group_side_px,
        seat=Seat.of(
            0, num_workers=config.parallel.groups, parallel=config.parallel, face=config.model
        ),
    )
    with torch.device("meta"):
        require_matches(build(model), config.optimizer.groups)
    validated = require_validation(
        config.validation, model=model, dataset=dataset, training_split=config.split
    )
    if validated is not None:
        require_grid(model, validated)
        require_shares(validated.records, parallel=config.parallel, face=config.model)
    return labelled


def train(
    config: TrainConfig, model: ModelConfig, dataset: Dataset, run: Run, console: Console
) -> TrainResult:
    """Run the workers to the end, log what they measure, register what they made."""
    monitor = Monitor(
        total_steps=config.total_steps,
        logged_steps=run.last_step("loss"),
        log=run.log_metrics,
        log_damaged=lambda ids, *, step: run.log_json(
            list(ids), f"damaged_images/step-{step:07d}.json"
        ),
        console=console,
    )
    with monitor:
        checkpoint = fit(
            assignment(config, model, inbox=monitor.inbox),
            config=config.workers,
            name=config.name,
            storage_path=str(Location.of(config.storage_path)),
        )
    last = dict(monitor.last.metrics) if monitor.last else {}
    folder = Location.of(config.storage_path).child(config.name)
    log_profile(str(folder), run.log_file)
    made = Exported.last(
        str(folder.child(Path(checkpoint.path).name).child(MODEL_FOLDER)), figures=last
    )
    if config.validation is not None:
        made = Exported.best(str(folder)) or made
    with source(made.folder) as found:
        version = register(config, found.folder, model, dataset, run, made)
    return TrainResult(
        run_id=run.run_id,
        model_folder=made.folder,
        version=version,
        last=last,
        measured=made.measured,
    )


def assignment(config: TrainConfig, model: ModelConfig, *, inbox: Any) -> Assignment:
    """What every worker is told."""
    return Assignment(
        dataset=str(Location.of(config.dataset)),
        split=config.split,
        model=model,
        batch=config.batch,
        augment=config.augment,
        optimizer=config.optimizer,
        engine=config.engine,
        bounded=config.bounded,
        parallel=config.parallel,
        total_steps=config.total_steps,
        record=config.record,
        validation=config.validation,
        profile=config.profile,
        reading=config.reading,
        threads=config.workers.cpus_per_worker,
        folder=str(Location.of(config.storage_path).child(config.name)),
        inbox=inbox,
    )


def register(
    config: TrainConfig,
    folder: Path,
    model: ModelConfig,
    dataset: Dataset,
    run: Run,
    made: Exported,
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
            total_steps=config.total_steps,
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


if __name__ == "__main__":
    from jobs.runner import run_entry

    run_entry(TrainConfig, main, "train")
