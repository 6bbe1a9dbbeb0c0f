"""From what a model says of every image to the figures and pictures that are kept of it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from fit_model.diffusion import MEASURED_TIMES
from fit_model.model import Model
from jobs.metrics import class_scores, number_scores
from jobs.pictures import bits_picture, confusion_picture, noise_picture, prediction_picture
from jobs.targets import Labelled

Measures = NDArray[np.float64]
"""[images, measures], as `Model.measures` gives them."""


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What an evaluation found, by name."""

    values: dict[str, float]
    pictures: dict[str, Figure]


def score(model: Model, measured: Measures, labelled: Labelled) -> Scores:
    """The scores of a model of any kind."""
    config: Any = model.config
    kind = config.face.kind if config.head.kind == "generate" else config.head.kind
    return SCORES[kind](model, measured, labelled)


def _classes(model: Any, logits: Measures, labelled: Labelled) -> Scores:
    found = class_scores(logits, _truth(labelled))
    picture = confusion_picture(found.confusion, model.config.head.classes)
    return Scores(values=found.as_metrics(), pictures={"confusion": picture})


def _numbers(model: Any, outputs: Measures, labelled: Labelled) -> Scores:
    truth, names = _truth(labelled), model.config.head.targets
    predicted = model.head.predictions(torch.from_numpy(outputs)).numpy()
    pictures = {
        name: prediction_picture(truth[:, column], predicted[:, column], name)
        for column, name in enumerate(names)
    }
    return Scores(values=number_scores(predicted, truth, names), pictures=pictures)


def _denoising(model: Any, losses: Measures, labelled: Labelled) -> Scores:
    """The loss of the mean image, over all noise levels and at each."""
    values = {"denoising_loss": float(losses.mean())}
    for time, column in zip(MEASURED_TIMES, losses.T, strict=True):
        values[f"denoising_loss/t{time:.2f}"] = float(column.mean())
    return Scores(values=values, pictures={"denoising_loss": noise_picture(losses, MEASURED_TIMES)})


def _bits(model: Any, bits: Measures, labelled: Labelled) -> Scores:
    """Bits over sub-pixels of the whole split: larger images count for more."""
    sizes = [len(record.groups) for record in labelled.records]
    mean = float(np.average(bits[:, 0], weights=sizes))
    return Scores(
        values={"bits_per_subpixel": mean},
        pictures={"bits_per_subpixel": bits_picture(bits[:, 0], mean)},
    )


def _truth(labelled: Labelled) -> NDArray[Any]:
    return cast(Tensor, labelled.values).numpy()  # a model that predicts has something to predict


SCORES: dict[str, Callable[[Any, Measures, Labelled], Scores]] = {
    "classify": _classes,
    "regress": _numbers,
    "diffusion": _denoising,
    "autoregressive": _bits,
}
