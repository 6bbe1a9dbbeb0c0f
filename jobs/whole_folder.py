"""A folder of results that appears whole or not at all, on a disk or in a bucket."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from jobs.errors import UserError
from pipeline.storage import Location, explained


def require_new(place: Location, *, name: str) -> None:
    """Refuse a place where something lies already; `name` is the setting that says the place."""
    if place.exists():
        raise UserError(f"{place} exists: choose another {name}, or delete it")


@contextmanager
def drafted(place: Location, *, last: str) -> Iterator[Path]:
    """A local draft that becomes the folder `place` when the block ends well.

    In a bucket, where nothing can be renamed, the file `last` comes last: without it the folder is
    not whole.
    """
    if not place.is_local:
        with tempfile.TemporaryDirectory(prefix="farreach-") as temporary:
            draft = Path(temporary)
            yield draft
            files = sorted(path for path in draft.rglob("*") if path.is_file())
            for path in sorted(files, key=lambda path: path == draft / last):
                place.child(path.relative_to(draft).as_posix()).write_bytes(path.read_bytes())
        return
    final = Path(place.path)
    draft = final.with_name(f".{final.name}.partial-{uuid4().hex[:8]}")
    with explained(place):
        draft.mkdir(parents=True)
    try:
        yield draft
        with explained(place):
            draft.rename(final)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
