"""The trained model out of an engine, into a folder that fit_model.weights reads."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor

from fit_model.model import ModelConfig
from fit_model.objective import PREFIX
from fit_model.weights import CONFIG, WEIGHTS, save_tensors
from jobs.engine import full_weights
from pipeline.storage import Location

MODEL = "model"


def export(engine: Any, config: ModelConfig, folder: Location) -> None:
    """Write the model, averaged where an average is kept; every worker calls it.

    The configuration comes last: a folder without it holds no finished model. Memory: all weights
    in fp32, on the first worker.
    """
    weights: dict[str, Tensor] = {}
    for name, weight in full_weights(engine):
        if dist.get_rank() == 0:
            weights[name.removeprefix(PREFIX)] = weight
    if dist.get_rank() > 0:
        return
    if folder.is_local:
        save_tensors(weights, config, folder.path)
        return
    with tempfile.TemporaryDirectory(prefix="farreach-model-") as draft:
        save_tensors(weights, config, draft)
        for name in (WEIGHTS, CONFIG):
            folder.child(name).upload(Path(draft) / name)


@contextmanager
def on_this_disk(folder: Location) -> Iterator[Path]:
    """The folder of a model as a local one: as it is, or fetched for the while."""
    if folder.is_local:
        yield Path(folder.path)
        return
    with tempfile.TemporaryDirectory(prefix="farreach-model-") as draft:
        for name in (CONFIG, WEIGHTS):
            folder.child(name).download(Path(draft) / name)
        yield Path(draft)
