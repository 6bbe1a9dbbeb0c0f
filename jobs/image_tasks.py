"""Something made for every one of many images: Ray Data hands image numbers to workers."""

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import ray
from rich.console import Console
from rich.progress import track

from jobs.workers import WorkersConfig

Work = Callable[[Sequence[int]], pa.Array]
"""From numbers of images to a value each."""


class Held(Protocol):
    """What every worker of a batch job needs, kept once in Ray's object store."""

    def open(self) -> Work:
        """Make it ready to work, once a process."""


class WorkError(Exception):
    """Carries what a worker raised past Ray Data, which adds to the words of all it lets through.

    Args:
        cause: what was raised.
        added: by Ray.
    """

    def __init__(self, cause: Exception, *added: str) -> None:
        super().__init__(cause, *added)
        self.cause = cause


@lru_cache(maxsize=1)
def _opened(held: ray.ObjectRef) -> Work:
    """One a process: Ray runs task after task in it."""
    return ray.get(held).open()


def work_batch(batch: pa.Table, *, held: list[ray.ObjectRef]) -> pa.Table:
    """The one stage of a batch job.

    Takes    number: int64, which of the images; held: where the Held lies, in a list, because Ray
             would put its content in the place of a bare reference
    Gives    number, and made: what the Held makes of it
    Runs as  a task, repeated elsewhere if its node is lost; the Held is opened once a process
    Memory   what was opened, and one batch of images
    Fails    as the Held does, in a WorkError
    """
    try:
        made = _opened(held[0])(batch["number"].to_pylist())
    except Exception as error:
        raise WorkError(error) from error
    return batch.append_column("made", made)


def over_images(
    held: Held,
    count: int,
    *,
    images_per_batch: int,
    config: WorkersConfig,
    description: str,
    console: Console,
) -> Iterator[tuple[int, Any]]:
    """(number, what was made) of images 0 to count - 1 as they are ready, in any order."""
    # Ray Data tells how it is doing in lines of its own; what goes wrong is raised here
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # the exception that Ray would raise in its place says nothing of it
    context.raise_original_map_exception = True
    numbers = pa.table({"number": np.arange(count)})
    # few images are shared out rather than left to one worker
    batch = min(images_per_batch, -(-count // config.max_workers))
    blocks = [numbers.slice(start, batch) for start in range(0, count, batch)]
    rows = ray.data.from_arrow(blocks).map_batches(
        work_batch,
        fn_kwargs={"held": [ray.put(held)]},
        batch_size=None,
        batch_format="pyarrow",
        compute=ray.data.TaskPoolStrategy(size=min(config.max_workers, len(blocks))),
        num_cpus=config.cpus_per_worker,
        num_gpus=1 if config.device == "gpu" else None,
        # Ray would end a process after one task on a GPU, and with it the loaded model
        max_calls=0 if config.device == "gpu" else None,
    )
    for row in track(rows.iter_rows(), description=description, total=count, console=console):
        yield row["number"], row["made"]
