"""Write shards: the task that reads a piece of the plan, keeps its content and stores it."""

import zlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.background import leave_out_background
from pipeline.config import BackgroundConfig, GroupingConfig, LimitsConfig
from pipeline.extract import (
    addresses,
    extract_groups,
    extract_readable,
    flat_bytes,
    group_hash,
    squares_of,
)
from pipeline.grid import kept_tiles
from pipeline.journal import write_entry
from pipeline.masks import leave_out_masked, open_mask
from pipeline.plan import grid_of, group_bytes, header_of, peak_gb
from pipeline.readers.faults import fault_of
from pipeline.readers.open import LastImage
from pipeline.readers.protocol import MachineError, SourceError
from pipeline.schema import PART, entry_name, group_schema, tensor_column
from pipeline.statistics import measure
from pipeline.storage import Location

READ_BYTES = 4_000_000
"""The most pixels on their way from source to shard, unless a single group is larger."""

BAD_GROUP = pa.struct([("group", pa.int32()), ("window", pa.string()), ("cause", pa.string())])
STORED = pa.schema(
    [
        ("image_id", pa.string()),
        ("first_group", pa.int32()),  # of the piece, as planned
        ("num_groups", pa.int32()),
        ("groups", pa.list_(pa.int32())),  # those stored
        ("hashes", pa.binary()),  # 32 bytes a stored group
        ("moments", pa.list_(pa.list_(pa.float64()))),  # Moments.row() a stored group
        ("part", PART),  # null when nothing was stored
        ("bad_groups", pa.list_(BAD_GROUP)),  # could not be read, while the image stays
        ("window", pa.string()),
        ("cause", pa.string()),  # null when the image stays
        ("fault", pa.string()),  # of the machine, the store or the output: ends the job
        ("peak_worker_gb", pa.float64()),
    ]
)


def store_shards(
    shards: pa.Table,
    *,
    output: str,
    grouping: GroupingConfig,
    background: BackgroundConfig,
    limits: LimitsConfig,
    on_error: str = "quarantine",
) -> pa.Table:
    """Stage 5 of 5: shards -> shard files, and an index of what is in them.

    Takes    SHARDS
    Gives    STORED, a row a piece; the pixels are in the file, never in the table; the rows of a
             shard are also an entry of the journal
    Runs as  a task of one CPU a shard: extract, leave out background, measure, write; all shards
             of a remote slide are one task, which copies it to the worker's disk once
    Memory   READ_BYTES, up to MAX_KEPT_BYTES of decoded tiles that groups share, and shard_mb where
             a shard holds whole images: such an image is written once all of it has been read, so
             a damaged one leaves no byte behind
    Fails    never: a damaged source becomes a cause; where the machine, the store or the output
             fails, the last row says so as `fault`: an exception loses its words on the way
    """
    rows: list[dict[str, Any]] = []
    with LastImage() as images:
        read = partial(
            _content,
            grouping=grouping,
            background=background,
            limits=limits,
            images=images,
            on_error=on_error,
        )
        for shard in shards.to_pylist():
            before = len(rows)
            try:
                with ShardWriter(Location.of(output), shard["shard"]) as writer:
                    for piece in shard["pieces"]:
                        stored = _store_piece(
                            piece, writer=writer, hold=shard["whole_images"], read=read
                        )
                        rows.append({**stored, "peak_worker_gb": peak_gb()})
                entry = pa.Table.from_pylist(rows[before:], schema=STORED)
                write_entry(Location.of(output), entry_name(shard["shard"]), entry)
            except OSError as error:
                said = " ".join(str(error).split())
                fault = (
                    said
                    if isinstance(error, MachineError)
                    else f"{output}: cannot be written ({said})"
                )
                rows.append({"fault": fault, "peak_worker_gb": peak_gb()})
                break
    return pa.Table.from_pylist(rows, schema=STORED)


def _store_piece(
    piece: dict[str, Any],
    *,
    writer: "ShardWriter",
    hold: bool,
    read: Callable[..., Iterator[pa.Table]],
) -> dict[str, Any]:
    """One image's share of a shard; with `hold` nothing is written before all of it was read."""
    stored: dict[str, Any] = {
        **{name: piece[name] for name in ("image_id", "first_group", "num_groups")},
        "groups": [],
        "moments": [],
    }
    hashes, held, nodata = [], [], piece["header"]["nodata"]
    bad_groups: dict[int, SourceError] = {}
    start = writer.position
    try:
        for groups in read(piece, bad_groups=bad_groups):
            names = ("group", "valid_height_px", "valid_width_px")
            numbers = zip(*(groups[name].to_pylist() for name in names), strict=True)
            for square, (group, height, width) in zip(squares_of(groups), numbers, strict=True):
                stored["groups"].append(group)
                stored["moments"].append(measure(square[:height, :width], nodata=nodata).row())
                hashes.append(group_hash(group, height, width, square))
            held.append(groups)
            if not hold:
                writer.write(held.pop())
        for error in list(bad_groups.values())[-1:]:
            _raise_fault(error, uri=piece["uri"])
    except WriteError:
        raise
    except (SourceError, OSError, MemoryError) as error:
        if not hold:
            writer.discard()
        _raise_fault(error, uri=piece["uri"])
        return {**stored, "groups": [], "moments": [], **_told(error)}
    for groups in held:
        writer.write(groups)
    return {
        **stored,
        "hashes": b"".join(hashes),
        "part": writer.part_since(start),
        "bad_groups": [{"group": group, **_told(bad_groups[group])} for group in bad_groups],
    }


