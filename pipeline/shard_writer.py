"""Write one shard: an Arrow IPC file whose record batches are groups."""

import os
from typing import Any, Self

import numpy as np
import pyarrow as pa
from deflate import crc32

from pipeline.disk_room import reserve
from pipeline.extract import Square
from pipeline.schema import flat_bytes, group_schema, tensor_column
from pipeline.storage import Location

BUFFERED_BYTES = 65_536
"""What is written in smaller parts waits until there is so much of it."""


class WriteError(OSError):
    """The output, not a source, refuses."""


class ShardWriter:
    """A shard that appears whole when the block ends, not at all if nothing was written.

    `planned_bytes` of room are asked for with the first group: that costs less than looking for
    room group by group.
    """

    def __init__(self, dataset: Location, shard: str, *, planned_bytes: int = 0) -> None:
        self._shard = shard
        self._planned_bytes = planned_bytes
        self._pending = dataset.child(shard).writer()
        self._writer: Any = None
        self._row: _Row | None = None
        self._discarded = False
        self.position = (0, 0)
        """Batches and bytes written so far."""

    def __enter__(self) -> Self:
        self._draft = self._pending.__enter__()
        return self

    def write(self, image_id: str, square: Square) -> None:
        """One record batch; its pixels are taken from where they lie."""
        if self._row is None or not self._row.lies_over(image_id, square.pixels):
            self._row = _Row(image_id, square.pixels)
        self._row.tell(square)
        batch = self._row.batch
        try:
            if self._writer is None:
                self._open(batch.schema)
            self._writer.write_batch(batch)
        except OSError as error:
            raise WriteError(f"{self._shard}: cannot be written ({error})") from error
        batches, start = self.position
        self.position = (batches + 1, self._file.tell())
        # The file's header goes out with the first batch.
        first = batches == 0
        self._last_bytes = (
            pa.ipc.get_record_batch_size(batch) if first else self.position[1] - start
        )

    def _open(self, schema: pa.Schema) -> None:
        file = pa.OSFile(str(self._draft), "wb")
        reserve(self._draft, self._planned_bytes)
        # addresses are a dozen small writes a group; pixels go straight through
        self._file = pa.BufferedOutputStream(file, BUFFERED_BYTES)
        self._writer = pa.ipc.new_file(self._file, schema)

    def part_since(self, start: tuple[int, int]) -> dict[str, Any] | None:
        """Where the batches written since `start` lie; all of one image, so all of one size."""
        batches, end = self.position[0] - start[0], self.position[1]
        if not batches:
            return None
        num_bytes = batches * self._last_bytes
        if start[0] and end - num_bytes != start[1]:
            raise AssertionError("record batches of one image differ in size")
        return {
            "shard": self._shard,
            "first_batch": start[0],
            "num_batches": batches,
            "start_byte": end - num_bytes,
            "num_bytes": num_bytes,
        }

    def discard(self) -> None:
        """Leave no file; only for a shard that holds nothing else."""
        self._discarded = True

    def __exit__(self, *error: Any) -> None:
        if self._writer is not None:
            self._writer.close()
            size = self._file.tell()
            self._file.close()
            os.truncate(self._draft, size)  # gives back what was reserved and not used
        if self._discarded:
            self._draft.unlink(missing_ok=True)
        self._pending.__exit__(*error)


class _Row:
    """A record batch of one row over memory that is filled anew for every group.

    To build a batch takes Arrow a tenth of a millisecond, and to read a group one or two.
    """

    def __init__(self, image_id: str, pixels: np.ndarray) -> None:
        side, _, bands = pixels.shape
        schema = group_schema(side_px=side, bands=bands, dtype=str(pixels.dtype))
        self._image_id, self._pixels = image_id, pixels
        numbers = [field for field in schema if field.name not in ("image_id", "pixels")]
        self._values = {field.name: np.zeros(1, field.type.to_pandas_dtype()) for field in numbers}
        told = [
            pa.Array.from_buffers(field.type, 1, [None, pa.py_buffer(self._values[field.name])])
            for field in numbers
        ]
        columns = [pa.array([image_id]), *told, tensor_column(pixels[None])]
        self.batch = pa.RecordBatch.from_arrays(columns, schema=schema)

    def lies_over(self, image_id: str, pixels: np.ndarray) -> bool:
        """Whether it is of this image and this memory."""
        return self._image_id == image_id and self._pixels is pixels

    def tell(self, square: Square) -> None:
        """Where the pixels belong that lie there now."""
        window, side = square.window, len(square.pixels)
        values = {
            "group": square.group,
            "row": window.top_px // side,
            "column": window.left_px // side,
            "top_px": window.top_px,
            "left_px": window.left_px,
            "valid_height_px": window.height_px,
            "valid_width_px": window.width_px,
            "crc32": crc32(flat_bytes(square.pixels)),
        }
        for name, value in values.items():
            self._values[name][0] = value
