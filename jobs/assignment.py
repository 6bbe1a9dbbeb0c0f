"""What every worker of a training is told."""

from dataclasses import dataclass
from typing import Any, Literal

from fit_model import checks
from fit_model.augment.config import AugmentConfig
from fit_model.bounded.config import BoundedConfig
from fit_model.model import ModelConfig
from fit_model.parallel.config import ParallelConfig
from jobs.batches import BatchConfig
from jobs.engine import EngineConfig, OptimizerConfig
from jobs.guard import GuardConfig
from jobs.profiling import ProfileConfig
from jobs.run_record import RunRecord
from jobs.standing import ValidationConfig
from pipeline.ranges import ReadingConfig

WRITING = ("background", "foreground")


@dataclass(frozen=True, kw_only=True)
class RecordConfig:
    """What is kept of a training, and how often."""

    checkpoint_every_steps: int = 100
    keep_last: int = 2
    """Newest checkpoints; older ones go."""
    keep_best: int = 0
    """Checkpoints of steps whose own validation was the best, if need be beside the newest."""
    writing: Literal["background", "foreground"] = "background"
    """In the background training goes on, and a copy of the state waits in memory meanwhile."""
    patience_s: float = 120.0
    """How long a store that does not answer is asked again before a checkpoint is given up."""
    log_every_steps: int = 10
    peak_tflops: float | None = None
    """Of one device at this precision; with it the share that is used (MFU) is reported."""
    trace: Literal["none", "images"] = "none"
    """images keeps the ids of the images that every step read, and its exact loss, in trace.jsonl:
    for comparing trainings, as verify-resume does."""

    def __post_init__(self) -> None:
        for name in ("checkpoint_every_steps", "keep_last", "log_every_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"record.{name} {getattr(self, name)} must be at least 1")
        if self.keep_best < 0:
            raise ValueError(f"record.keep_best {self.keep_best} cannot be negative")
        checks.one_of(WRITING, **{"record.writing": self.writing})
        if not 0.0 <= self.patience_s < float("inf"):
            raise ValueError(f"record.patience_s {self.patience_s} must be a time from 0 s up")


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """Everything that a worker must know; the driver fills it in from the configuration."""

    dataset: str
    split: str
    model: ModelConfig
    batch: BatchConfig
    augment: AugmentConfig
    optimizer: OptimizerConfig
    engine: EngineConfig
    bounded: BoundedConfig | None
    parallel: ParallelConfig
    total_steps: int
    guard: GuardConfig
    record: RecordConfig
    validation: ValidationConfig | None
    origin: RunRecord
    profile: ProfileConfig | None
    reading: ReadingConfig
    threads: int
    folder: str
    """Of the run: storage_path/NAME."""
    inbox: Any