def _raise_fault(error: BaseException, *, uri: str) -> None:
    """MachineError where not the source is to blame; reads through a local file to find out."""
    fault = fault_of(error, uri=uri)
    if fault:
        raise MachineError(fault) from error


def _told(error: BaseException) -> dict[str, str | None]:
    cause = error if isinstance(error, SourceError) else SourceError(str(error))
    return {"window": None if cause.window is None else str(cause.window), "cause": cause.cause}


def _content(
    piece: dict[str, Any],
    *,
    grouping: GroupingConfig,
    background: BackgroundConfig,
    limits: LimitsConfig,
    images: LastImage,
    on_error: str,
    bad_groups: dict[int, SourceError],
) -> Iterator[pa.Table]:
    """The piece's groups that hold something, a few at a time."""
    extract: Callable[..., pa.Table] = extract_groups
    if on_error == "quarantine_groups":
        extract = partial(extract_readable, bad_groups=bad_groups)
    planned = header_of(piece)
    side = grouping.group_side_px
    grid = grid_of(planned, side_px=side)
    most = max(1, READ_BYTES // group_bytes(planned, side_px=side))
    image = images.open(piece["uri"], level=planned.level, bands=grouping.bands, limits=limits)
    if repr(image.header) != repr(planned):  # repr: NaN nodata equals itself
        raise SourceError("changed while it was being preprocessed")
    tiles = {"tile_height_px": planned.tile_height_px, "tile_width_px": planned.tile_width_px}
    runs = grid.runs(piece["first_group"], piece["num_groups"], most=most)
    with open_mask(piece["image_id"], background=background, limits=limits) as mask:
        image.keep_tiles(kept_tiles(grid, **tiles))  # a mask that is opened takes the cache over
        for first, count in runs:
            rows = addresses(piece["image_id"], grid=grid, first=first, count=count)
            rows = leave_out_masked(rows, image=image, mask=mask, grid=grid, background=background)
            groups = extract(rows, image=image, grid=grid) if rows.num_rows else rows
            if groups.num_rows:
                groups = leave_out_background(groups, background=background, nodata=planned.nodata)
            if groups.num_rows:
                yield groups


class WriteError(OSError):
    """The output, not a source, refuses."""


class ShardWriter:
    """One Arrow IPC file: appears whole when the block ends, not at all if nothing was written."""

    def __init__(self, dataset: Location, shard: str) -> None:
        self._shard = shard
        self._pending = dataset.child(shard).writer()
        self._writer: Any = None
        self._discarded = False
        self.position = (0, 0)
        """Batches and bytes written so far."""

    def __enter__(self) -> "ShardWriter":
        self._draft = self._pending.__enter__()
        return self

    def write(self, groups: pa.Table) -> None:
        """One record batch a row, checksum added."""
        squares = squares_of(groups)
        checksums = pa.array([zlib.crc32(flat_bytes(square)) for square in squares], pa.uint32())
        named = groups.drop_columns("pixels").append_column("crc32", checksums)
        (rows,) = named.combine_chunks().to_batches()
        try:
            for place in range(rows.num_rows):
                # Taken, not sliced: a slice drags padding along, and sizes would differ.
                self._append(rows.take(pa.array([place])), squares[place : place + 1])
        except OSError as error:
            raise WriteError(f"{self._shard}: cannot be written ({error})") from error

    def _append(self, row: pa.RecordBatch, square: np.ndarray) -> None:
        if self._writer is None:
            _, side, _, bands = square.shape
            self._schema = group_schema(side_px=side, bands=bands, dtype=str(square.dtype))
            self._file = pa.OSFile(str(self._draft), "wb")
            self._writer = pa.ipc.new_file(self._file, self._schema)
        columns = [*row.columns, tensor_column(square)]
        batch = pa.RecordBatch.from_arrays(columns, schema=self._schema)
        self._writer.write_batch(batch)
        batches, start = self.position
        self.position = (batches + 1, self._file.tell())
        # The file's header goes out with the first batch.
        first = batches == 0
        self._last_bytes = (
            pa.ipc.get_record_batch_size(batch) if first else self.position[1] - start
        )

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
            self._file.close()
        if self._discarded:
            self._draft.unlink(missing_ok=True)
        self._pending.__exit__(*error)
