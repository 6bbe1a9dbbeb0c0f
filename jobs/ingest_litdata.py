"""LitData: its chunks, its shuffle and its StreamingDataLoader, as its documentation says.

On S3 it downloads whole chunks into a local folder and reads them there.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from litdata import StreamingDataLoader, StreamingDataset
from litdata.streaming import downloader
from litdata.streaming.writer import BinaryWriter

from jobs.ingest_epochs import Delivery, Epoch, Source
from jobs.ingest_samples import SHARD_BYTES, samples
from pipeline.dataset import Dataset


def write(dataset: Dataset, folder: Path) -> None:
    """By the writer that `litdata.optimize` runs in its workers."""
    writer = BinaryWriter(str(folder), chunk_bytes=SHARD_BYTES)
    for number, sample in enumerate(samples(dataset)):
        writer[number] = {**sample.address, "pixels": sample.pixels}
    writer.done()
    writer.merge()


@contextmanager
def opened(source: Source) -> Iterator[Epoch]:
    """Its workers stay from epoch to epoch."""
    # the client that fetches its chunks takes https alone, unless told here
    downloader._OBSTORE_CLIENT_OPTIONS["allow_http"] = True
    dataset = StreamingDataset(
        source.copy,
        cache_dir=source.scratch if source.endpoint else None,
        shuffle=True,
        storage_options={"endpoint_url": source.endpoint} if source.endpoint else None,
    )
    loader = StreamingDataLoader(
        dataset,
        batch_size=source.batch_groups,
        num_workers=source.workers,
        persistent_workers=True,
    )

    def epoch(number: int) -> Iterator[Delivery]:
        for batch in loader:
            yield Delivery(
                images=batch["image"],
                groups=batch["group"].tolist(),
                crc32s=batch["crc32"].tolist(),
                pixels=batch["pixels"].numpy(),
            )

    yield epoch
