"""What a model learns to predict: label columns as tensors, in the head's own order."""

from collections import Counter
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fit_model.autoregressive import AutoregressiveConfig
from fit_model.canvas import known_groups, most_groups
from fit_model.heads import ClassifyConfig, RegressConfig
from fit_model.model import ModelConfig
from fit_model.pixels import GenerateConfig
from fit_model.vix import VixConfig
from pipeline.dataset import Dataset, ImageRecord


@dataclass(frozen=True, kw_only=True)
class ClassifyTarget:
    """One of the classes that a label column of the dataset names."""

    kind: Literal["classify"] = "classify"
    label: str = "label"
    pool: Literal["latents", "tokens"] = "latents"


@dataclass(frozen=True, kw_only=True)
class RegressTarget:
    """The numbers of one or more label columns of the dataset."""

    kind: Literal["regress"] = "regress"
    labels: tuple[str, ...] = ("label",)
    pool: Literal["latents", "tokens"] = "latents"

    def __post_init__(self) -> None:
        if not self.labels:
            raise ValueError("target.labels is empty: name at least one label column")


@dataclass(frozen=True, kw_only=True)
class GenerateTarget:
    """The images themselves, asked for by the classes of a label column or by nothing."""

    kind: Literal["generate"] = "generate"
    label: str | None = None
    """None trains without labels."""
    pixel_range: tuple[float, float] | None = None
    """Between which two values all pixels lie; None takes all that uint8 or uint16 can hold."""


Target = ClassifyTarget | RegressTarget | GenerateTarget
HeadConfig = ClassifyConfig | RegressConfig | GenerateConfig
PIXEL_RANGES = {"uint8": (0.0, 255.0), "uint16": (0.0, 65535.0)}


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """Images that have something to see and something to learn."""

    records: tuple[ImageRecord, ...]
    values: Tensor | None
    """Class indices, int64 [images], or numbers, float64 [images, targets]; None without labels."""
    without_groups: int
    """Images that were left out because nothing but background was found in them."""


def head_config(target: Target, dataset: Dataset, *, split: str) -> HeadConfig:
    """The head for these labels: classes of the dataset, or mean and deviation over `split`."""
    if isinstance(target, GenerateTarget):
        return _generate_config(target, dataset, split=split)
    if isinstance(target, ClassifyTarget):
        _require(dataset, target.label, kind="class")
        classes = dataset.info.classes[target.label]
        return ClassifyConfig(target=target.label, classes=classes, pool=target.pool)
    for label in target.labels:
        _require(dataset, label, kind="number")
    numbers = _numbers(_seen(dataset, split), target.labels)
    deviation = numbers.std(dim=0, correction=0)
    same = (numbers == numbers[0]).all(dim=0)
    constant = [name for name, each in zip(target.labels, same, strict=True) if each]
    if constant:
        raise ValueError(f"label {constant[0]!r} is the same for every image of split {split!r}")
    return RegressConfig(
        targets=target.labels,
        target_mean=tuple(numbers.mean(dim=0).tolist()),
        target_std=tuple(deviation.tolist()),
        pool=target.pool,
    )


def read_labelled(dataset: Dataset, head: HeadConfig, *, split: str) -> Labelled:
    """The images of a split with their targets as this head counts them."""
    every = dataset.images(split=split)
    records = _seen(dataset, split)
    values = None
    if isinstance(head, GenerateConfig):
        _require_whole_groups(records, side_px=dataset.info.group_side_px)
    if isinstance(head, ClassifyConfig | GenerateConfig):
        if head.target is not None:
            _require(dataset, head.target, kind="class")
            values = torch.tensor([_class_index(record, head) for record in records])
    else:
        for label in head.targets:
            _require(dataset, label, kind="number")
        values = _numbers(records, head.targets)
    return Labelled(records=tuple(records), values=values, without_groups=len(every) - len(records))


def require_grid(model: ModelConfig, labelled: Labelled) -> None:
    """Refuse images with more groups than the model knows, or in another grid than it takes."""
    for record in labelled.records:
        if isinstance(model.face, VixConfig):
            _require_vix_grid(model.face, record)
        else:
            _require_num_groups(model, record)


def _require_vix_grid(face: VixConfig, record: ImageRecord) -> None:
    if (record.grid_rows, record.grid_columns) != (face.grid_rows, face.grid_columns):
        raise ValueError(
            f"image {record.image_id!r} has {record.grid_rows} x {record.grid_columns} groups, "
            f"and a model of kind 'vix' with grid_rows {face.grid_rows} and grid_columns "
            f"{face.grid_columns} takes no other grid: set these two, where all images have "
            "one grid, or train one of kind 'encoder', which takes any"
        )


