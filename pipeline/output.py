"""Where a dataset comes to be: claimed, filled, and published by one last file.

    unfinished.json   first: says that what lies here is ours and not whole
    shards, tables    under the names of a generation that no finished dataset uses
    dataset.json      last: from this moment on the dataset exists (or the old one is replaced)
    clean-up          the former generation's files, then unfinished.json

A crash at any point leaves the old dataset, the new one, or none that looks whole; the next run
cleans up. Only files with names of ours are ever deleted.

unfinished.json names the job that may publish. Nobody can tell a crashed job from a slow one, so a
second job takes over by writing its own name; the first one then finds that out before it publishes
and fails, with its shards under names of its own. There is no lock: two jobs that reach the same
instant between that check and dataset.json are not kept apart.
"""

import hashlib
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import pyarrow as pa
from pyarrow import parquet

from pipeline.schema import GENERATIONS, INFO, OUR_FILES, PARTIAL, UNFINISHED, table_name
from pipeline.storage import Location


@dataclass(frozen=True, kw_only=True)
class Claim:
    """The right to write one generation of a dataset."""

    place: Location
    generation: str
    job: str

    @property
    def writer(self) -> str:
        """What the names of this job's shards begin with."""
        return f"{self.generation}-{self.job}"

    def check(self) -> None:
        """Still ours; ValueError once another job has taken the output over."""
        if not self._is_ours():
            raise ValueError(
                f"{self.place}: another preprocess job has taken over this output, so nothing was "
                f"published; run one job at a time, or give each its own output"
            )

    def _is_ours(self) -> bool:
        try:
            return json.loads(self.place.child(UNFINISHED).read_bytes())["job"] == self.job
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return False

    def write_table(self, kind: str, table: pa.Table) -> dict[str, str]:
        """Store a table; gives its name and checksum for dataset.json."""
        sink = io.BytesIO()
        parquet.write_table(table, sink, compression="zstd")
        content = sink.getvalue()
        name = table_name(kind, generation=self.generation)
        self.check()
        self.place.child(name).write_bytes(content)
        return {"name": name, "sha256": hashlib.sha256(content).hexdigest()}

    def remove(self, names: set[str]) -> None:
        """Delete files of this generation."""
        for name in sorted(names):
            self.place.child(name).delete()

    def publish(self, info: dict[str, Any]) -> None:
        """The last step; afterwards only this generation is left."""
        content = json.dumps({**info, "generation": self.generation}, indent=2) + "\n"
        self.check()
        self.place.child(INFO).write_bytes(content.encode())
        _clean(self.place, keep=self.generation, writer=self.writer)
        if self._is_ours():
            self.place.child(UNFINISHED).delete()

    def discard(self) -> None:
        """Delete what this job wrote, and nothing of a job that took over."""
        ours = self._is_ours()
        tables = {table_name(kind, generation=self.generation) for kind in ("images", "quarantine")}
        for name in self.place.files():
            shard = name.startswith((f"shards/{self.writer}-", f"shards/.{self.writer}-"))
            if shard or (ours and name in tables):
                self.place.child(name).delete()


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
    claimed = Claim(place=place, generation=generation, job=uuid4().hex[:12])
    what = "farreach preprocess has not finished here; its next run cleans up"
    place.child(UNFINISHED).write_bytes(json.dumps({"what": what, "job": claimed.job}).encode())
    _clean(place, keep=current)
    try:
        yield claimed
    except BaseException:
        # A task that still runs may add a shard after this: unfinished.json stays for the next run,
        # which also cleans up where the store is what failed.
        with suppress(OSError):
            claimed.discard()
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


def _clean(place: Location, *, keep: str | None, writer: str = "") -> None:
    """Delete our files of every generation but one, and of that the shards of other writers."""
    for name in place.files():
        stray = name.startswith("shards/") and not name.startswith(f"shards/{writer}")
        ours = OUR_FILES.fullmatch(name) and (stray or _generation(name) != keep)
        if PARTIAL.fullmatch(name) or ours:
            place.child(name).delete()


def _generation(name: str) -> str:
    if name.startswith("shards/"):
        return name.removeprefix("shards/")[0]
    return "b" if name.endswith("-b.parquet") else "a"
