"""Which validation was the best so far, and whether it is time to stop: no tensors, no workers."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from fit_model.model import ModelConfig

HIGHER = ("accuracy", "balanced_accuracy", "auroc", "r2")
"""Figures that grow as a model gets better, by the end of their names; all others fall."""


@dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """How good the model is on images that it does not learn from, every so often."""

    split: str = "validation"
    every_steps: int = 500
    """And after the last step."""
    images: int | None = None
    """A part of the split, the same every time, drawn by `seed`; None for all of it."""
    seed: int = 0
    figure: str = "loss"
    """Which figure of `farreach evaluate` decides which model is the best: loss, accuracy, ..."""
    min_improvement: float = 0.0
    """How much better than the best so far counts as better."""
    patience: int | None = None
    """Training ends after so many validations in a row without improvement; None for never."""

    def __post_init__(self) -> None:
        for name in ("every_steps", "images", "patience"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"validation.{name} {value} must be at least 1")
        if not 0.0 <= self.min_improvement < math.inf:
            raise ValueError(
                f"validation.min_improvement {self.min_improvement} must be finite, and 0 or more"
            )
        if self.seed < 0:
            raise ValueError(f"validation.seed {self.seed} must not be negative")

    @property
    def measured(self) -> str:
        """Which images, in words: figures of others are not compared."""
        part = "all" if self.images is None else f"{self.images} drawn by seed {self.seed}"
        return f"{self.split}: {part}"


def goal_of(figure: str) -> str:
    """Whether a better model has the "higher" or the "lower" figure."""
    return "higher" if figure.rpartition("/")[2] in HIGHER else "lower"


def known_figures(model: ModelConfig) -> tuple[str, ...]:
    """What validation can decide by, with this model."""
    face: Any
    head: Any
    face, head = model.face, model.head
    if head.kind == "classify":
        return ("loss", "accuracy", "balanced_accuracy", "auroc")
    if head.kind == "regress":
        errors = ("mae", "rmse", "r2")
        return ("loss", *(f"{target}/{error}" for target in head.targets for error in errors))
    return ("loss", "denoising_loss" if face.kind == "diffusion" else "bits_per_subpixel")


@dataclass(frozen=True, kw_only=True)
class Standing:
    """The best validation so far; it travels in checkpoints as JSON."""

    figure: str
    goal: str
    measured: str
    """On which images."""
    best: float | None = None
    best_step: int = 0
    since: int = 0
    """Validations after the best one."""
    figures: Mapping[str, float] = field(default_factory=dict)
    """All figures of the best one."""
    newest: float | None = None
    """The figure of the newest validation, after `newest_step` steps; None for no number."""
    newest_step: int = 0
    kept: tuple[int, ...] = ()
    """Best steps of the newest checkpoints, whose models a restart may still ask for."""

    @classmethod
    def of(cls, config: ValidationConfig, told: Mapping[str, Any]) -> "Standing":
        """What a checkpoint told; a new one where that was nothing, or of others."""
        if (told.get("figure"), told.get("measured")) != (config.figure, config.measured):
            goal = goal_of(config.figure)
            return cls(figure=config.figure, goal=goal, measured=config.measured)
        return cls(**{**told, "kept": tuple(told["kept"])})

    def as_json(self) -> dict[str, Any]:
        """The inverse of `of`."""
        return asdict(self)

    def improves(self, value: float, *, min_improvement: float) -> bool:
        """Whether this figure is the best so far; what is no number never is."""
        if not math.isfinite(value):
            return False
        if self.best is None:
            return True
        gain = value - self.best if self.goal == "higher" else self.best - value
        return gain > min_improvement

    def after(
        self, value: float, *, step: int, figures: Mapping[str, float], min_improvement: float
    ) -> "Standing":
        """The standing after one more validation."""
        newest = value if math.isfinite(value) else None
        after = replace(self, newest=newest, newest_step=step)
        if not self.improves(value, min_improvement=min_improvement):
            return replace(after, since=self.since + 1)
        return replace(after, best=value, best_step=step, since=0, figures=dict(figures))

    def saved(self, *, keep: int) -> "Standing":
        """The standing as a checkpoint takes it, one of the `keep` newest."""
        return replace(self, kept=(*self.kept, self.best_step)[-keep:])
