"""Train FIT or ViX on a preprocessed dataset, over Ray workers, with DeepSpeed, recorded in MLflow.

Run      farreach train CONFIG.yaml [key=value ...]
Submit   farreach submit train CONFIG.yaml [key=value ...] --address http://HEAD:8265
Reads    `dataset`, a folder or s3://bucket/prefix that `farreach preprocess` wrote
Writes   `storage_path`/`name`: checkpoints, then the model; one MLflow run; with `register_as` a
         model version
Needs    a CPU core (or a GPU) a worker
Again    a run that was killed continues from its last checkpoint, in the same MLflow run;
         a finished one is left alone: choose another `name`; a second driver is refused while the
         first one lives

Example  farreach train train.yaml dataset=scenes name=first model.trunk.width=96
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from rich.console import Console

from fit_model.bounded.config import BoundedConfig
from fit_model.flops import num_parameters
from fit_model.model import ModelConfig
from fit_model.models import build
from fit_model.optimize import require_matches
from fit_model.tokens import InputConfig
from jobs.assignment import Assignment
from jobs.attempts import Attempts, committed_step
from jobs.augmenting import head_of_views, require_augmentable
from jobs.cluster import connect, require_lasting
from jobs.events import Event, Journal, told_restarts
from jobs.inbox import StepRecord
from jobs.leaving import STOPPED
from jobs.memory_limit import bounded_of, first_chunks
from jobs.monitor import Monitor
from jobs.offender_record import OffenderRecord
from jobs.one_run import Held, held_run
from jobs.profiling import log_profile
from jobs.resuming import unfinished_record
from jobs.run_record import RunRecord
from jobs.settings import to_dict, to_flat_dict
from jobs.sharing import Seat, require_shares
from jobs.smaller_chunks import SmallerChunks, within_lessons
from jobs.stopping import stop_signals
from jobs.targets import Labelled, head_config, read_labelled, require_grid
from jobs.trace import Trace
from jobs.train_config import TrainConfig
from jobs.trained import TrainResult, hand_out, tell
from jobs.unsent import PATIENCE_S, Spool, recorded, unanswered
from jobs.validation import require_validation
from jobs.workers import fit, require_workers
from pipeline.dataset import Dataset, open_dataset
from pipeline.storage import Location


def main(config: TrainConfig) -> TrainResult:
    """Train to the last step and register the model; a killed run continues where it was saved."""
    require_lasting(storage_path=config.storage_path)
    console = Console(soft_wrap=True, markup=False, highlight=False)
    dataset = open_dataset(config.dataset)
    model = model_config(config, dataset)
    labelled = trainable_images(config, model, dataset)
    folder = str(Location.of(config.storage_path).child(config.name))
    bounded = within_lessons(
        bounded_of(config, model, labelled.records), folder, zero_stage=config.engine.zero_stage
    )
    # a finished or changed run is refused before Ray starts; it is read again under the lease
    unfinished_record(config, folder, digest=dataset.info.digest)
    console.print(
        f"{config.name}: {len(labelled.records)} images of split {config.split!r}, "
        f"{num_parameters(model):,} parameters, {config.total_steps} steps of "
        f"{config.batch.images_per_step} images on {config.workers.told}"
    )
    if bounded is not None:
        console.print(f"{bounded.groups_a_chunk} groups at a time, offload {bounded.offload}")
    if labelled.without_groups:
        console.print(f"{labelled.without_groups} images hold only background and are left out")
    console.print("starting Ray and the workers: this takes a moment")
    with connect():
        require_workers(config.workers)
        digest, settings = dataset.info.digest, to_flat_dict(config)
        blank = RunRecord(run_id="", config=settings, digest=digest)
        tags = tags_of(config, dataset)
        with (
            held_run(config, folder, blank=blank, tell=console.print) as held,
            recorded(held.run, folder=folder, params=settings, tags=tags) as spool,
        ):
            spool.log_json(to_dict(config), "config.json")
            spool.log_dataset(
                config.dataset,
                name=config.name,
                digest=digest,
                context="training",
                counts={"images": len(labelled.records)},
            )
            result = train(
                replace(config, bounded=bounded), model, dataset, spool, console, held=held
            )
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
    config: TrainConfig,
    model: ModelConfig,
    dataset: Dataset,
    spool: Spool,
    console: Console,
    *,
    held: Held,
) -> TrainResult:
    """Run the workers to the end, log what they measure, register what they made."""
    folder = str(Location.of(config.storage_path).child(config.name))
    logged_steps = spool.last_step()
    offenders = OffenderRecord(dataset, split=config.split, run=spool, console=console)
    monitor = monitor_of(
        config, spool, console, folder=folder, logged_steps=logged_steps, notice=offenders
    )

    def ask_to_leave(signal: str) -> None:
        console.print(f"{signal}: saving after this step; once more ends at once")
        monitor.ask_to_leave(STOPPED)

    def begin() -> BoundedConfig | None:
        records = read_labelled(dataset, model.head, split=config.split).records
        return first_chunks(config, model, records)

    told = assignment(config, model, origin=held.record, inbox=None)
    with offenders, monitor, stop_signals(ask_to_leave) as stop:
        saved = committed_step(folder)
        if saved or logged_steps:
            monitor.tell(
                Event(
                    kind="continued",
                    step=saved,
                    text=f"continued; the newest checkpoint is that of step {saved}",
                )
            )
        Attempts(
            fit=partial(fit, config=config.workers),
            monitor=monitor,
            stop=stop,
            folder=folder,
            max_failures=config.workers.max_failures,
            adapt=SmallerChunks(folder=folder, begin=begin, tell=monitor.tell),
            check=held.lease.heed,
        ).run(told)
    if restarts := told_restarts(monitor.journal.events):
        console.print(restarts)
    if not spool.sent(patience_s=PATIENCE_S):
        raise unanswered(spool)
    last = dict(monitor.last.metrics) if monitor.last else {}
    with spool.at_leisure():
        log_profile(folder, spool.run.log_file)
        return hand_out(
            config, model, dataset, run=spool.run, folder=folder, steps=monitor.step, last=last
        )


def monitor_of(
    config: TrainConfig,
    spool: Spool,
    console: Console,
    *,
    folder: str,
    logged_steps: int,
    notice: Callable[[Event], None],
) -> Monitor:
    """Who watches over the workers; `notice` hears of every event."""
    return Monitor(
        total_steps=config.total_steps,
        logged_steps=logged_steps,
        record=spool,
        journal=Journal(folder),
        console=console,
        trace=trace_of(config, folder),
        hang_timeout_s=config.workers.hang_timeout_s,
        notice=notice,
    )


def trace_of(config: TrainConfig, folder: str) -> Callable[[Sequence[StepRecord]], None] | None:
    """What takes the run's steps to trace them, if that is asked for."""
    if config.record.trace == "none":
        return None
    return Trace(folder).keep


def assignment(
    config: TrainConfig, model: ModelConfig, *, origin: RunRecord, inbox: Any
) -> Assignment:
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
        guard=config.guard,
        record=config.record,
        validation=config.validation,
        origin=origin,
        profile=config.profile,
        reading=config.reading,
        threads=config.workers.cpus_per_worker,
        folder=str(Location.of(config.storage_path).child(config.name)),
        inbox=inbox,
    )


if __name__ == "__main__":
    from jobs.runner import run_entry

    run_entry(TrainConfig, main, "train")
