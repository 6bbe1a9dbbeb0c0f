"""A dataset group by group, for whoever writes the same groups in a format of its own."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pipeline.dataset import Dataset

SHARD_BYTES = 1 << 26
"""Of a file in every format, uncompressed: what MosaicML Streaming, LitData and ours default to."""
READ_TOGETHER = 64


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A group with its address."""

    image: str
    group: int
    row: int
    column: int
    crc32: int
    pixels: np.ndarray
    """[side, side, bands]."""

    @property
    def address(self) -> dict[str, str | int]:
        """All but the pixels."""
        return {name: value for name, value in vars(self).items() if name != "pixels"}


def samples(dataset: Dataset) -> Iterator[Sample]:
    """All groups in the order they are stored in."""
    for record in dataset.images():
        for first in range(0, len(record.groups), READ_TOGETHER):
            found = dataset.read(record, groups=slice(first, first + READ_TOGETHER))
            for place, pixels in enumerate(found.pixels):
                yield Sample(
                    image=record.image_id,
                    group=int(found.group[place]),
                    row=int(found.row[place]),
                    column=int(found.column[place]),
                    crc32=int(found.crc32[place]),
                    pixels=pixels,
                )


def group_bytes(dataset: Dataset) -> int:
    """Of a group's pixels."""
    kept = dataset.format
    return dataset.info.group_side_px**2 * kept.bands * np.dtype(kept.dtype).itemsize
