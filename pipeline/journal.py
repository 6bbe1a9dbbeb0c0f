"""What a job has done so far, so that it can go on when it was killed: small Arrow files.

    journal/<job>-probed-<hash>.arrow     the headers of one task's images
    journal/<job>-<content>.arrow         the index of the shard shards/<job>-<content>.arrow

The worker that did the work writes the entry, whole or not at all, right after the shard. An entry
is only believed where its sources still have the size and tag that it was made from.
"""

import hashlib
import io
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa

from pipeline.schema import JOURNAL_FOLDER
from pipeline.storage import Location

READ_AT_ONCE = 16


def probed_name(job: str, images: pa.Table) -> str:
    """The entry of a probe task."""
    named = "\n".join(images["image_id"].to_pylist())
    return f"{JOURNAL_FOLDER}/{job}-probed-{hashlib.sha256(named.encode()).hexdigest()[:16]}.arrow"


def write_entry(place: Location, name: str, rows: pa.Table) -> None:
    """Store what a task gave."""
    sink = io.BytesIO()
    with pa.ipc.new_file(sink, rows.schema) as writer:
        writer.write_table(rows)
    place.child(name).write_bytes(sink.getvalue())


def read_entries(place: Location, names: list[str], *, schema: pa.Schema) -> dict[str, pa.Table]:
    """Entries by name; those that are damaged or of another schema are passed over."""

    def read(name: str) -> pa.Table | None:
        try:
            rows = pa.ipc.open_file(place.child(name).read_bytes()).read_all()
            rows.validate(full=True)
        except (pa.ArrowException, FileNotFoundError):
            return None
        return rows if rows.schema.equals(schema) else None

    with ThreadPoolExecutor(READ_AT_ONCE) as pool:
        found = dict(zip(names, pool.map(read, names), strict=True))
    return {name: rows for name, rows in found.items() if rows is not None}
