"""The workers of one training: how many, on what, and Ray Train that starts and replaces them."""

import os
from dataclasses import dataclass
from typing import Literal

import ray.train
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2.api.callback import RayTrainCallback

from jobs import worker
from jobs.assignment import Assignment
from jobs.cluster import require_cpus, require_gpus


@dataclass(frozen=True, kw_only=True)
class WorkersConfig:
    """Who trains."""

    num_workers: int = 1
    device: Literal["cpu", "gpu"] = "cpu"
    cpus_per_worker: int = 1
    """Also the number of threads that torch computes with on a CPU worker."""
    max_failures: int = 0
    """How often a lost worker may be replaced, continuing from the last checkpoint."""

    def __post_init__(self) -> None:
        if self.num_workers < 1 or self.cpus_per_worker < 1:
            raise ValueError(
                f"workers.num_workers {self.num_workers} and workers.cpus_per_worker "
                f"{self.cpus_per_worker} must be at least 1"
            )


def require_workers(config: WorkersConfig) -> None:
    """Refuse a number of workers that the connected cluster cannot hold."""
    require_cpus(config.num_workers, cpus_per_worker=config.cpus_per_worker)
    if config.device == "gpu":
        require_gpus(config.num_workers)


class Trainer(TorchTrainer):
    """Ray's trainer, less a watcher that cannot work on a local Ray.

    The watcher frees the CPUs of a dead controller. It asks the dashboard, which a local Ray does
    not have, and would hold up the end of every training by 12 s; a local Ray ends with its driver
    anyway.
    """

    def _create_default_callbacks(self) -> list[RayTrainCallback]:
        callbacks = super()._create_default_callbacks()
        if os.environ.get("RAY_ADDRESS"):
            return callbacks
        return [each for each in callbacks if not isinstance(each, PlacementGroupCleanerCallback)]


def fit(assignment: Assignment, *, config: WorkersConfig) -> None:
    """Train on the workers until the last step.

    A run in the assignment's folder that was broken off continues from its newest checkpoint.
    """
    # workers read the dataset by absolute place; changing folders would only hide mistakes
    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.25")
    trainer = Trainer(
        worker.run,
        train_loop_config={"assignment": assignment},
        scaling_config=ray.train.ScalingConfig(
            num_workers=config.num_workers,
            use_gpu=config.device == "gpu",
            resources_per_worker={"CPU": config.cpus_per_worker},
        ),
        # checkpoints are the workers' own: Ray only keeps its books there
        run_config=ray.train.RunConfig(
            name="ray",
            storage_path=assignment.folder,
            failure_config=ray.train.FailureConfig(max_failures=config.max_failures),
        ),
    )
    trainer.fit()
