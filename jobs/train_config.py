"""What a training is told: the settings of `farreach train`, checked against each other."""

from dataclasses import dataclass, field

from fit_model.augment.config import AugmentConfig
from fit_model.autoregressive import AutoregressiveConfig
from fit_model.bounded.config import BoundedConfig
from fit_model.denoiser import DiffusionConfig
from fit_model.encoder import EncoderConfig
from fit_model.parallel.config import ParallelConfig
from fit_model.vix import VixConfig
from jobs import registry
from jobs.assignment import RecordConfig
from jobs.batches import BatchConfig, require_images
from jobs.engine import EngineConfig, OptimizerConfig, require_boundable
from jobs.guard import GuardConfig
from jobs.profiling import ProfileConfig, require_profile
from jobs.resuming import ResumeConfig
from jobs.sharing import require_shareable
from jobs.standing import ValidationConfig
from jobs.targets import (
    ClassifyTarget,
    GenerateTarget,
    RegressTarget,
    require_labels_to_withhold,
)
from jobs.workers import WorkersConfig
from pipeline.ranges import ReadingConfig


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training, from its first step to its registered model."""

    name: str
    """Of the run; its checkpoints and its model lie in storage_path/name."""
    dataset: str
    total_steps: int
    model: EncoderConfig | DiffusionConfig | AutoregressiveConfig | VixConfig
    target: ClassifyTarget | RegressTarget | GenerateTarget
    storage_path: str = "runs"
    split: str = "train"
    experiment: str = "farreach"
    register_as: str | None = None
    """Name in the registry; None only keeps the model in the run's folder."""
    alias: str = "challenger"
    batch: BatchConfig = field(default_factory=BatchConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """What chance changes about the images; nothing unless it is set."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    bounded: BoundedConfig | None = None
    """Groups go through the model a chunk at a time, in bounded memory; None for all at once."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    memory_limit_gb: float | None = None
    """Of a worker's device, of a CPU worker all its memory. Where a step does not fit, `bounded` is
    chosen before workers start, or the training refused; see `farreach plan`."""
    workers: WorkersConfig = field(default_factory=WorkersConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)
    """Which steps are not taken, and what is done about many of them."""
    record: RecordConfig = field(default_factory=RecordConfig)
    validation: ValidationConfig | None = None
    """Measure the model on other images while it learns, and keep the best one; None for not."""
    resume: ResumeConfig = field(default_factory=ResumeConfig)
    profile: ProfileConfig | None = None
    """Watch a few steps with torch's profiler; None for not."""
    reading: ReadingConfig = field(default_factory=ReadingConfig)

    def __post_init__(self) -> None:
        if self.total_steps < 1:
            raise ValueError(f"total_steps {self.total_steps} must be at least 1")
        for num_workers in self.workers.bounds:
            require_shareable(self.parallel, num_workers=num_workers, face=self.model)
            require_images(self.batch, num_sets=num_workers // self.parallel.groups)
        require_profile(
            self.profile,
            total_steps=self.total_steps,
            num_workers=self.workers.min_workers,
            device=self.workers.device,
        )
        require_labels_to_withhold(self.model, self.target)
        require_boundable(self.bounded, engine=self.engine, face=self.model)
        if self.memory_limit_gb is not None and not self.memory_limit_gb > 0.0:
            raise ValueError(f"memory_limit_gb is {self.memory_limit_gb:g}: it must be more than 0")
        if not self.name or "/" in self.name or self.name.startswith("."):
            raise ValueError(f"name {self.name!r} must be a plain name: it becomes a folder")
        if self.register_as is not None:
            registry.check_name(self.register_as)
