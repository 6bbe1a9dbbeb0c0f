"""What `farreach generate` is asked for, held against what the model can do."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from fit_model.canvas import canvas_of
from fit_model.choosing import DecodingConfig
from fit_model.model import Model
from fit_model.pixels import GenerateConfig as PixelConfig
from fit_model.pixels import require_guidable
from fit_model.samplers import SamplingConfig
from jobs.sampling import Completing, Drawing
from jobs.targets import read_labelled
from jobs.workers import WorkersConfig
from pipeline.dataset import ImageRecord, open_dataset
from pipeline.storage import Location

MOST_NAMES = 30


@dataclass(frozen=True, kw_only=True)
class CompleteConfig:
    """Images that begin as those of a dataset."""

    dataset: str
    split: str = "test"
    patches: int
    """How many of model.patch_px are kept of every image, in the order in which the model draws
    them; the rest is drawn."""

    def __post_init__(self) -> None:
        if self.patches < 1:
            raise ValueError(f"complete.patches {self.patches} must be at least 1")


@dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    """What to make, with which model, and where it goes."""

    model: str
    """NAME@alias or NAME/version in the registry, or a folder, local or s3://."""
    output: str
    """A folder, local or s3://, that does not exist yet."""
    num_images: int = 10
    """Of each class; in all for a model without classes. Of images to complete: the first so many
    of the split, or all it has."""
    classes: tuple[str, ...] = ()
    """Those to make images of; none named means all that the model knows."""
    grid_rows: int | None = None
    """Height of an image in groups; None: as most images of training."""
    grid_columns: int | None = None
    seed: int = 0
    """Images are numbered through the classes in turn: with more of them the first ones stay."""
    images_per_batch: int = 32
    """At most; of large images fewer are drawn at a time."""
    diffusion: SamplingConfig = field(default_factory=SamplingConfig)
    autoregressive: DecodingConfig = field(default_factory=DecodingConfig)
    complete: CompleteConfig | None = None
    experiment: str = "farreach"
    workers: WorkersConfig = field(default_factory=WorkersConfig)

    def __post_init__(self) -> None:
        for name in ("num_images", "images_per_batch", "grid_rows", "grid_columns"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} {value} must be at least 1")
        if self.seed < 0:
            raise ValueError(f"seed {self.seed} must not be negative")


@dataclass(frozen=True, kw_only=True)
class Order:
    """Images that the model can make."""

    request: Drawing | Completing
    head: PixelConfig
    num_images: int
    labels: tuple[str, ...]
    """The class of every image; empty for a model without classes."""
    begun: tuple[str, ...] = ()
    """Ids of the images that are completed."""

    @property
    def grid(self) -> tuple[int, int] | None:
        """Rows and columns of groups; None where each image to complete has its own."""
        if isinstance(self.request, Completing):
            return None
        return self.request.canvas.rows, self.request.canvas.columns

    @property
    def images_together(self) -> int:
        """How many of the largest may be drawn at a time."""
        side_px = self.request.model.config.input.group_side_px
        return min(
            canvas.images_together(group_side_px=side_px) for canvas in self.request.canvases
        )

    @property
    def bands(self) -> int:
        """Of every image."""
        return self.request.model.config.input.bands


def order_of(model: Model, config: GenerateConfig) -> Order:
    """The order that the settings place with this model; ValueError for what it cannot do."""
    head: Any = model.config.head
    sampling = sampling_of(model, config)
    common: dict[str, Any] = {
        "model": model,
        "seed": config.seed,
        "sampling": sampling,
        "device": config.workers.device,
        "threads": config.workers.cpus_per_worker,
    }
    if config.complete is not None:
        return _completed(config, config.complete, head, common)
    numbers = class_numbers(config.classes, head)
    count = config.num_images * max(1, len(numbers))
    targets = torch.tensor(numbers).repeat(config.num_images) if numbers else None
    canvas = canvas_of(model.config, rows=config.grid_rows, columns=config.grid_columns)
    return Order(
        request=Drawing(targets=targets, canvas=canvas, **common),
        head=head,
        num_images=count,
        labels=_names(targets, head),
    )


