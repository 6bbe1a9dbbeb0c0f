"""Look at every image's header, then decide which shard holds which groups."""

import hashlib
import json
import resource
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.config import BackgroundConfig, GroupingConfig, LimitsConfig
from pipeline.grid import Grid, cut
from pipeline.journal import probed_name, write_entry
from pipeline.masks import mask_of
from pipeline.readers.faults import fault_of
from pipeline.readers.levels import level_of
from pipeline.readers.open import LastImage, is_copied, is_sequential
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
NAMED_BY = ("image_id", "source_bytes", "source_tag", "first_group", "num_groups")
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
        ("source_bytes", pa.int64()),
        ("source_tag", pa.string()),
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


def probe_images(
    images: pa.Table,
    *,
    grouping: GroupingConfig,
    limits: LimitsConfig,
    background: BackgroundConfig | None = None,
) -> pa.Table:
    """Stage 1 of 5: images -> what their headers say.

    Takes    image_id, uri: string
    Gives    the same rows in the same order, plus header, or the cause why there is none
    Runs as  a task of one CPU; a batch of 16 images pays for the task's start
    Memory   one header; a remote slide is copied to the worker's disk while it is open
    Fails    never: a source that cannot be opened, or has no mask, becomes a cause; where the
             machine or the store fails, the last row says so as `fault`, and the rows after it are
             missing
    """
    rows: list[dict[str, Any]] = []
    with LastImage() as opened:
        for row in images.to_pylist():
            header, cause, fault = None, None, None
            try:
                header = asdict(_header(opened, row["uri"], grouping=grouping, limits=limits))
                if background is not None and background.masks is not None:
                    mask_of(row["image_id"], folder=background.masks)
            except (SourceError, OSError, MemoryError) as error:
                header, cause = None, SourceError(str(error)).cause
                fault = fault_of(error, uri=row["uri"])
            probed = {"header": header, "cause": cause, "fault": fault, "peak_worker_gb": peak_gb()}
            rows.append({**row, **probed})
            if fault:
                break
    return pa.Table.from_pylist(rows, schema=PROBED)


def _header(
    opened: LastImage, uri: str, *, grouping: GroupingConfig, limits: LimitsConfig
) -> ImageHeader:
    """Of the level that is meant."""
    image = opened.open(uri, level=grouping.level, bands=grouping.bands, limits=limits)
    if (meant := level_of(image, grouping=grouping)) != grouping.level:
        image = opened.open(uri, level=meant, bands=grouping.bands, limits=limits)
    _check_grid(image.header, grouping=grouping)
    return image.header


def probe_and_note(
    images: pa.Table,
    *,
    output: str,
    job: str,
    grouping: GroupingConfig,
    limits: LimitsConfig,
    background: BackgroundConfig,
) -> pa.Table:
    """probe_images, and what it gives also becomes an entry of the journal."""
    probed = probe_images(images, grouping=grouping, limits=limits, background=background)
    if probed["fault"].null_count < probed.num_rows:
        return probed
    try:
        write_entry(Location.of(output), probed_name(job, images), probed)
    except OSError as error:
        fault = f"{output}: cannot be written ({' '.join(str(error).split())})"
        return pa.Table.from_pylist([{"fault": fault, "peak_worker_gb": peak_gb()}], schema=PROBED)
    return probed


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


@dataclass(frozen=True, kw_only=True)
class ShardNames:
    """Names a shard by the job and by what the shard will hold."""

    job: str
    settings: dict[str, Any]
    """All that decides, beside the sources, what is stored."""

    def of(self, pieces: list[dict[str, Any]]) -> str:
        """Changes with the settings, and with a source's id, size or tag, but not with its uri."""
        held = [[piece[name] for name in NAMED_BY] for piece in pieces]
        content = json.dumps([self.settings, held], sort_keys=True)
        return shard_name(self.job, hashlib.sha256(content.encode()).hexdigest()[:16])


