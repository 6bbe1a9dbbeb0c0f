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
from jobs.image_tasks import over_images
from jobs.measuring import measures_of
from jobs.targets import Labelled
from jobs.workers import WorkersConfig
from pipeline.dataset import open_dataset


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
        self.model = held.model.to("cuda" if held.device == "gpu" else "cpu").eval()
        self.dataset = open_dataset(held.dataset)
        self.labelled = held.labelled
        self.runner = runner_of(held.bounded)

    def __call__(self, numbers: Sequence[int]) -> pa.Array:
        """The model's measures of these images, a list of numbers each."""
        found = measures_of(
            self.model, numbers, dataset=self.dataset, labelled=self.labelled, runner=self.runner
        )
        return pa.array(found.tolist(), pa.list_(pa.float64()))


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
