"""From what a model says of every image to the figures and pictures that are kept of it."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
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
    """Every kind of model has a "loss", the mean over images."""
    pictures: dict[str, Callable[[], Figure]]
    """Drawn when called."""


def score(model: Model, measured: Measures, labelled: Labelled) -> Scores:
    """The scores of a model of any kind."""
    config: Any = model.config
    kind = config.face.kind if config.head.kind == "generate" else config.head.kind
    return SCORES[kind](model, measured, labelled)


def _classes(model: Any, logits: Measures, labelled: Labelled) -> Scores:
    found = class_scores(logits, _truth(labelled))
    picture = partial(confusion_picture, found.confusion, model.config.head.classes)
    values = {"loss": _loss(model, logits, labelled)} | found.as_metrics()
    return Scores(values=values, pictures={"confusion": picture})


def _numbers(model: Any, outputs: Measures, labelled: Labelled) -> Scores:
    truth, names = _truth(labelled), model.config.head.targets
    predicted = model.head.predictions(torch.from_numpy(outputs)).numpy()
    pictures: dict[str, Callable[[], Figure]] = {
        name: partial(prediction_picture, truth[:, column], predicted[:, column], name)
        for column, name in enumerate(names)
    }
    values = {"loss": _loss(model, outputs, labelled)} | number_scores(predicted, truth, names)
    return Scores(values=values, pictures=pictures)


def _loss(model: Any, outputs: Measures, labelled: Labelled) -> float:
    """What training lowers, of the mean image."""
    return float(model.head.loss(torch.from_numpy(outputs), labelled.values))


def _denoising(model: Any, losses: Measures, labelled: Labelled) -> Scores:
    """The loss of the mean image, over all noise levels and at each."""
    mean = float(losses.mean())
    values = {"loss": mean, "denoising_loss": mean}
    for time, column in zip(MEASURED_TIMES, losses.T, strict=True):
        values[f"denoising_loss/t{time:.2f}"] = float(column.mean())
    picture = partial(noise_picture, losses, MEASURED_TIMES)
    return Scores(values=values, pictures={"denoising_loss": picture})


def _bits(model: Any, bits: Measures, labelled: Labelled) -> Scores:
    """Bits over sub-pixels of the whole split: larger images count for more."""
    sizes = [len(record.groups) for record in labelled.records]
    mean = float(np.average(bits[:, 0], weights=sizes))
    return Scores(
        values={"loss": float(bits.mean()), "bits_per_subpixel": mean},
        pictures={"bits_per_subpixel": partial(bits_picture, bits[:, 0], mean)},
    )


def _truth(labelled: Labelled) -> NDArray[Any]:
    return cast(Tensor, labelled.values).numpy()  # a model that predicts has something to predict


SCORES: dict[str, Callable[[Any, Measures, Labelled], Scores]] = {
    "classify": _classes,
    "regress": _numbers,
    "diffusion": _denoising,
    "autoregressive": _bits,
}