def plan_shards(
    probed: pa.Table,
    *,
    side_px: int,
    shard_mb: int,
    names: ShardNames,
    stored: Collection[tuple[str, int]] = (),
) -> pa.Table:
    """Stage 2 of 5: headers -> shards, each one task's work.

    Takes    PROBED, any order; images without a header are passed over
    Gives    SHARDS; a shard holds one pixel format: whole images in the order of their ids up to
             shard_mb, or one of the pieces of a single image that is larger than that; pieces in
             `stored`, as (image_id, first group), are there already
    Runs as  plain Python in the driver, over headers only
    Memory   about 300 bytes a piece
    Fails    never; the plan depends on the rows, not on their order or on the workers
    """
    rows = sorted((r for r in probed.to_pylist() if r["header"]), key=lambda r: r["image_id"])
    formats = sorted({_format(row) for row in rows})
    packed = (
        shard
        for kept in formats
        for shard in _pack(
            [row for row in rows if _format(row) == kept],
            side_px=side_px,
            shard_mb=shard_mb,
            stored=stored,
        )
    )
    return pa.Table.from_pylist(
        [{"shard": names.of(shard["pieces"]), **shard} for shard in packed], schema=SHARDS
    )


def _format(row: dict[str, Any]) -> tuple[int, str]:
    return row["header"]["bands"], row["header"]["dtype"]


def pieces_of(header: ImageHeader, *, side_px: int, shard_mb: int) -> dict[int, int]:
    """First group -> number of groups of every piece of an image: one where it fits a shard."""
    grid = grid_of(header, side_px=side_px)
    most = _most(header, side_px=side_px, shard_mb=shard_mb)
    if grid.num_groups <= most:
        return {0: grid.num_groups}
    tile = {"tile_height_px": header.tile_height_px, "tile_width_px": header.tile_width_px}
    return dict(cut(grid, most=most, **tile))


def _most(header: ImageHeader, *, side_px: int, shard_mb: int) -> int:
    """Groups a shard."""
    return max(1, shard_mb * 1_000_000 // group_bytes(header, side_px=side_px))


def _pack(
    rows: list[dict[str, Any]],
    *,
    side_px: int,
    shard_mb: int,
    stored: Collection[tuple[str, int]],
) -> Iterator[dict[str, Any]]:
    """Fill shards in the order of rows; the last one may stay small."""
    together: list[dict[str, Any]] = []
    room = 0
    for row in rows:
        header = header_of(row)
        pieces = pieces_of(header, side_px=side_px, shard_mb=shard_mb)
        missing = [first for first in pieces if (row["image_id"], first) not in stored]
        if len(pieces) > 1:
            for first in missing:
                yield {"whole_images": False, "pieces": [_piece(row, first, pieces[first])]}
            continue
        if not missing:
            continue
        total, most = pieces[0], _most(header, side_px=side_px, shard_mb=shard_mb)
        if together and room < total:
            yield {"whole_images": True, "pieces": together}
            together = []
        room = (room if together else most) - total
        together.append(_piece(row, 0, total))
    if together:
        yield {"whole_images": True, "pieces": together}


def _piece(row: dict[str, Any], first: int, count: int) -> dict[str, Any]:
    kept = {name: row[name] for name in (*SOURCES.names, "header")}
    return {**kept, "first_group": first, "num_groups": count}


def store_tasks(shards: pa.Table) -> list[pa.Table]:
    """One shard a task; those of one image share a task where they share more than its pixels.

    That is the copy of a remote slide, and what was decoded before a row of a PNG or JPEG file.
    """
    starts, last = [], None
    for place, shard in enumerate(shards.to_pylist()):
        uri = shard["pieces"][0]["uri"]
        shared = uri if is_copied(uri) or is_sequential(uri) else None
        if shared is None or shared != last:
            starts.append(place)
        last = shared
    ends = [*starts[1:], shards.num_rows]
    return [shards.slice(start, end - start) for start, end in zip(starts, ends, strict=True)]


def peak_gb() -> float:
    """The largest resident memory this process has had so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
