"""Patch groups as training reads them: Dataset.read, by threads that read ahead of the consumer."""

from collections.abc import Iterator
from contextlib import contextmanager

from jobs.ingest_epochs import Delivery, Epoch, Source
from jobs.ingest_ranges import Run, read_ahead, runs_of
from pipeline.dataset import open_dataset


@contextmanager
def opened(source: Source, *, check: bool) -> Iterator[Epoch]:
    """With the checksum of every group computed and compared, as in training, or without."""
    dataset = open_dataset(source.dataset)

    def read(run: Run) -> Delivery:
        chosen = slice(run.first, run.first + run.count)
        found = dataset.read(run.record, groups=chosen, check=check)
        return Delivery(
            images=run.images,
            groups=run.groups,
            pixels=[square[None] for square in found.pixels],
            crc32s=found.crc32.tolist(),
        )

    def epoch(number: int) -> Iterator[Delivery]:
        runs = runs_of(dataset, number, range_groups=source.range_groups)
        return read_ahead(runs, read, workers=source.workers)

    yield epoch
