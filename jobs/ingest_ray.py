"""Ray Data: Parquet, read by streaming_split and iter_batches; files are shuffled, rows are not.

Pixels are stored as bytes: Parquet would keep a list of uint8 as 32-bit integers, four times as
large. Batches stay Arrow's, whose pixels are looked at without a copy.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import fs, parquet

from jobs.cluster import connect
from jobs.ingest_epochs import Delivery, Epoch, Source
from jobs.ingest_samples import SHARD_BYTES, Sample, group_bytes, samples
from pipeline.dataset import Dataset
from pipeline.storage import Location

NUMBERS = ("group", "row", "column", "crc32")
SCHEMA = pa.schema(
    [("image", pa.string()), *((name, pa.int64()) for name in NUMBERS), ("pixels", pa.binary())]
)


def write(dataset: Dataset, folder: Path) -> None:
    """Uncompressed and plain."""
    most = max(1, SHARD_BYTES // group_bytes(dataset))
    for number, together in enumerate(cut(samples(dataset), most)):
        rows = [{**each.address, "pixels": each.pixels.tobytes()} for each in together]
        parquet.write_table(
            pa.Table.from_pylist(rows, schema=SCHEMA),
            folder / f"part-{number:05d}.parquet",
            compression="none",
            use_dictionary=False,
        )


def cut(every: Iterator[Sample], most: int) -> Iterator[list[Sample]]:
    """Into lists of `most`, the last one shorter."""
    together: list[Sample] = []
    for sample in every:
        together.append(sample)
        if len(together) == most:
            yield together
            together = []
    if together:
        yield together


@contextmanager
def opened(source: Source) -> Iterator[Epoch]:
    """One consumer, so that its share is the whole."""
    with connect(num_cpus=source.workers):
        import ray.data

        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        files = ray.data.read_parquet(
            Location.of(source.copy).path, filesystem=filesystem(source), shuffle="files"
        )
        (share,) = files.streaming_split(1)

        def epoch(number: int) -> Iterator[Delivery]:
            for table in share.iter_batches(batch_size=source.batch_groups, batch_format="pyarrow"):
                yield delivery(table)

        yield epoch


def filesystem(source: Source) -> Any:
    """Arrow's own, which is what Ray reads by."""
    if not source.endpoint:
        return fs.LocalFileSystem()
    scheme, _, address = source.endpoint.partition("://")
    return fs.S3FileSystem(endpoint_override=address, scheme=scheme)


def delivery(table: pa.Table) -> Delivery:
    """A batch; its pixels are views of Arrow's buffers."""
    return Delivery(
        images=table["image"].to_pylist(),
        groups=table["group"].to_pylist(),
        crc32s=table["crc32"].to_pylist(),
        pixels=[
            np.frombuffer(value.as_buffer(), np.uint8)[None]
            for chunk in table["pixels"].chunks
            for value in chunk
        ],
    )
