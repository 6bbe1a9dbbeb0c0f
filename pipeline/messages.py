"""Runs of record batches that look alike, as arrays over their bytes: no batch is decoded alone.

    message   | metadata (flatbuffer)            | columns, each at its offset          |
              | the same bytes in all of a run   | one value of each, in every message  |

All groups of an image make messages of one size, which differ in values alone. So the first one's
metadata says where a column lies in each, and comparing bytes shows that it speaks for all.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pyarrow as pa
from zlib_ng.zlib_ng import crc32, crc32_combine

from pipeline.schema import group_schema

PREFIX_BYTES = 8  # a mark, and the size of the metadata
MAX_METADATA_BYTES = 1 << 16  # all that a message holds beside its pixels
PLACES = ("group", "row", "column", "valid_height_px", "valid_width_px")
COLUMNS = {name: np.dtype("<i4") for name in PLACES} | {"crc32": np.dtype("<u4")}
"""What is read of a group beside its pixels, as pipeline.schema stores it."""


class StrangeBatchError(ValueError):
    """A message is not what it should be; `place` counts those that were read."""

    def __init__(self, line: str, *, place: int = 0) -> None:
        super().__init__(line)
        self.place = place


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What decides how a group is stored."""

    side_px: int
    bands: int
    dtype: str

    @property
    def schema(self) -> pa.Schema:
        """Of its record batch."""
        return group_schema(side_px=self.side_px, bands=self.bands, dtype=self.dtype)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of its pixels."""
        return self.side_px, self.side_px, self.bands

    @property
    def num_bytes(self) -> int:
        """Of its pixels."""
        return self.side_px * self.side_px * self.bands * np.dtype(self.dtype).itemsize


@dataclass(frozen=True, kw_only=True)
class Run:
    """Neighbouring groups of one image, as arrays of equal length."""

    pixels: np.ndarray
    """[group, side, side, bands], read-only, each group contiguous."""
    columns: dict[str, np.ndarray]
    """By COLUMNS, as stored."""
    content: memoryview
    """All of its messages, one after the other."""
    first_pixel: int
    """Byte of a message where its pixels begin."""

    def damaged(self) -> np.ndarray:
        """Of every group, whether its checksum is wrong; reads every byte once, or twice if one is.

        One checksum of all bytes, for which a thread gives Python's lock away once and not at
        every group, is held against the one that follows from what is stored. By zlib-ng:
        libdeflate, which writes them faster, keeps the lock.
        """
        rows = self.pixels.view(np.uint8).reshape(len(self.pixels), -1)
        if crc32(self.content) == self._expected(rows.shape[1]):
            return np.zeros(len(rows), np.bool_)
        found = np.fromiter(map(crc32, rows), np.uint32, len(rows))
        return found != self.columns["crc32"]

    def _expected(self, group_bytes: int) -> int:
        """CRC-32 of `content` if the pixels of every group have the checksum that it tells."""
        size = len(self.content) // len(self.pixels)
        found = 0
        for place, stored in enumerate(self.columns["crc32"].tolist()):
            pixels = place * size + self.first_pixel
            found = crc32(self.content[place * size : pixels], found)
            found = crc32_combine(found, stored, group_bytes)
            found = crc32(self.content[pixels + group_bytes : (place + 1) * size], found)
        return found


def read_run(content: pa.Buffer, *, count: int, kind: Kind) -> Run:
    """The groups of `count` messages that fill `content`.

    Raises:
        StrangeBatchError: one of them is no message of this kind, or is not like the first.
    """
    size = content.size // count
    ends = PREFIX_BYTES
    if size >= PREFIX_BYTES:
        ends += int(np.frombuffer(content, "<i4", 1, offset=4)[0])
    if size % 8 or ends % 8 or not PREFIX_BYTES < ends <= min(size, MAX_METADATA_BYTES):
        raise StrangeBatchError("no Arrow message")
    metadata = np.ndarray((count, ends // 8), "<u8", content, strides=(size, 8))
    strange = np.flatnonzero((metadata != metadata[0]).any(axis=1))
    if len(strange):
        raise StrangeBatchError("not like the first of its image", place=int(strange[0]))
    offsets = layout(metadata[0].tobytes(), message_bytes=size, kind=kind)

    def column(name: str, dtype: np.dtype, shape: tuple[int, ...] = ()) -> np.ndarray:
        inner = np.empty(shape, dtype).strides
        found: np.ndarray = np.ndarray(
            (count, *shape), dtype, content, offsets[name], strides=(size, *inner)
        )
        found.setflags(write=False)
        return found

    return Run(
        pixels=column("pixels", np.dtype(kind.dtype), kind.shape),
        columns={name: column(name, dtype) for name, dtype in COLUMNS.items()},
        content=memoryview(content)[: count * size],
        first_pixel=offsets["pixels"],
    )


@lru_cache(maxsize=256)
def layout(metadata: bytes, *, message_bytes: int, kind: Kind) -> dict[str, int]:
    """Where each column's value lies in a message with this metadata, in bytes from its beginning.

    Arrow itself decodes a message of zeros with this metadata, and checks it.
    """
    blank = pa.py_buffer(metadata + bytes(message_bytes - len(metadata)))
    try:
        batch = pa.ipc.read_record_batch(pa.ipc.read_message(blank), kind.schema)
        batch.validate()
    except (pa.ArrowException, OSError, EOFError) as error:
        raise StrangeBatchError("no batch of a group") from error
    sizes = {name: dtype.itemsize for name, dtype in COLUMNS.items()}
    sizes["pixels"] = kind.num_bytes
    return {name: _offset(batch, name, num_bytes, blank) for name, num_bytes in sizes.items()}


def _offset(batch: pa.RecordBatch, name: str, num_bytes: int, message: pa.Buffer) -> int:
    column = batch.column(name)
    values = column.storage.values if name == "pixels" else column
    buffer = values.buffers()[1]
    offset = 0 if buffer is None else buffer.address - message.address
    inside = buffer is not None and 0 < offset <= message.size - num_bytes
    if not inside or buffer.size < num_bytes or batch.num_rows != 1 or column.null_count:
        raise StrangeBatchError(f"holds no {name}")
    return offset
