"""Is a dataset what was published? Every checksum, every count, every file, and the digest."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.assemble import StoredImage, digest_of, formats_of
from pipeline.dataset import Dataset
from pipeline.extract import group_hash
from pipeline.grid import Grid
from pipeline.records import ImageGroups, ImageRecord, Part, stored_table
from pipeline.schema import OUR_FILES, PARTIAL, UNFINISHED

READ_BYTES = 16_000_000
"""What is held at a time, unless a single group is larger."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One thing that is wrong."""

    line: str
    image_id: str | None = None
    """The image that it damages; None where the tables or files as a whole are concerned."""


def verify(
    dataset: Dataset, *, progress: Callable[[int, int], None] | None = None
) -> list[Problem]:
    """All that is wrong with a dataset whose images table is intact; empty when it is whole.

    Every stored byte of pixels is read once. `progress` hears (groups checked, groups in all).
    Memory: READ_BYTES, and the images table.
    """
    problems = [Problem(line=f"{dataset.place}: {said}") for said in _tables(dataset)]
    problems += _files(dataset)
    damaged = {problem.image_id for problem in problems}
    done, total = 0, sum(len(record.groups) for record in dataset.images())
    for record in dataset.images():
        if record.image_id not in damaged:
            said = _image(dataset, record)
            problems += [Problem(line=said, image_id=record.image_id)] if said else []
        done += len(record.groups)
        if progress:
            progress(done, total)
    return problems


def _tables(dataset: Dataset) -> Iterator[str]:
    """What dataset.json says against what the tables say."""
    info = dataset.info
    rows = stored_table(dataset.place, info, "images").to_pylist()
    split = {row["image_id"]: row["split"] for row in rows}
    images = [StoredImage(row=row) for row in rows]
    expected: dict[str, Any] = {
        "images": len(rows),
        "groups": sum(len(row["groups"]) for row in rows),
        "splits": dict(Counter(split.values())),
        "formats": tuple(formats_of(images, split=split)),
        "classes": {
            name: tuple(sorted({str(row[name]) for row in rows if row[name] is not None}))
            for name, kind in info.label_columns.items()
            if kind == "class"
        },
        "digest": digest_of(rows, label_columns=info.label_columns, settings=info.settings),
    }
    try:
        bad = Counter(row["group"] is None for row in dataset.quarantine())
        expected |= {"quarantined": bad[True], "bad_groups": bad[False]}
    except (ValueError, OSError) as error:
        yield str(error)
    for name, value in expected.items():
        told = getattr(info, name)
        if told != value and repr(told) != repr(value):  # repr: NaN equals itself
            yield f"dataset.json says {name} {told}, the tables say {value}"


def _files(dataset: Dataset) -> Iterator[Problem]:
    """Shards that are missing, too short or used twice, and files of ours that nobody uses."""
    there = dataset.place.listing()
    used: dict[str, list[tuple[Part, str]]] = defaultdict(list)
    for record in dataset.images():
        for part in record.parts:
            used[part.shard].append((part, record.image_id))
    for shard, parts in sorted(used.items()):
        size = there[shard]["size"] if shard in there else -1
        end, last = 0, ""
        for part, image in sorted(parts, key=lambda each: each[0].start_byte):
            if size < 0:
                yield Problem(line=_line(dataset, image, f"{shard} is missing"), image_id=image)
            elif part.start_byte + part.num_bytes > size:
                yield Problem(line=_line(dataset, image, f"{shard} is cut short"), image_id=image)
            if part.start_byte < end:
                said = f"shares bytes of {shard} with image {last!r}"
                yield Problem(line=_line(dataset, image, said), image_id=image)
            end, last = part.start_byte + part.num_bytes, image
    if UNFINISHED in there:
        return  # a job is at work, or was killed: its shards are in no table yet
    needed = {*used, *(table["name"] for table in dataset.info.tables.values())}
    for name in sorted(there):
        if (OUR_FILES.fullmatch(name) or PARTIAL.fullmatch(name)) and name not in needed:
            yield Problem(line=f"{dataset.place}: no part of the dataset refers to {name}")


def _image(dataset: Dataset, record: ImageRecord) -> str | None:
    """The first thing that is wrong with an image."""
    grid = Grid(
        height_px=record.height_px, width_px=record.width_px, side_px=dataset.info.group_side_px
    )
    if (grid.rows, grid.columns) != (record.grid_rows, record.grid_columns):
        return _line(dataset, record.image_id, "its grid does not fit its size")
    if sum(part.num_batches for part in record.parts) != len(record.groups):
        return _line(dataset, record.image_id, "its parts do not hold as many groups as it has")
    digest = hashlib.sha256()
    try:
        for run in runs(record, group_side_px=grid.side_px):
            found = dataset.read(record, groups=run)
            if not _is_placed(found, grid=grid):
                return _line(dataset, record.image_id, "a group has another place than its number")
            extents = zip(found.group, found.valid_height_px, found.valid_width_px, strict=True)
            for (group, height, width), square in zip(extents, found.pixels, strict=True):
                digest.update(group_hash(group, height, width, square))
    except (ValueError, FileNotFoundError) as error:
        # the remedy of one who only reads
        return str(error).removesuffix("; preprocess again")
    if digest.hexdigest() != record.sha256:
        return _line(dataset, record.image_id, "has other content than was published")
    return None


def runs(record: ImageRecord, *, group_side_px: int) -> Iterable[slice]:
    """The image's stored groups in slices of at most READ_BYTES."""
    item = np.dtype(record.dtype).itemsize * record.bands
    most = max(1, READ_BYTES // (group_side_px * group_side_px * item))
    count = len(record.groups)
    return (slice(start, min(start + most, count)) for start in range(0, count, most))


def _is_placed(found: ImageGroups, *, grid: Grid) -> bool:
    rows, columns = np.divmod(found.group, grid.columns)
    heights = np.minimum(grid.side_px, grid.height_px - rows * grid.side_px)
    widths = np.minimum(grid.side_px, grid.width_px - columns * grid.side_px)
    pairs = [
        (found.row, rows),
        (found.column, columns),
        (found.valid_height_px, heights),
        (found.valid_width_px, widths),
    ]
    return all(np.array_equal(said, true) for said, true in pairs)


def _line(dataset: Dataset, image: str, said: str) -> str:
    return f"{dataset.place}: image {image!r}: {said}"
