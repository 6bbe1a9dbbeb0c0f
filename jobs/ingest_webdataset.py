"""WebDataset: tar files, a JSON and an npy file a group; shards are shuffled, groups are not.

As its documentation says: batches are made in the workers of a WebLoader, from tensors, which reach
the consumer through shared memory.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import boto3
import torch
import webdataset

from jobs.ingest_epochs import Delivery, Epoch, Source
from jobs.ingest_samples import SHARD_BYTES, samples
from pipeline.dataset import Dataset
from pipeline.storage import Location

SHUFFLED_SHARDS = 100
VALID_S = 3600


def write(dataset: Dataset, folder: Path) -> None:
    """By its own writer."""
    pattern = str(folder / "part-%05d.tar")
    with webdataset.ShardWriter(pattern, maxsize=SHARD_BYTES, verbose=0) as writer:
        for number, sample in enumerate(samples(dataset)):
            key = f"{number:09d}"
            writer.write({"__key__": key, "json": sample.address, "npy": sample.pixels})


@contextmanager
def opened(source: Source) -> Iterator[Epoch]:
    """Its workers stay from epoch to epoch."""
    files = webdataset.WebDataset(
        shards(source),
        shardshuffle=SHUFFLED_SHARDS,
        empty_check=False,  # a few shards may leave a worker without any
    )
    batches = (
        files.decode()
        .to_tuple("json", "npy")
        .map_tuple(None, torch.from_numpy)
        .batched(source.batch_groups)
    )
    loader = webdataset.WebLoader(
        batches, batch_size=None, num_workers=source.workers, persistent_workers=True
    )

    def epoch(number: int) -> Iterator[Delivery]:
        for addresses, pixels in loader:
            yield Delivery(
                images=[each["image"] for each in addresses],
                groups=[each["group"] for each in addresses],
                crc32s=[each["crc32"] for each in addresses],
                pixels=pixels.numpy(),
            )

    yield epoch


def shards(source: Source) -> list[str]:
    """Paths, or URLs for the curl that it runs, signed for an hour."""
    place = Location.of(source.copy)
    names = place.files()
    if not source.endpoint:
        return [place.child(name).path for name in names]
    client = boto3.client("s3", endpoint_url=source.endpoint)
    bucket, _, prefix = place.path.partition("/")
    return [
        client.generate_presigned_url(
            "get_object", Params={"Bucket": bucket, "Key": f"{prefix}/{name}"}, ExpiresIn=VALID_S
        )
        for name in names
    ]
