"""Where a dataset comes to be: claimed, filled, and published by one last file.

    unfinished.json   first: says that what lies here is ours and not whole
    shards, tables    under the names of a generation that no finished dataset uses
    dataset.json      last: from this moment on the dataset exists (or the old one is replaced)
    clean-up          the former generation's files, then unfinished.json

A crash at any point leaves the old dataset, the new one, or none that looks whole; the next run
cleans up. Only files with names of ours are ever deleted.
"""

import hashlib
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from pipeline.schema import GENERATIONS, INFO, OUR_FILES, PARTIAL, UNFINISHED, table_name
from pipeline.storage import Location


@dataclass(frozen=True, kw_only=True)
class Claim:
    """The right to write one generation of a dataset."""

    place: Location
    generation: str

    def write_table(self, kind: str, table: pa.Table) -> dict[str, str]:
        """Store a table; gives its name and checksum for dataset.json."""
        sink = io.BytesIO()
        parquet.write_table(table, sink, compression="zstd")
        content = sink.getvalue()
        name = table_name(kind, generation=self.generation)
        self.place.child(name).write_bytes(content)
        return {"name": name, "sha256": hashlib.sha256(content).hexdigest()}

    def remove(self, names: set[str]) -> None:
        """Delete files of this generation."""
        for name in sorted(names):
            self.place.child(name).delete()

    def publish(self, info: dict[str, Any]) -> None:
        """The last step; afterwards only this generation is left."""
        content = json.dumps({**info, "generation": self.generation}, indent=2) + "\n"
        self.place.child(INFO).write_bytes(content.encode())
        _clean(self.place, keep=self.generation)
        self.place.child(UNFINISHED).delete()


def check_output(output: str, *, if_exists: str) -> Location:
    """The output's place, free to be written; ValueError when something is in the way."""
    place = Location.of(output)
    if place.is_local and place.exists() and not place.is_folder():
        raise ValueError(f"{place}: is a file; output names a folder")
    names = set(place.files())
    if INFO in names:
        if if_exists == "refuse":
            raise ValueError(
                f"{place}: holds a dataset already; take another output, or if_exists=replace"
            )
    elif names and UNFINISHED not in names:
        raise ValueError(
            f"{place}: is not empty and holds no dataset ({min(names)}); take another output"
        )
    return place


@contextmanager
def claim(place: Location) -> Iterator[Claim]:
    """Write a dataset inside this block; left without `publish`, what was written is removed."""
    current = _current(place)
    generation = next(name for name in GENERATIONS if name != current)
    note = {"what": "farreach preprocess has not finished here; its next run cleans up"}
    place.child(UNFINISHED).write_bytes(json.dumps(note).encode())
    _clean(place, keep=current)
    try:
        yield Claim(place=place, generation=generation)
    except BaseException:
        # A task that still runs may add a shard after this: unfinished.json stays for the next run.
        _clean(place, keep=current)
        raise


def _current(place: Location) -> str | None:
    """The generation of the finished dataset, if there is one."""
    if not place.child(INFO).exists():
        return None
    try:
        generation = json.loads(place.child(INFO).read_bytes())["generation"]
    except (ValueError, KeyError, TypeError):
        generation = None
    if generation not in GENERATIONS:
        raise ValueError(f"{place}: dataset.json is damaged or not ours; delete the folder first")
    return generation


def _clean(place: Location, *, keep: str | None) -> None:
    """Delete our files of every generation but one."""
    for name in place.files():
        if PARTIAL.fullmatch(name) or (OUR_FILES.fullmatch(name) and _generation(name) != keep):
            place.child(name).delete()


def _generation(name: str) -> str:
    if name.startswith("shards/"):
        return name.removeprefix("shards/")[0]
    return "b" if name.endswith("-b.parquet") else "a"
