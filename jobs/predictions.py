"""What a model says of many images: its outputs, or how far it is from them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from rich.console import Console

from fit_model.bounded.config import BoundedConfig
from fit_model.bounded.engine import runner_of
from fit_model.model import Model
from jobs.batches import image_seed, read_images
from jobs.image_tasks import over_images
from jobs.targets import Labelled
from jobs.workers import WorkersConfig
from pipeline.dataset import open_dataset

SEED = 0
"""The same of every evaluation, so that two models are measured with the same noise."""


@dataclass(frozen=True, kw_only=True)
class Measuring:
    """A model and the images it is measured on."""

    model: Model
    dataset: str
    labelled: Labelled
    device: Literal["cpu", "gpu"]
    threads: int
    bounded: BoundedConfig | None = None
    """How many groups are there at once; None for all."""

    def open(self) -> "Measurer":
        """Load both."""
        return Measurer(self)


class Measurer:
    """A model and a dataset, opened and ready."""

    def __init__(self, held: Measuring) -> None:
        torch.set_num_threads(held.threads)
        self.device = "cuda" if held.device == "gpu" else "cpu"
        self.model = held.model.to(self.device).eval()
        self.dataset = open_dataset(held.dataset)
        self.labelled = held.labelled
        self.bounded, self.runner = held.bounded, runner_of(held.bounded)

    def __call__(self, numbers: Sequence[int]) -> pa.Array:
        """The model's measures of these images, a list of numbers each.

        Fails on a group whose checksum is wrong and on pixels that the model must not be shown,
        naming the image.
        """
        records, values = self.labelled.records, self.labelled.values
        chosen = [records[number] for number in numbers]
        groups = read_images(self.dataset, chosen, head=self.model.config.head)
        seeds = [image_seed(SEED, step=0, image=number) for number in numbers]
        with torch.inference_mode():
            measured = self.model.measures(
                # what is bounded moves a chunk at a time
                groups if self.bounded else groups.to(self.device),
                None if values is None else values[list(numbers)],
                seeds=torch.tensor(seeds),
                runner=self.runner,
            )
        return pa.array(measured.double().cpu().tolist(), pa.list_(pa.float64()))


def measure(
    model: Model,
    dataset: str,
    labelled: Labelled,
    *,
    images_per_batch: int,
    bounded: BoundedConfig | None,
    config: WorkersConfig,
    console: Console,
) -> NDArray[np.float64]:
    """The model's measures of every image, [images, measures], in the order of the records."""
    held = Measuring(
        model=model,
        dataset=dataset,
        labelled=labelled,
        device=config.device,
        threads=config.cpus_per_worker,
        bounded=bounded,
    )
    count = len(labelled.records)
    found = dict(
        over_images(
            held,
            count,
            images_per_batch=images_per_batch,
            config=config,
            description="measure",
            console=console,
        )
    )
    return np.array([found[number] for number in range(count)])