def _require_num_groups(model: ModelConfig, record: ImageRecord) -> None:
    known, most = known_groups(model), most_groups(model)
    if known is not None and record.grid_rows * record.grid_columns != known:
        raise ValueError(
            f"image {record.image_id!r} has {record.grid_rows} x {record.grid_columns} groups, and "
            f"num_groups makes this model one for {known}: set it to what all images have, or take "
            "latent_position 'coordinate' and group_token 'none'"
        )
    if most is not None and len(record.groups) > most:
        raise ValueError(
            f"image {record.image_id!r} has {len(record.groups)} groups, and num_groups makes this "
            f"model one for at most {most}: set it to those of the largest image"
        )


def require_labels_to_withhold(face: object, target: Target) -> None:
    """Refuse an autoregressive model that withholds labels where there are none."""
    unlabelled = isinstance(target, GenerateTarget) and target.label is None
    # of a diffusion model the default is above 0, which says nothing about what was wanted
    if not isinstance(face, AutoregressiveConfig) or not unlabelled:
        return
    if face.label_dropout > 0.0:
        raise ValueError(
            f"model.label_dropout {face.label_dropout:g} withholds labels, and there are "
            "none: name a label column as target.label, or leave model.label_dropout at 0"
        )


def _generate_config(target: GenerateTarget, dataset: Dataset, *, split: str) -> GenerateConfig:
    dtype = dataset.format.dtype
    pixel_range = target.pixel_range or PIXEL_RANGES.get(dtype)
    if pixel_range is None:
        raise ValueError(
            f"pixels are {dtype}: say between which values they lie, as target.pixel_range=[0,1]"
        )
    if target.label is not None:
        _require_classes(dataset, target.label)
    grids = Counter((record.grid_rows, record.grid_columns) for record in _seen(dataset, split))
    (rows, columns), _ = grids.most_common(1)[0]
    return GenerateConfig(
        target=target.label,
        classes=() if target.label is None else dataset.info.classes[target.label],
        pixel_dtype=dtype,
        pixel_low=pixel_range[0],
        pixel_high=pixel_range[1],
        grid_rows=rows,
        grid_columns=columns,
    )


def _require_whole_groups(records: list[ImageRecord], *, side_px: int) -> None:
    for record in records:
        if record.height_px % side_px or record.width_px % side_px:
            raise ValueError(
                f"image {record.image_id!r} is {record.height_px} px high and "
                f"{record.width_px} px wide, which "
                f"groups of {side_px} px do not divide, and a model that makes images would learn "
                "the rest as picture: crop it, or preprocess with another grouping.group_side_px"
            )


def _seen(dataset: Dataset, split: str) -> list[ImageRecord]:
    records = [record for record in dataset.images(split=split) if record.groups]
    if not records:
        splits = ", ".join(sorted({str(record.split) for record in dataset.images()}))
        raise ValueError(f"split {split!r} has no images to look at; the dataset has: {splits}")
    return records


def _require(dataset: Dataset, label: str, *, kind: str) -> None:
    columns = dataset.info.label_columns
    if label not in columns:
        names = ", ".join(columns) or "none"
        raise ValueError(f"the dataset has no label {label!r}; its labels: {names}")
    if columns[label] != kind:
        remedy = "classify"
        if kind == "class":
            remedy = f"regress, or preprocess with class_labels=[{label}]"
        raise ValueError(f"label {label!r} holds a {columns[label]}: use target.kind={remedy}")


def _require_classes(dataset: Dataset, label: str) -> None:
    """Images are asked for by classes: there is no other kind of target to suggest."""
    if dataset.info.label_columns.get(label) == "number":
        raise ValueError(
            f"label {label!r} holds a number, and images are asked for by classes: "
            f"preprocess with class_labels=[{label}]"
        )
    _require(dataset, label, kind="class")


def _class_index(record: ImageRecord, head: ClassifyConfig | GenerateConfig) -> int:
    name = record.labels[str(head.target)]
    if name not in head.classes:
        raise ValueError(
            f"image {record.image_id!r} has {head.target} {name!r}, "
            f"which is none of the model's classes: {', '.join(head.classes)}"
        )
    return head.classes.index(str(name))


def _numbers(records: list[ImageRecord], labels: tuple[str, ...]) -> Tensor:
    rows = [[record.labels[label] for label in labels] for record in records]
    for record, row in zip(records, rows, strict=True):
        if None in row:
            raise ValueError(f"image {record.image_id!r} has no {labels[row.index(None)]}")
    return torch.tensor(rows, dtype=torch.float64)
