"""What a model says of some images, chance included: the same whoever asks, in whatever order."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fit_model.bounded.engine import Bounded
from fit_model.course import Runner
from fit_model.model import Model
from jobs.batches import image_seed, read_images
from jobs.sharing import ALONE, Seat
from jobs.targets import Labelled
from pipeline.dataset import Dataset

SEED = 0
"""The same of every evaluation, so that two models are measured with the same noise."""


def measures_of(
    model: Model,
    numbers: Sequence[int],
    *,
    dataset: Dataset,
    labelled: Labelled,
    runner: Runner,
    seat: Seat = ALONE,
) -> Tensor:
    """The measures of the images of these numbers, float64 [images, measures], on the CPU.

    Workers of a group set read their shares of the images and get the same measures. Fails on a
    group whose checksum is wrong and on pixels that the model must not be shown, naming the image.
    """
    chosen = [labelled.records[number] for number in numbers]
    groups = read_images(dataset, chosen, head=model.config.head, seat=seat)
    seeds = [image_seed(SEED, step=0, image=number) for number in numbers]
    values = labelled.values
    with torch.inference_mode():
        measured = model.measures(
            # what is bounded moves a chunk at a time
            groups if isinstance(runner, Bounded) else groups.to(model.device),
            None if values is None else values[list(numbers)],
            seeds=torch.tensor(seeds),
            runner=runner,
        )
    return measured.double().cpu()
