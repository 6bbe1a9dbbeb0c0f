"""The ceiling: the bytes that training reads, by as many threads, into memory that is used again.

Locally by read(2), on S3 by ranged GETs of boto3. Nothing is decoded and nothing is checked; where
a checksum is asked for it is computed and compared with nothing.
"""

import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import cycle

import boto3
import numpy as np
import pyarrow as pa

from jobs.ingest_epochs import Delivery, Epoch, Source
from jobs.ingest_ranges import AHEAD, Run, read_ahead, runs_of
from pipeline.dataset import Dataset, open_dataset
from pipeline.schema import group_schema

Fetch = Callable[[Run, memoryview], None]
"""Fills memory with the record batches of a run."""


@contextmanager
def opened(source: Source, *, check: bool) -> Iterator[Epoch]:
    """The same runs of groups in the same order as training."""
    dataset = open_dataset(source.dataset)
    fetch = from_s3(dataset, endpoint=source.endpoint) if source.endpoint else from_disk(dataset)
    runs = list(runs_of(dataset, 0, range_groups=source.range_groups))
    pixels_of = layout(dataset, runs[0], fetch)
    size = max(run.num_bytes for run in runs)
    # so many wait at most, and one is in use
    buffers = [np.zeros(size, np.uint8) for _ in range(AHEAD * source.workers + 1)]

    def read(task: tuple[Run, np.ndarray]) -> Delivery:
        run, buffer = task
        content = buffer[: run.num_bytes]
        fetch(run, content.data)
        pixels = pixels_of(content.reshape(run.count, -1))
        if check:
            for group in pixels:
                zlib.crc32(group)
        return Delivery(images=run.images, groups=run.groups, pixels=pixels)

    def epoch(number: int) -> Iterator[Delivery]:
        runs = runs_of(dataset, number, range_groups=source.range_groups)
        return read_ahead(zip(runs, cycle(buffers), strict=False), read, workers=source.workers)

    yield epoch


def layout(dataset: Dataset, run: Run, fetch: Fetch) -> Callable[[np.ndarray], np.ndarray]:
    """From record batches as bytes [group, ...] to their pixels [group, ...], without a copy.

    All record batches of a dataset look alike, so one is decoded and tells where pixels lie.
    """
    content = np.zeros(run.num_bytes, np.uint8)
    fetch(run, content.data)
    message = pa.py_buffer(content[: run.group_bytes])
    record = run.record
    schema = group_schema(
        side_px=dataset.info.group_side_px, bands=record.bands, dtype=record.dtype
    )
    batch = pa.ipc.read_record_batch(pa.ipc.read_message(message), schema)
    values = batch.column("pixels").storage.flatten()
    start = values.buffers()[1].address - message.address
    stop = start + len(values) * np.dtype(record.dtype).itemsize
    return lambda messages: messages[:, start:stop]


def from_disk(dataset: Dataset) -> Fetch:
    """From files that stay open."""
    shards = {part.shard for record in dataset.images() for part in record.parts}
    files = {name: os.open(dataset.place.child(name).path, os.O_RDONLY) for name in shards}

    def fetch(run: Run, into: memoryview) -> None:
        if os.preadv(files[run.part.shard], [into], run.start_byte) < len(into):
            raise OSError(f"{run.part.shard}: is cut short")

    return fetch


def from_s3(dataset: Dataset, *, endpoint: str) -> Fetch:
    """By one client, whose connections stay open."""
    client = boto3.client("s3", endpoint_url=endpoint)

    def fetch(run: Run, into: memoryview) -> None:
        bucket, _, key = dataset.place.child(run.part.shard).path.partition("/")
        chosen = f"bytes={run.start_byte}-{run.start_byte + run.num_bytes - 1}"
        body = client.get_object(Bucket=bucket, Key=key, Range=chosen)["Body"]
        done = 0
        while count := body.readinto(into[done:]):
            done += count
        if done < len(into):
            raise OSError(f"{key}: is cut short")

    return fetch
