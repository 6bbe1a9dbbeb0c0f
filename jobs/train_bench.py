"""What a training that survives costs: its checkpoints, its guard, and starting again.

Run      farreach bench train [key=value ...]
Writes   `output`/train.png    what each costs, beside what it may cost
         `output`/train.txt    the table that is printed
         `output`/train.json   every round, with the settings and the machine; written last
Takes    about 6 minutes on 2 quiet CPU cores
Needs    2 CPU cores; `output` must not exist yet
Example  farreach bench train output=train rounds=20

The demo's model trains on scenes like the demo's. Steps with and without what is measured take
turns on the same batches in the same processes, so that whatever else the machine does falls upon
both alike. A checkpoint is written while the steps of its block are made; what it costs is what its
block takes longer than the same block without.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any
from uuid import uuid4

import ray.train
from rich.console import Console

from fit_model import checks
from jobs.assignment import Assignment
from jobs.bench_results import publish
from jobs.cluster import connect
from jobs.guard import GuardConfig
from jobs.inbox import open_inbox
from jobs.run_record import RunRecord
from jobs.scenes import SceneConfig, write_scenes
from jobs.settings import load, to_dict
from jobs.train import assignment, model_config
from jobs.train_bench_report import Report, as_json, picture, show
from jobs.train_bench_steps import Spent, Turns, begin, measure
from jobs.train_config import TrainConfig
from jobs.whole_folder import require_new
from jobs.workers import Trainer, require_workers
from pipeline.config import PreprocessConfig
from pipeline.dataset import open_dataset
from pipeline.flow import preprocess
from pipeline.storage import Location

ENOUGH_STEPS = 1_000_000


@dataclass(frozen=True, kw_only=True)
class TrainBench:
    """How much is measured."""

    output: str = "train"
    workers: int = 2
    scenes: int = 256
    checkpoint_every_steps: int = 50
    rounds: int = 12
    """Blocks of steps with a checkpoint and without, written in the background; as many in the
    foreground."""
    block_steps: int = 12
    guard_pairs: int = 150
    """Steps with the guard and without."""

    def __post_init__(self) -> None:
        for name in ("workers", "scenes", "checkpoint_every_steps", "rounds", "guard_pairs"):
            checks.positive(**{name: getattr(self, name)})
        if self.block_steps < 2:
            raise ValueError(f"block_steps is {self.block_steps}: a checkpoint needs at least 2")


def main(config: TrainBench) -> None:
    """Measure, print the table and write it."""
    place = Location.of(config.output)
    require_new(place, name="output")
    report = measured(config, Console(highlight=False))
    publish(
        place,
        "train",
        show=partial(show, report),
        picture=picture(report),
        values=as_json(report, settings=to_dict(config)),
    )


def measured(config: TrainBench, console: Console) -> Report:
    """Make the dataset, start the training, start it again, measure."""
    with tempfile.TemporaryDirectory(prefix="farreach-") as folder:
        imports_s = import_seconds()
        began = time.perf_counter()
        with connect(num_cpus=config.workers):
            ray_s = time.perf_counter() - began
            console.print(f"making {config.scenes} scenes")
            training = demo_training(config, Path(folder))
            require_workers(training.workers)
            task = told(training)
            turns = Turns(
                rounds=config.rounds, block_steps=config.block_steps, pairs=config.guard_pairs
            )
            console.print("training from the start")
            first_s, _ = attempt(begin, task, turns, config)
            console.print("training from its checkpoint, with and without")
            again_s, spent = attempt(measure, task, turns, config)
    return Report(
        spent=spent,
        every_steps=config.checkpoint_every_steps,
        block_steps=config.block_steps,
        first_start_s=first_s,
        workers_again_s=again_s,
        driver_again_s=imports_s + ray_s + again_s,
        setting=f"{config.workers} workers of one thread",
    )


def demo_training(config: TrainBench, folder: Path) -> TrainConfig:
    """The demo's, on fewer scenes."""
    write_scenes(SceneConfig(training_scenes=config.scenes, heldout_scenes=1), folder / "scenes")
    places = {"sources": "scenes/images", "labels": "scenes/labels.csv", "output": "dataset"}
    cutting = load(
        PreprocessConfig,
        demo_settings("preprocess"),
        [f"{name}={folder / place}" for name, place in places.items()],
    )
    preprocess(cutting)
    training = load(TrainConfig, demo_settings("train"), ["register_as=null"])
    return replace(
        training,
        dataset=str(folder / "dataset"),
        storage_path=str(folder / "runs"),
        total_steps=ENOUGH_STEPS,
        # the same few batches come again and again: what the guard says of them is of no account
        guard=GuardConfig(max_skips_in_a_row=ENOUGH_STEPS),
        workers=replace(training.workers, num_workers=config.workers),
    )


def demo_settings(job: str) -> Path:
    """Where the demo's settings of a job lie."""
    return Path(str(files("jobs").joinpath("configs", job, "demo.yaml")))


def told(training: TrainConfig) -> Assignment:
    """What the workers are told."""
    dataset = open_dataset(training.dataset)
    origin = RunRecord(run_id="bench", config={}, digest=dataset.info.digest)
    return assignment(training, model_config(training, dataset), origin=origin, inbox=None)


def attempt(
    run: Callable[[dict[str, Any]], Spent], task: Assignment, turns: Turns, config: TrainBench
) -> tuple[float, Spent]:
    """Start the workers: seconds until their first step is done, and what the first one found."""
    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.25")
    started_s = time.time()
    trainer = Trainer(
        run,
        train_loop_config={"assignment": replace(task, inbox=open_inbox()), "turns": turns},
        scaling_config=ray.train.ScalingConfig(
            num_workers=config.workers, resources_per_worker={"CPU": 1}
        ),
        run_config=ray.train.RunConfig(
            name=f"attempt-{uuid4().hex[:8]}",
            storage_path=str(Location.of(task.folder).child("ray")),
        ),
    )
    spent: Spent = trainer.fit().return_value
    return spent.first_step_at - started_s, spent


def import_seconds() -> float:
    """What a new driver takes to read its program."""
    started_s = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import jobs.train, mlflow"], check=True)
    return time.perf_counter() - started_s
