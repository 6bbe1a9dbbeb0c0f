"""The workers of one training: how many, on what, and Ray Train that starts them."""

import os
import tempfile
from dataclasses import dataclass
from typing import Any, Literal

import ray.train
import ray.util
from ray import PlacementGroupID
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2.api.callback import RayTrainCallback
from ray.util.placement_group import PlacementGroup

from jobs import worker
from jobs.assignment import Assignment
from jobs.cluster import require_cpus, require_gpus
from jobs.elastic import Dealing, dealable
from jobs.hangs import PATIENT
from jobs.leaving import HeedTermination


@dataclass(frozen=True, kw_only=True)
class WorkersConfig:
    """Who trains."""

    num_workers: int | tuple[int, int] = 1
    """How many; [min, max] takes what the cluster has now, and follows it."""
    device: Literal["cpu", "gpu"] = "cpu"
    cpus_per_worker: int = 1
    """Also the number of threads that torch computes with on a CPU worker."""
    max_failures: int = 3
    """Of workers or stores that are lost, in a row without a new checkpoint between them."""
    hang_timeout_s: float = 300.0
    """A worker that says nothing for so long, or that all others wait for, is killed and replaced;
    steps that take longer stretch it. Collectives themselves give up after three times that."""

    def __post_init__(self) -> None:
        if self.min_workers < 1 or self.cpus_per_worker < 1:
            raise ValueError(
                f"workers.num_workers {self.num_workers} and workers.cpus_per_worker "
                f"{self.cpus_per_worker} must be at least 1"
            )
        if self.min_workers > self.max_workers:
            raise ValueError(
                f"workers.num_workers {list(self.bounds)}: write the smaller number first"
            )
        if self.max_failures < 0:
            raise ValueError(f"workers.max_failures {self.max_failures} must not be negative")
        if not self.hang_timeout_s > 0.0:
            raise ValueError(f"workers.hang_timeout_s {self.hang_timeout_s:g} must be more than 0")

    @property
    def bounds(self) -> tuple[int, int]:
        """The fewest workers and the most."""
        if isinstance(self.num_workers, int):
            return self.num_workers, self.num_workers
        return self.num_workers

    @property
    def min_workers(self) -> int:
        """Without so many nothing is trained."""
        return self.bounds[0]

    @property
    def max_workers(self) -> int:
        """More are not taken."""
        return self.bounds[1]

    @property
    def told(self) -> str:
        """How many, in words."""
        low, high = self.bounds
        return f"{low} workers" if low == high else f"{low} to {high} workers"


def require_workers(config: WorkersConfig) -> None:
    """Refuse a number of workers that the connected cluster cannot hold."""
    require_cpus(config.min_workers, cpus_per_worker=config.cpus_per_worker)
    if config.device == "gpu":
        require_gpus(config.min_workers)


class Trainer(TorchTrainer):
    """Ray's trainer, whose workers heed SIGTERM and are as many as can be dealt; less a watcher.

    The watcher frees the CPUs of a dead controller. It asks the dashboard, which a local Ray does
    not have, and would hold up the end of every training by 12 s; a local Ray ends with its driver
    anyway.
    """

    assignment: Assignment

    def _initialize_and_run_controller(self, **settings: Any) -> Any:
        config = self.scaling_config
        if config.elasticity_enabled:
            counts = dealable(self.assignment, fewest=config.min_workers, most=config.max_workers)
            settings["scaling_policy"] = Dealing(config, counts=counts, inbox=self.assignment.inbox)
        return super()._initialize_and_run_controller(**settings)

    def _create_default_callbacks(self) -> list[RayTrainCallback]:
        callbacks = [*super()._create_default_callbacks(), HeedTermination()]
        if os.environ.get("RAY_ADDRESS"):
            return callbacks
        return [each for each in callbacks if not isinstance(each, PlacementGroupCleanerCallback)]


def free_dead_attempts() -> None:
    """Give back the CPUs of attempts whose controller was killed, on a Ray that is this process's.

    Ray holds them until its driver ends, and the next attempt would wait for them for ever.
    """
    for name, told in ray.util.placement_group_table().items():
        if told["state"] != "REMOVED":
            held = PlacementGroup(PlacementGroupID(bytes.fromhex(name)))
            ray.util.remove_placement_group(held)


def fit(assignment: Assignment, *, config: WorkersConfig) -> str:
    """One attempt to train to the last step, from the newest checkpoint in the run's folder.

    Gives why the workers left before it, or nothing; raises what broke it off, as Ray tells it.
    """
    # workers read the dataset by absolute place; changing folders would only hide mistakes
    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"
    # the end is seen at once, and a signal's handler runs: not only every two seconds
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.25")
    if not os.environ.get("RAY_ADDRESS"):
        free_dead_attempts()
    # checkpoints are the workers' own: Ray only keeps its books here, of this attempt alone
    with tempfile.TemporaryDirectory(prefix="farreach-ray-") as books:
        trainer = Trainer(
            worker.run,
            train_loop_config={"assignment": assignment},
            torch_config=TorchConfig(timeout_s=int(PATIENT * config.hang_timeout_s) + 1),
            scaling_config=ray.train.ScalingConfig(
                num_workers=config.num_workers,
                use_gpu=config.device == "gpu",
                resources_per_worker={"CPU": config.cpus_per_worker},
            ),
            run_config=ray.train.RunConfig(
                name="attempt",
                storage_path=books,
                # jobs/attempts.py decides what is tried again
                failure_config=ray.train.FailureConfig(max_failures=0, max_preemption_failures=0),
            ),
        )
        trainer.assignment = assignment
        return str(trainer.fit().return_value or "")
