"""A model's outputs for many images: Ray Data hands image numbers to workers."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

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


@dataclass(frozen=True, kw_only=True)
class Held:
    """What every worker of the batch job needs, kept once in Ray's object store."""

    model: Model
    dataset: str
    records: tuple[ImageRecord, ...]
    device: Literal["cpu", "gpu"]
    threads: int


class Predictor:
    """A model and a dataset, opened and ready."""

    def __init__(self, held: Held) -> None:
        torch.set_num_threads(held.threads)
        self.device = "cuda" if held.device == "gpu" else "cpu"
        self.model = held.model.to(self.device).eval()
        self.dataset = open_dataset(held.dataset)
        self.records = held.records

    def outputs(self, numbers: Sequence[int]) -> list[list[float]]:
        """The model's raw outputs for these of the records, a row each."""
        groups = collate([read_groups(self.dataset, self.records[number]) for number in numbers])
        with torch.inference_mode():
            return self.model(groups.to(self.device)).double().cpu().tolist()


@lru_cache(maxsize=1)
def _predictor(held: ray.ObjectRef) -> Predictor:
    """One a process: Ray runs task after task in it."""
    return Predictor(ray.get(held))


def predict_batch(batch: pa.Table, *, held: list[ray.ObjectRef]) -> pa.Table:
    """The one stage of the batch job.

    Takes    number: int64, which of the records; held: where the Held lies, in a list, because Ray
             would put its content in the place of a bare reference
    Gives    number, and outputs: list<double>, the model's raw outputs for the image
    Runs as  a task, repeated elsewhere if its node is lost; the model is loaded once a process
    Memory   the model, and the pixels and activations of one batch of images
    Fails    on a group whose checksum is wrong, naming the image
    """
    outputs = _predictor(held[0]).outputs(batch["number"].to_pylist())
    return batch.append_column("outputs", pa.array(outputs, pa.list_(pa.float64())))


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
    blocks = [
        numbers.slice(start, images_per_batch) for start in range(0, len(records), images_per_batch)
    ]
    held = Held(
        model=model,
        dataset=dataset,
        records=tuple(records),
        device=config.device,
        threads=config.cpus_per_worker,
    )
    rows = ray.data.from_arrow(blocks).map_batches(
        predict_batch,
        fn_kwargs={"held": [ray.put(held)]},
        batch_size=None,
        batch_format="pyarrow",
        compute=ray.data.TaskPoolStrategy(size=config.num_workers),
        num_cpus=config.cpus_per_worker,
        num_gpus=1 if config.device == "gpu" else None,
        # Ray would end a process after one task on a GPU, and with it the loaded model
        max_calls=0 if config.device == "gpu" else None,
    )
    outputs: dict[int, list[float]] = {}
    for row in track(rows.iter_rows(), description="predict", total=len(records), console=console):
        outputs[row["number"]] = row["outputs"]
    return np.array([outputs[number] for number in range(len(records))])
