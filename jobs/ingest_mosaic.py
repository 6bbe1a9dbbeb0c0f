"""MosaicML Streaming: MDS shards; its own shuffle, torch's DataLoader, as its documentation says.

On S3 it downloads whole shards into a local folder and reads them there.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from torch.utils.data import DataLoader

from jobs.ingest_epochs import Delivery, Epoch, Source
from jobs.ingest_samples import SHARD_BYTES, samples
from pipeline.dataset import Dataset

STAND_INS = {
    "torchvision.datasets": "VisionDataset",
    "torchvision.transforms.functional": "to_tensor",
    "transformers.feature_extraction_utils": "BatchFeature",
    "transformers.tokenization_utils_base": "BatchEncoding",
    "transformers.models.auto.tokenization_auto": "AutoTokenizer",
}
"""Named by its modules for pictures and text, and used by nothing that is measured here."""


def streaming() -> Any:
    """The package; imported without torchvision, which has no build for this torch on a CPU."""
    for name, member in STAND_INS.items():
        parents = name.split(".")
        for depth in range(1, len(parents) + 1):
            sys.modules.setdefault(".".join(parents[:depth]), ModuleType(name))
        setattr(sys.modules[name], member, type(member, (), {}))
    import streaming

    return streaming


def write(dataset: Dataset, folder: Path) -> None:
    """With a dtype and a shape that all groups share."""
    side, kept = dataset.info.group_side_px, dataset.format
    columns = {
        "image": "str",
        **dict.fromkeys(("group", "row", "column", "crc32"), "int"),
        "pixels": f"ndarray:{kept.dtype}:{side},{side},{kept.bands}",
    }
    with streaming().MDSWriter(out=str(folder), columns=columns, size_limit=SHARD_BYTES) as writer:
        for sample in samples(dataset):
            writer.write({**sample.address, "pixels": sample.pixels})


@contextmanager
def opened(source: Source) -> Iterator[Epoch]:
    """Its workers stay from epoch to epoch."""
    places = {"remote": source.copy, "local": source.scratch}
    dataset = streaming().StreamingDataset(
        **(places if source.endpoint else {"local": source.copy}),
        shuffle=True,
        batch_size=source.batch_groups,
        num_canonical_nodes=1,  # with more, groups are repeated until all nodes have as many
    )
    loader = DataLoader(
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
