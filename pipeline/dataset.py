"""Open a stored dataset: its images, their groups, and whether it is intact.

Local shards are memory-mapped and their pixels reach the caller without a copy; remote ones are
read by one range an image and shard. Reading needs no file footer: images.parquet says where an
image's record batches lie, and the format says what is in them.
"""

import hashlib
import threading
import zlib
from collections import OrderedDict
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.extract import flat_bytes, group_hash
from pipeline.records import DatasetInfo, ImageGroups, ImageRecord, Part, stored_table
from pipeline.schema import INFO, PixelFormat, group_schema
from pipeline.storage import Location

OPEN_MAPS = 128  # each holds a file descriptor, of which a process has about a thousand
PLACE_COLUMNS = ("group", "row", "column", "valid_height_px", "valid_width_px", "crc32")


def open_dataset(uri: str) -> "Dataset":
    """A finished dataset; ValueError for anything else."""
    place = Location.of(uri)
    if not place.child(INFO).exists():
        raise ValueError(f"{place}: not a finished dataset (no {INFO}); run farreach preprocess")
    return Dataset(place, info=DatasetInfo.from_json(place.child(INFO).read_bytes(), of=str(place)))


class Dataset:
    """Images and their patch groups; safe to read from several threads."""

    def __init__(self, place: Location, *, info: DatasetInfo) -> None:
        self.place = place
        self.info = info
        self._records = [ImageRecord.from_row(row) for row in self._table("images").to_pylist()]
        self._maps: OrderedDict[str, pa.Buffer] = OrderedDict()
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"Dataset({self.place}, {self.info.images} images, {self.info.groups} groups)"

    @property
    def format(self) -> PixelFormat:
        """The one pixel format of all images."""
        if len(self.info.formats) != 1:
            several = ", ".join(str(kept) for kept in self.info.formats)
            raise ValueError(
                f"{self.place}: images of several formats ({several}); "
                f"preprocess each into a dataset of its own, or choose grouping.bands"
            )
        return self.info.formats[0]

    def images(self, split: str | None = None) -> list[ImageRecord]:
        """Images in the order of their ids; all, or those of one split."""
        return [kept for kept in self._records if split is None or kept.split == split]

    def quarantine(self) -> list[dict[str, Any]]:
        """What could not be read: image_id, uri, group (None: the image), window, cause."""
        return self._table("quarantine").to_pylist()

    def read(
        self, record: ImageRecord, *, groups: slice | None = None, check: bool = True
    ) -> ImageGroups:
        """The image's stored groups, or a run of them; `groups` counts stored ones (step 1).

        Cost: one range a part, no copy of local pixels; the checksum reads each byte once.
        """
        start, stop, step = (groups or slice(None)).indices(len(record.groups))
        if step != 1:
            raise ValueError(f"groups {groups}: only neighbours can be read, so step must be 1")
        schema = group_schema(
            side_px=self.info.group_side_px, bands=record.bands, dtype=record.dtype
        )
        pixels: list[np.ndarray] = []
        places: list[list[int]] = []
        before = 0
        for part in record.parts:
            first = max(start - before, 0)
            last = min(stop - before, part.num_batches)
            before += part.num_batches
            if first < last:
                self._read_part(part, first, last, schema=schema, pixels=pixels, places=places)
        columns = np.array(places, np.int64).reshape(-1, len(PLACE_COLUMNS))
        found = ImageGroups(pixels=pixels, **dict(zip(PLACE_COLUMNS, columns.T, strict=True)))
        self._check(record, found, expected=record.groups[start:stop], checksums=check)
        return found

    def verify(self) -> list[str]:
        """Everything that is wrong with the stored data, a line each; none when intact."""
        problems = []
        for record in self._records:
            hashes = []
            try:
                for place in range(len(record.groups)):
                    one = self.read(record, groups=slice(place, place + 1))
                    extent = (one.valid_height_px[0], one.valid_width_px[0])
                    hashes.append(group_hash(one.group[0], *extent, one.pixels[0]))
            except (ValueError, OSError) as error:
                problems.append(str(error))
                continue
            if hashlib.sha256(b"".join(hashes)).hexdigest() != record.sha256:
                problems.append(f"{self.place}: image {record.image_id!r} has other content")
        return problems

    def _read_part(
        self,
        part: Part,
        first: int,
        last: int,
        *,
        schema: pa.Schema,
        pixels: list[np.ndarray],
        places: list[list[int]],
    ) -> None:
        """Decode batches first .. last of a part from one range of bytes."""
        size = part.num_bytes // part.num_batches
        content = self._bytes(part.shard, part.start_byte + first * size, (last - first) * size)
        for place in range(last - first):
            message = content.slice(place * size, size)
            try:
                batch = pa.ipc.read_record_batch(pa.ipc.read_message(message), schema)
                batch.validate()
                pixels.append(batch.column("pixels").to_numpy_ndarray()[0])
                places.append([batch.column(name)[0].as_py() for name in PLACE_COLUMNS])
            except (pa.ArrowException, OSError, IndexError, EOFError) as error:
                raise ValueError(
                    f"{self.place.child(part.shard)}: batch {part.first_batch + first + place} "
                    f"is damaged; preprocess again"
                ) from error

    def _bytes(self, shard: str, start: int, size: int) -> pa.Buffer:
        if self.place.is_local:
            whole = self._map(shard)
            content = whole.slice(min(start, whole.size))[:size]
        else:
            content = pa.py_buffer(self.place.child(shard).read_range(start, size))
        if content.size < size:
            raise ValueError(f"{self.place.child(shard)}: is cut short; preprocess again")
        return content

    def _map(self, shard: str) -> pa.Buffer:
        """The whole shard as a buffer over the memory map; views keep theirs alive."""
        with self._lock:
            if shard not in self._maps:
                try:
                    mapped = pa.memory_map(self.place.child(shard).path)
                except OSError as error:
                    raise FileNotFoundError(f"{self.place.child(shard)}: not found") from error
                self._maps[shard] = mapped.read_buffer()
                if len(self._maps) > OPEN_MAPS:
                    self._maps.popitem(last=False)
            self._maps.move_to_end(shard)
            return self._maps[shard]

    def _check(
        self, record: ImageRecord, found: ImageGroups, *, expected: tuple[int, ...], checksums: bool
    ) -> None:
        if tuple(found.group.tolist()) != expected:
            raise ValueError(f"{self.place}: image {record.image_id!r} has lost groups")
        if not checksums:
            return
        for group, square, stored in zip(found.group, found.pixels, found.crc32, strict=True):
            if zlib.crc32(flat_bytes(square)) != stored:
                raise ValueError(
                    f"{self.place}: group {group} of image {record.image_id!r} is damaged "
                    f"(checksum); preprocess again"
                )

    def _table(self, kind: str) -> pa.Table:
        return stored_table(self.place, self.info, kind)
