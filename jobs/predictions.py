"""A model's outputs for many images: Ray Data hands image numbers to workers."""

import logging
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import pyarrow as pa
import ray
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from fit_model.groups import collate
from fit_model.models import Model
from jobs.batches import read_groups
from jobs.workers import WorkersConfig
from pipeline.dataset import ImageRecord, open_dataset


class Predictor:
    """One worker of the batch job.

    Takes    number: int64, which of the records
    Gives    number, and outputs: list<double>, the model's raw outputs for the image
    Runs as  an actor: the model is loaded once
    Memory   the model, and the pixels and activations of one batch of images
    Fails    on a group whose checksum is wrong, naming the image
    """

    def __init__(
        self,
        load: Callable[[], tuple[Model, Sequence[ImageRecord]]],
        dataset: str,
        *,
        device: str,
        threads: int,
    ) -> None:
        torch.set_num_threads(threads)
        model, self.records = load()
        self.device = "cuda" if device == "gpu" else "cpu"
        self.model = model.to(self.device).eval()
        self.dataset = open_dataset(dataset)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """The batch with the outputs beside the numbers."""
        chosen = [self.records[number] for number in batch["number"].to_pylist()]
        groups = collate([read_groups(self.dataset, record) for record in chosen])
        with torch.inference_mode():
            outputs = self.model(groups.to(self.device)).double().cpu()
        return batch.append_column("outputs", pa.array(outputs.tolist()))


def predict(
    model: Model,
    dataset: str,
    records: Sequence[ImageRecord],
    *,
    images_per_batch: int,
    config: WorkersConfig,
    console: Console,
) -> NDArray[np.float64]:
    """Raw outputs of the model for every record, [images, outputs], in the order of the records."""
    # Ray Data tells how it is doing in lines of its own; what goes wrong is raised here
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    numbers = pa.table({"number": np.arange(len(records))})
    # a block a batch: repartitioning would need a CPU that the workers already hold
    blocks = [
        numbers.slice(start, images_per_batch) for start in range(0, len(records), images_per_batch)
    ]
    held = ray.put((model, tuple(records)))
    rows = ray.data.from_arrow(blocks).map_batches(
        Predictor,
        fn_constructor_args=(partial(ray.get, held), dataset),
        fn_constructor_kwargs={"device": config.device, "threads": config.cpus_per_worker},
        batch_size=images_per_batch,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=config.num_workers),
        num_cpus=config.cpus_per_worker,
        num_gpus=1 if config.device == "gpu" else None,
    )
    outputs: dict[int, list[float]] = {}
    for row in track(rows.iter_rows(), description="predict", total=len(records), console=console):
        outputs[row["number"]] = row["outputs"]
    return np.array([outputs[number] for number in range(len(records))])
