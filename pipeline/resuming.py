"""What a job that was killed has done already: its journal, believed where it still holds.

Everything is told from listings and from the journal's entries, small files: one a shard, and a few
thousand of headers however many images there are. No source is opened.
"""

from typing import Any

import pyarrow as pa

from pipeline.config import LimitsConfig, PreprocessConfig
from pipeline.journal import read_entries
from pipeline.output import Claim
from pipeline.plan import NAMED_BY, PROBED, ShardNames, header_of, pieces_of
from pipeline.readers.protocol import SourceError, check_header
from pipeline.schema import JOURNAL_FOLDER, entry_name
from pipeline.store import STORED


def probed_before(claimed: Claim, images: pa.Table, *, limits: LimitsConfig) -> pa.Table:
    """PROBED of images whose headers were read and whose sources have not changed since.

    What could not be opened is not among them: it may have been mended without changing.
    """
    names = [name for name in claimed.sizes if name.startswith(f"{JOURNAL_FOLDER}/")]
    entries = read_entries(
        claimed.place, [name for name in names if "-probed-" in name], schema=PROBED
    )
    sources = {row["image_id"]: row for row in images.to_pylist()}
    found = {}
    for entry in entries.values():
        for row in entry.to_pylist():
            source = sources.get(row["image_id"])
            if source and _is_unchanged(row, source) and _may_be_read(row, limits=limits):
                found[row["image_id"]] = {**row, **source}
    return pa.Table.from_pylist([found[image] for image in sorted(found)], schema=PROBED)


def _is_unchanged(row: dict[str, Any], source: dict[str, Any]) -> bool:
    known = source["source_bytes"] is not None
    return known and all(row[name] == source[name] for name in ("source_bytes", "source_tag"))


def _may_be_read(row: dict[str, Any], *, limits: LimitsConfig) -> bool:
    """Whether there is a header, within limits that may have become narrower."""
    try:
        if row["header"]:
            check_header(header_of(row), limits=limits)
    except SourceError:
        return False
    return row["header"] is not None


def stored_before(
    claimed: Claim, probed: pa.Table, *, names: ShardNames, config: PreprocessConfig
) -> list[dict[str, Any]]:
    """Rows of STORED of the shards that are there and that the same sources would give again."""
    side_px, shard_mb = config.grouping.group_side_px, config.shard_mb
    entries = read_entries(
        claimed.place,
        [
            name
            for name in claimed.sizes
            if name.startswith(f"{JOURNAL_FOLDER}/") and "-probed-" not in name
        ],
        schema=STORED,
    )
    if not entries:
        return []
    sources = {row["image_id"]: row for row in probed.to_pylist() if row["header"]}
    rows: list[dict[str, Any]] = []
    covered: set[tuple[str, int]] = set()
    for name in sorted(entries):
        pieces = [{**sources.get(row["image_id"], {}), **row} for row in entries[name].to_pylist()]
        places = {(piece["image_id"], piece["first_group"]) for piece in pieces}
        planned = all(
            _is_planned(piece, side_px=side_px, shard_mb=shard_mb)
            and _is_dealt_with(piece, on_error=config.on_error)
            for piece in pieces
        )
        if planned and not places & covered and _is_there(name, pieces, names, claimed.sizes):
            rows += [{field: piece[field] for field in STORED.names} for piece in pieces]
            covered |= places
    return rows


def _is_planned(piece: dict[str, Any], *, side_px: int, shard_mb: int) -> bool:
    """Whether the image still is there, and is cut into pieces like this one."""
    if piece.get("header") is None:
        return False
    cut = pieces_of(header_of(piece), side_px=side_px, shard_mb=shard_mb)
    return cut.get(piece["first_group"]) == piece["num_groups"]


def _is_dealt_with(piece: dict[str, Any], *, on_error: str) -> bool:
    """Whether damage, where there was any, would be put aside in the same way now."""
    if on_error == "quarantine_groups":
        return piece["cause"] is None
    return not piece["bad_groups"]


def _is_there(
    entry: str, pieces: list[dict[str, Any]], names: ShardNames, sizes: dict[str, int]
) -> bool:
    """Whether the entry's shard is named as its pieces would be now, and lies there in its length.

    After a power cut a file may have its name and not its content.
    """
    shard = names.of([{field: piece[field] for field in NAMED_BY} for piece in pieces])
    parts = [piece["part"] for piece in pieces if piece["part"] is not None]
    return entry == entry_name(shard) and all(
        part["shard"] == shard and part["start_byte"] + part["num_bytes"] <= sizes.get(shard, 0)
        for part in parts
    )