def sampling_of(model: Model, config: GenerateConfig) -> SamplingConfig | DecodingConfig:
    """The settings for this kind of model; refuses those of another kind, which nothing reads."""
    face: Any = model.config.face
    given: dict[str, Any] = {
        "diffusion": config.diffusion,
        "autoregressive": config.autoregressive,
    }
    if face.kind not in given:
        raise ValueError(
            f"{config.model} is of kind {face.kind!r} and makes no images: "
            f"name a model of kind {' or '.join(given)}"
        )
    for kind, settings in given.items():
        changed = [
            each.name for each in fields(settings) if getattr(settings, each.name) != each.default
        ]
        if kind != face.kind and changed:
            raise ValueError(
                f"{kind}.{changed[0]} is for {kind} models, and {config.model} is of kind "
                f"{face.kind!r}: its settings begin with {face.kind}."
            )
    sampling = given[face.kind]
    head: Any = model.config.head
    require_guidable(sampling.guidance, config=head, label_dropout=face.label_dropout)
    return sampling


def class_numbers(names: Sequence[str], head: PixelConfig) -> list[int]:
    """The numbers of the classes asked for; all where none is named."""
    if names and not head.classes:
        raise ValueError(
            f"classes {', '.join(names)}: this model was trained without labels; leave classes out"
        )
    if len(set(names)) < len(names):
        raise ValueError(f"classes {', '.join(names)}: name each once")
    for name in names:
        if name not in head.classes:
            known = ", ".join(head.classes[:MOST_NAMES])
            more = len(head.classes) - MOST_NAMES
            ending = f" and {more} more" if more > 0 else ""
            raise ValueError(f"no class {name!r}; the model's {head.target}: {known}{ending}")
    return [head.classes.index(name) for name in names or head.classes]


def _completed(
    config: GenerateConfig, complete: CompleteConfig, head: PixelConfig, common: dict[str, Any]
) -> Order:
    model = common["model"]
    if model.config.face.kind != "autoregressive":
        raise ValueError(
            f"complete: {config.model} is of kind {model.config.face.kind!r}, and only "
            "autoregressive models go on from a beginning"
        )
    for name in ("classes", "grid_rows", "grid_columns"):
        if getattr(config, name):
            raise ValueError(f"{name} come from the images to complete: leave {name} out")
    dataset = open_dataset(complete.dataset)
    labelled = read_labelled(dataset, head, split=complete.split)
    records = labelled.records[: config.num_images]
    across = model.config.input.group_side_px // model.config.face.patch_px
    for record in records:
        _require_rest(record, complete.patches, patches=len(record.groups) * across**2)
    targets = None if labelled.values is None else labelled.values[: len(records)]
    return Order(
        request=Completing(
            targets=targets,
            dataset=str(Location.of(complete.dataset)),
            records=records,
            patches=complete.patches,
            **common,
        ),
        head=head,
        num_images=len(records),
        labels=_names(targets, head),
        begun=tuple(record.image_id for record in records),
    )


def _require_rest(record: ImageRecord, kept: int, *, patches: int) -> None:
    if len(record.groups) < record.grid_rows * record.grid_columns:
        raise ValueError(
            f"image {record.image_id!r} lacks groups that were left out as background: "
            "complete images of a dataset that keeps them (background.leave_out=[])"
        )
    if kept >= patches:
        raise ValueError(
            f"complete.patches {kept} leaves nothing to draw: image {record.image_id!r} has "
            f"{patches} patches"
        )


def _names(targets: Tensor | None, head: PixelConfig) -> tuple[str, ...]:
    return () if targets is None else tuple(head.classes[number] for number in targets.tolist())
