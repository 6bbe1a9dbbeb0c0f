"""What every worker of a training is told."""

from dataclasses import dataclass
from typing import Any

from fit_model.augment.config import AugmentConfig
from fit_model.bounded.config import BoundedConfig
from fit_model.model import ModelConfig
from fit_model.parallel.config import ParallelConfig
from jobs.batches import BatchConfig
from jobs.engine import EngineConfig, OptimizerConfig
from jobs.profiling import ProfileConfig
from jobs.standing import ValidationConfig
from pipeline.ranges import ReadingConfig


@dataclass(frozen=True, kw_only=True)
class RecordConfig:
    """What is kept of a training, and how often."""

    checkpoint_every_steps: int = 100
    keep_checkpoints: int = 2
    log_every_steps: int = 10
    peak_tflops: float | None = None
    """Of one device at this precision; with it the share that is used (MFU) is reported."""

    def __post_init__(self) -> None:
        for name in ("checkpoint_every_steps", "keep_checkpoints", "log_every_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"record.{name} {getattr(self, name)} must be at least 1")


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
    record: RecordConfig
    validation: ValidationConfig | None
    profile: ProfileConfig | None
    reading: ReadingConfig
    threads: int
    folder: str
    """Of the run: storage_path/NAME."""
    inbox: Any
