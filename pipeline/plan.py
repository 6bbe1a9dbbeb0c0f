"""Look at every image's header, then decide which shard holds which groups."""

import resource
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.config import GroupingConfig, LimitsConfig
from pipeline.grid import Grid
from pipeline.readers.faults import fault_of
from pipeline.readers.open import is_slide, open_image
from pipeline.readers.protocol import ImageHeader, SourceError
from pipeline.schema import shard_name
from pipeline.sources import SOURCES
from pipeline.storage import Location

MAX_GROUPS = 2**24  # an image's list of groups must stay a list that one process can hold
MAX_GROUP_BYTES = 2**30  # Arrow's 32-bit offsets end at 2 GiB a chunk

HEADER = pa.struct(
    [
        ("width_px", pa.int64()),
        ("height_px", pa.int64()),
        ("bands", pa.int32()),
        ("dtype", pa.string()),
        ("num_levels", pa.int32()),
        ("level", pa.int32()),
        ("tile_height_px", pa.int64()),
        ("tile_width_px", pa.int64()),
        ("nodata", pa.float64()),
        ("mpp_x", pa.float64()),
        ("mpp_y", pa.float64()),
        ("crs", pa.string()),
        ("transform", pa.list_(pa.float64())),
    ]
)
PROBED = pa.schema(
    [
        *SOURCES,
        pa.field("header", HEADER),  # null when the image cannot be opened
        pa.field("cause", pa.string()),
        pa.field("fault", pa.string()),  # of the machine or the store: ends the job
        pa.field("peak_worker_gb", pa.float64()),
    ]
)
PIECE = pa.struct(
    [
        ("image_id", pa.string()),
        ("uri", pa.string()),
        ("header", HEADER),
        ("first_group", pa.int32()),
        ("num_groups", pa.int32()),
    ]
)
SHARDS = pa.schema(
    [
        ("shard", pa.string()),
        ("whole_images", pa.bool_()),  # False: one of the shards of a single large image
        ("pieces", pa.list_(PIECE)),
    ]
)


def probe_images(images: pa.Table, *, grouping: GroupingConfig, limits: LimitsConfig) -> pa.Table:
    """Stage 1 of 5: images -> what their headers say.

    Takes    image_id, uri: string
    Gives    the same rows in the same order, plus header, or the cause why there is none
    Runs as  a task of one CPU; a batch of 16 images pays for the task's start
    Memory   one header; a remote slide is copied to the worker's disk while it is open
    Fails    never: a source that cannot be opened becomes a cause; where the machine or the store
             fails, the last row says so as `fault`, and the rows after it are missing
    """
    rows: list[dict[str, Any]] = []
    for row in images.to_pylist():
        header, cause, fault = None, None, None
        try:
            with open_image(
                row["uri"], level=grouping.level, bands=grouping.bands, limits=limits
            ) as image:
                _check_grid(image.header, grouping=grouping)
                header = asdict(image.header)
        except (SourceError, OSError, MemoryError) as error:
            cause = SourceError(str(error)).cause
            fault = fault_of(error, uri=row["uri"])
        probed = {"header": header, "cause": cause, "fault": fault, "peak_worker_gb": peak_gb()}
        rows.append({**row, **probed})
        if fault:
            break
    return pa.Table.from_pylist(rows, schema=PROBED)


def _check_grid(header: ImageHeader, *, grouping: GroupingConfig) -> None:
    num_groups = grid_of(header, side_px=grouping.group_side_px).num_groups
    if num_groups > MAX_GROUPS:
        raise SourceError(
            f"{header.width_px} x {header.height_px} px make {num_groups} groups of "
            f"{grouping.group_side_px} px, more than {MAX_GROUPS}: choose a larger group_side_px"
        )
    if group_bytes(header, side_px=grouping.group_side_px) > MAX_GROUP_BYTES:
        raise SourceError(
            f"a group of {grouping.group_side_px} px with {header.bands} bands of {header.dtype} "
            f"is over 1 GiB: choose a smaller group_side_px or fewer bands"
        )


def grid_of(header: ImageHeader, *, side_px: int) -> Grid:
    """The grid over an image."""
    return Grid(height_px=header.height_px, width_px=header.width_px, side_px=side_px)


def group_bytes(header: ImageHeader, *, side_px: int) -> int:
    """The bytes of one group's pixels."""
    return side_px * side_px * header.bands * np.dtype(header.dtype).itemsize


def header_of(row: dict[str, Any]) -> ImageHeader:
    """The header in a row of PROBED or in a piece."""
    fields = dict(row["header"])
    fields["transform"] = None if fields["transform"] is None else tuple(fields["transform"])
    return ImageHeader(**fields)


def plan_shards(probed: pa.Table, *, side_px: int, shard_mb: int, writer: str) -> pa.Table:
    """Stage 2 of 5: headers -> shards, each one task's work.

    Takes    PROBED, any order; images without a header are passed over
    Gives    SHARDS; a shard holds one pixel format: whole images in the order of their ids up to
             shard_mb, or one of the equal pieces of a single image that is larger than that
    Runs as  plain Python in the driver, over headers only
    Memory   about 300 bytes a piece
    Fails    never; the plan depends on the rows, not on their order or on the workers
    """
    rows = sorted((r for r in probed.to_pylist() if r["header"]), key=lambda r: r["image_id"])
    formats = sorted({_format(row) for row in rows})
    numbered = (
        shard
        for kept in formats
        for shard in _pack(
            [row for row in rows if _format(row) == kept], side_px=side_px, shard_mb=shard_mb
        )
    )
    name = partial(shard_name, writer=writer)
    return pa.Table.from_pylist(
        [{"shard": name(number), **shard} for number, shard in enumerate(numbered)], schema=SHARDS
    )


def _format(row: dict[str, Any]) -> tuple[int, str]:
    return row["header"]["bands"], row["header"]["dtype"]


def _pack(rows: list[dict[str, Any]], *, side_px: int, shard_mb: int) -> Iterator[dict[str, Any]]:
    """Fill shards in the order of rows; the last one may stay small."""
    together: list[dict[str, Any]] = []
    room = 0
    for row in rows:
        header = header_of(row)
        total = grid_of(header, side_px=side_px).num_groups
        most = max(1, shard_mb * 1_000_000 // group_bytes(header, side_px=side_px))
        if total > most:
            for first in range(0, total, most):
                count = min(most, total - first)
                yield {"whole_images": False, "pieces": [_piece(row, first, count)]}
            continue
        if together and room < total:
            yield {"whole_images": True, "pieces": together}
            together = []
        room = (room if together else most) - total
        together.append(_piece(row, 0, total))
    if together:
        yield {"whole_images": True, "pieces": together}


def _piece(row: dict[str, Any], first: int, count: int) -> dict[str, Any]:
    kept = {name: row[name] for name in ("image_id", "uri", "header")}
    return {**kept, "first_group": first, "num_groups": count}


def store_tasks(shards: pa.Table) -> list[pa.Table]:
    """One shard a task; those of one remote slide share a task, because they share its copy."""
    starts, last = [], None
    for place, shard in enumerate(shards.to_pylist()):
        uri = shard["pieces"][0]["uri"]
        copied = uri if is_slide(uri) and not Location.of(uri).is_local else None
        if copied is None or copied != last:
            starts.append(place)
        last = copied
    ends = [*starts[1:], shards.num_rows]
    return [shards.slice(start, end - start) for start, end in zip(starts, ends, strict=True)]


def peak_gb() -> float:
    """The largest resident memory this process has had so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
