"""Open a stored dataset: its images and their groups.

Local shards are memory-mapped and their pixels reach the caller without a copy; remote ones are
read by one range an image and shard, and kept on the node's disk where that is wanted. Reading
needs no file footer: images.parquet says where an image's record batches lie, and the format says
what is in them.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from pipeline.cache import RangeCache
from pipeline.messages import (
    COLUMNS,
    MAX_METADATA_BYTES,
    Kind,
    Run,
    StrangeBatchError,
    read_run,
)
from pipeline.ranges import Ranges, ReadingConfig
from pipeline.records import DatasetInfo, ImageGroups, ImageRecord, Part, records_of, stored_table
from pipeline.schema import INFO, PixelFormat
from pipeline.storage import Location

OPEN_MAPS = 512  # a process may have 65,530 mappings, and its allocator wants many of them
Found = TypeVar("Found")
NONE = np.empty(0, np.int64)


class DamagedError(ValueError):
    """What is stored of an image is not what was written."""

    def __init__(self, line: str, *, image_id: str = "") -> None:
        super().__init__(line)
        self.image_id = image_id


def open_dataset(uri: str, *, reading: ReadingConfig | None = None) -> "Dataset":
    """A finished dataset; ValueError for anything else."""
    place = Location.of(uri)
    if reading and reading.cache and place.is_local:
        raise ValueError(
            f"reading.cache {reading.cache.folder} keeps what comes from afar, and {place} does "
            "not: leave it out"
        )
    if not place.child(INFO).exists():
        if place.is_local and not place.exists():
            raise ValueError(f"{place}: no such folder, so not a finished dataset")
        raise ValueError(f"{place}: not a finished dataset (no {INFO}); run farreach preprocess")
    info = DatasetInfo.from_json(place.child(INFO).read_bytes(), of=str(place))
    return Dataset(place, info=info, reading=reading)


class Dataset:
    """Images and their patch groups; safe to read from several threads."""

    def __init__(
        self, place: Location, *, info: DatasetInfo, reading: ReadingConfig | None = None
    ) -> None:
        reading = reading or ReadingConfig()
        self.place = place
        self.info = info
        self._ranges = None if place.is_local else Ranges(reading)
        self._pool = None if place.is_local else ThreadPoolExecutor(reading.in_flight, "images")
        self._cache = RangeCache(reading.cache) if reading.cache and self._ranges else None
        self._records = records_of(self._table("images"))
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

        What is damaged is read once more, past the cache.

        Cost: one range a part, no copy of local pixels; the checksum reads each byte once.

        Raises:
            DamagedError: it is damaged all the same.
            TimeoutError: the store has not answered for reading.patience_s.
        """
        start, stop, step = (groups or slice(None)).indices(len(record.groups))
        if step != 1:
            raise ValueError(f"groups {groups}: only neighbours can be read, so step must be 1")
        chosen = slice(start, stop)
        try:
            return self._read(record, chosen, check=check, fresh=False)
        except DamagedError:
            return self._read(record, chosen, check=check, fresh=True)

    def at_once(self, read: Callable[..., Found], *of: Iterable[Any]) -> list[Found]:
        """What `read` gives for each of these, in order; from afar, several are read at a time."""
        each = map if self._pool is None else self._pool.map
        return list(each(read, *of))

    def _read(self, record: ImageRecord, chosen: slice, *, check: bool, fresh: bool) -> ImageGroups:
        kind = Kind(side_px=self.info.group_side_px, bands=record.bands, dtype=record.dtype)
        runs: list[Run] = []
        before = 0
        for part in record.parts:
            first = max(chosen.start - before, 0)
            last = min(chosen.stop - before, part.num_batches)
            before += part.num_batches
            if first < last:
                runs.append(self._run(record, part, first, last, kind=kind, fresh=fresh))
        columns = {
            name: np.concatenate([NONE, *(run.columns[name] for run in runs)]) for name in COLUMNS
        }
        found = ImageGroups(pixels=[square for run in runs for square in run.pixels], **columns)
        self._require_places(record, found, np.array(record.groups[chosen], np.int64))
        damaged = np.concatenate([NONE, *(run.damaged() for run in runs if check)])
        if damaged.any():
            raise DamagedError(
                f"{self.place}: group {found.group[damaged.argmax()]} of image "
                f"{record.image_id!r} is damaged (checksum); preprocess again",
                image_id=record.image_id,
            )
        return found

    def _run(
        self, record: ImageRecord, part: Part, first: int, last: int, *, kind: Kind, fresh: bool
    ) -> Run:
        """Batches first .. last of a part from one range of bytes."""
        size = part.num_bytes // part.num_batches
        if not kind.num_bytes < size <= kind.num_bytes + MAX_METADATA_BYTES:
            raise DamagedError(
                f"{self.place}: image {record.image_id!r} claims {size} bytes a group, and its "
                f"pixels take {kind.num_bytes}; preprocess again",
                image_id=record.image_id,
            )
        start, num_bytes = part.start_byte + first * size, (last - first) * size
        content = self._bytes(part.shard, start, num_bytes, fresh=fresh)
        shard = self.place.child(part.shard)
        if content.size < num_bytes:
            raise DamagedError(
                f"{shard}: image {record.image_id!r} is cut short; preprocess again",
                image_id=record.image_id,
            )
        try:
            return read_run(content, count=last - first, kind=kind)
        except StrangeBatchError as error:
            raise DamagedError(
                f"{shard}: image {record.image_id!r} is damaged in batch "
                f"{part.first_batch + first + error.place} ({error}); preprocess again",
                image_id=record.image_id,
            ) from error

    def _bytes(self, shard: str, start: int, size: int, *, fresh: bool) -> pa.Buffer:
        """A range of a shard; shorter where the shard is."""
        if self._ranges is None:
            whole = self._map(shard)
            return whole.slice(min(start, whole.size))[:size]
        fetch = partial(self._ranges.read, self.place.child(shard), start, size)
        if self._cache is None:
            return fetch()
        key = (str(self.place), self.info.digest, shard, start, size)
        return self._cache.read(key, size, fetch, fresh=fresh)

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

    def _require_places(
        self, record: ImageRecord, found: ImageGroups, expected: np.ndarray
    ) -> None:
        """What a group says of its place follows from its number."""
        if not np.array_equal(found.group, expected):
            raise DamagedError(
                f"{self.place}: image {record.image_id!r} has lost groups; preprocess again",
                image_id=record.image_id,
            )
        side = self.info.group_side_px
        row, column = np.divmod(expected, record.grid_columns)
        right = (
            (found.row == row)
            & (found.column == column)
            & (found.valid_height_px == np.minimum(side, record.height_px - row * side))
            & (found.valid_width_px == np.minimum(side, record.width_px - column * side))
        )
        if not right.all():
            raise DamagedError(
                f"{self.place}: group {expected[right.argmin()]} of image {record.image_id!r} is "
                f"damaged (place); preprocess again",
                image_id=record.image_id,
            )

    def _table(self, kind: str) -> pa.Table:
        return stored_table(self.place, self.info, kind)
