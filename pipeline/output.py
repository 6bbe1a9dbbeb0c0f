"""Where a dataset comes to be: claimed, filled, and published by one last file.

    lease-*.json      first: no other job works here
    unfinished.json   which job it is; what lies here is ours and not whole
    shards, journal   under names of this job: killed, it goes on from them when it is begun again
    tables            under names of this job
    dataset.json      last: from this moment on the dataset exists (or the old one is replaced)
    clean-up          what dataset.json does not need; then unfinished.json; then the lease

A crash at any point leaves the old dataset, the new one, or none that looks whole. Only files with
names of ours are ever deleted.
"""

import hashlib
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow as pa
from pyarrow import parquet

from pipeline.content_settings import difference, settings_in
from pipeline.current import Current, read_current
from pipeline.lease import LEASE, Lease, hold
from pipeline.schema import (
    INFO,
    JOB,
    JOURNAL_FOLDER,
    OUR_FILES,
    PARTIAL,
    SHARDS_FOLDER,
    UNFINISHED,
    table_name,
)
from pipeline.storage import Location


@dataclass(frozen=True, kw_only=True)
class Unfinished:
    """unfinished.json: a job, and the settings that its shards depend on."""

    job: str
    settings: dict[str, Any]
    published: str | None
    """The job that was killed after it had published, where this one only ends its work."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """The right to write a dataset, under the names of one job."""

    place: Location
    job: str
    lease: Lease
    sizes: dict[str, int]
    """What this job had written before it was killed, in bytes."""

    def check(self) -> None:
        """Still ours; ValueError once another job has taken the output over."""
        self.lease.check()

    def write_table(self, kind: str, table: pa.Table) -> dict[str, str]:
        """Store a table; gives its name and checksum for dataset.json."""
        sink = io.BytesIO()
        parquet.write_table(table, sink, compression="zstd")
        content = sink.getvalue()
        name = table_name(kind, job=self.job)
        self.check()
        self.place.child(name).write_bytes(content)
        return {"name": name, "sha256": hashlib.sha256(content).hexdigest()}

    def publish(self, info: dict[str, Any], *, shards: set[str]) -> None:
        """The last step; afterwards nothing is left but this dataset."""
        content = json.dumps({**info, "job": self.job}, indent=2) + "\n"
        self.check()
        self.place.child(INFO).write_bytes(content.encode())
        _sweep(self.place, keep=shards | {table["name"] for table in info["tables"].values()})
        self.place.child(UNFINISHED).delete()

    def forget(self) -> None:
        """Leave nothing of this job behind: nobody goes on with it."""
        if not self.lease.lost:
            self.place.delete_below(_of_job(self.place.files(), self.job))
            self.place.child(UNFINISHED).delete()


@dataclass(frozen=True, kw_only=True)
class Start:
    """What a job finds at its output before it begins."""

    place: Location
    settings: dict[str, Any]
    if_exists: str
    current: Current | None
    published: str | None
    """The job that was killed after it had published: this one ends its work."""


def look_at_output(output: str, *, settings: dict[str, Any], if_exists: str) -> Start:
    """An output that is free to be written; ValueError when something is in the way."""
    place = Location.of(output)
    current = read_current(place)
    published = None if if_exists == "append" else _published_before(current, settings=settings)
    if place.is_local and place.exists() and not place.is_folder():
        raise ValueError(f"{place}: is a file; output names a folder")
    if current is None:
        _check_free(place)
    elif if_exists == "refuse" and published is None:
        raise ValueError(
            f"{place}: holds a dataset already; take another output, "
            f"or if_exists=append or if_exists=replace"
        )
    return Start(
        place=place, settings=settings, if_exists=if_exists, current=current, published=published
    )


def _check_free(place: Location) -> None:
    names = place.files()
    foreign = [name for name in names if not (PARTIAL.fullmatch(name) or LEASE.fullmatch(name))]
    if foreign and UNFINISHED not in names:
        raise ValueError(
            f"{place}: is not empty and holds no dataset ({foreign[0]}); take another output"
        )


def _published_before(current: Current | None, *, settings: dict[str, Any]) -> str | None:
    if current is None or current.info is None or settings_in(current.info.settings) != settings:
        return None
    unfinished = _unfinished(current.place)
    if unfinished is None:
        return current.job if any(map(LEASE.fullmatch, current.place.files_here())) else None
    return current.job if current.job in (unfinished.job, unfinished.published) else None


@contextmanager
def claim(start: Start) -> Iterator[Claim]:
    """Write a dataset inside this block; left without `publish`, the same job may go on later.

    ValueError when another job is at work, or when one of other settings has not finished.
    """
    place = start.place
    with hold(place) as lease:
        if read_current(place) != start.current:
            raise ValueError(f"{place}: another preprocess job has just finished here; begin again")
        listing = place.listing()
        names = sorted(listing)
        job = _job_to_go_on_with(start, names) or _new_job(start)
        ours = _of_job(names, job)
        needed = set() if start.current is None else start.current.files()
        _sweep(place, keep=ours | (set(names) if needed is None else needed))
        sizes = {name: int(listing[name]["size"]) for name in ours}
        claimed = Claim(place=place, job=job, lease=lease, sizes=sizes)
        try:
            yield claimed
        except ValueError:
            with suppress(OSError):
                # headers alone are soon read again
                if not any(map(_is_work, _of_job(place.files(), job))):
                    claimed.forget()
            raise
        finally:
            _remove_empty_folders(place)


def _new_job(start: Start) -> str:
    job = uuid4().hex[:12]
    said = {
        "what": "farreach preprocess has not finished here; the same command goes on with it",
        "job": job,
        "settings": start.settings,
        "published": start.published,
    }
    start.place.child(UNFINISHED).write_bytes(json.dumps(said, indent=2).encode())
    return job


def _job_to_go_on_with(start: Start, names: list[str]) -> str | None:
    """The unfinished job of these settings, if there is one."""
    unfinished, current = _unfinished(start.place), start.current
    if unfinished is None or (current is not None and unfinished.job == current.job):
        return None
    if unfinished.settings == start.settings:
        return unfinished.job
    if start.if_exists == "replace" or not any(map(_is_work, _of_job(names, unfinished.job))):
        return None
    remedy = (
        "start over with if_exists=replace"
        if current is None
        else f"give up its work by deleting {UNFINISHED}"
    )
    raise ValueError(
        f"{start.place}: a job of other settings has not finished here: "
        f"{difference(unfinished.settings, start.settings)}; take its settings, or {remedy}"
    )


def _unfinished(place: Location) -> Unfinished | None:
    """None also where a crash has left half of it."""
    try:
        told = json.loads(place.child(UNFINISHED).read_bytes())
        unfinished = Unfinished(
            job=told["job"], settings=dict(told["settings"]), published=told["published"]
        )
        return unfinished if JOB.fullmatch(unfinished.job) else None
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _of_job(names: list[str], job: str) -> set[str]:
    begins = (f"{SHARDS_FOLDER}/{job}-", f"{JOURNAL_FOLDER}/{job}-")
    return {name for name in names if name.startswith(begins) and OUR_FILES.fullmatch(name)}


def _is_work(name: str) -> bool:
    return "-probed-" not in name


def _sweep(place: Location, *, keep: set[str]) -> None:
    """Delete our files but these, and every draft."""
    place.delete_below(
        name
        for name in place.files()
        if PARTIAL.fullmatch(name) or (OUR_FILES.fullmatch(name) and name not in keep)
    )


def _remove_empty_folders(place: Location) -> None:
    if not place.is_local:
        return
    for folder in (JOURNAL_FOLDER, SHARDS_FOLDER):
        with suppress(OSError):
            (Path(place.path) / folder).rmdir()
