"""Write shards: the task that reads a piece of the plan, keeps its content and stores it."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pyarrow as pa

from pipeline.background import leave_out_background
from pipeline.config import BackgroundConfig, GroupingConfig, LimitsConfig
from pipeline.extract import Square, extract_groups
from pipeline.grid import kept_tiles
from pipeline.journal import write_entry
from pipeline.masks import leave_out_masked, open_mask
from pipeline.plan import grid_of, group_bytes, header_of, peak_gb
from pipeline.readers.faults import fault_of
from pipeline.readers.open import LastImage
from pipeline.readers.protocol import MachineError, SourceError
from pipeline.schema import PART, entry_name
from pipeline.shard_writer import ShardWriter, WriteError
from pipeline.statistics import measure
from pipeline.storage import Location

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
    Runs as  a task of one CPU a shard: extract and measure, leave out background, write; all shards
             of a remote slide are one task, which copies it to the worker's disk once
    Memory   one group, up to MAX_KEPT_BYTES of decoded tiles that groups share, and shard_mb where
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
                with ShardWriter(
                    Location.of(output),
                    shard["shard"],
                    planned_bytes=_planned_bytes(shard["pieces"], side_px=grouping.group_side_px),
                ) as writer:
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


def _planned_bytes(pieces: list[dict[str, Any]], *, side_px: int) -> int:
    """Of the pixels of a shard: all its images have one pixel format."""
    num_groups = sum(piece["num_groups"] for piece in pieces)
    return num_groups * group_bytes(header_of(pieces[0]), side_px=side_px)


def _store_piece(
    piece: dict[str, Any],
    *,
    writer: ShardWriter,
    hold: bool,
    read: Callable[..., Iterator[Square]],
) -> dict[str, Any]:
    """One image's share of a shard; with `hold` nothing is written before all of it was read."""
    image_id = piece["image_id"]
    stored: dict[str, Any] = {
        **{name: piece[name] for name in ("image_id", "first_group", "num_groups")},
        "groups": [],
        "moments": [],
    }
    hashes, held = [], []
    bad_groups: dict[int, SourceError] = {}
    start = writer.position
    try:
        for square in read(piece, bad_groups=bad_groups):
            stored["groups"].append(square.group)
            stored["moments"].append(measure(square.valid, nodata=piece["header"]["nodata"]).row())
            hashes.append(square.hash())
            if hold:
                held.append(replace(square, pixels=square.pixels.copy()))
            else:
                writer.write(image_id, square)
        for error in list(bad_groups.values())[-1:]:
            _raise_fault(error, uri=piece["uri"])
    except WriteError:
        raise
    except (SourceError, OSError, MemoryError) as error:
        if not hold:
            writer.discard()
        _raise_fault(error, uri=piece["uri"])
        return {**stored, "groups": [], "moments": [], **_told(error)}
    for square in held:
        writer.write(image_id, square)
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
) -> Iterator[Square]:
    """The piece's groups that hold something, one at a time."""
    planned = header_of(piece)
    grid = grid_of(planned, side_px=grouping.group_side_px)
    image = images.open(piece["uri"], level=planned.level, bands=grouping.bands, limits=limits)
    if repr(image.header) != repr(planned):  # repr: NaN nodata equals itself
        raise SourceError("changed while it was being preprocessed")
    tiles = {"tile_height_px": planned.tile_height_px, "tile_width_px": planned.tile_width_px}
    groups: Iterable[int] = range(piece["first_group"], piece["first_group"] + piece["num_groups"])
    with open_mask(piece["image_id"], background=background, limits=limits) as mask:
        image.keep_tiles(kept_tiles(grid, **tiles))  # a mask that is opened takes the cache over
        groups = leave_out_masked(groups, image=image, mask=mask, grid=grid, background=background)
        bad = bad_groups if on_error == "quarantine_groups" else None
        squares = extract_groups(groups, image=image, grid=grid, bad_groups=bad)
        yield from leave_out_background(squares, background=background, nodata=planned.nodata)
