"""The finished dataset that lies at an output before a job begins, seen by the job."""

import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa

from pipeline.records import DatasetInfo, stored_table
from pipeline.schema import IMAGES, INFO, SCHEMA_VERSION
from pipeline.storage import Location


@dataclass(frozen=True, kw_only=True)
class Current:
    """A finished dataset; of another schema version when `info` is None."""

    place: Location
    info: DatasetInfo | None

    @property
    def job(self) -> str | None:
        """Which job published it."""
        return None if self.info is None else self.info.job

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """Its images, labels aside; ValueError when they cannot be had."""
        return self._table("images").select(IMAGES.names).to_pylist()

    @cached_property
    def quarantine(self) -> list[dict[str, Any]]:
        """What could not be read when it was made."""
        return self._table("quarantine").to_pylist()

    def files(self) -> set[str] | None:
        """The files it consists of; None where nobody can tell."""
        if self.info is None:
            return None
        try:
            shards = {part["shard"] for row in self.rows for part in row["parts"]}
        except (ValueError, FileNotFoundError):
            return None
        return shards | {table["name"] for table in self.info.tables.values()}

    def _table(self, kind: str) -> pa.Table:
        if self.info is None:
            raise ValueError(
                f"{self.place}: of another schema version; preprocess it again (if_exists=replace)"
            )
        return stored_table(self.place, self.info, kind)


def read_current(place: Location) -> Current | None:
    """What lies there, if anything; ValueError when it is no dataset of ours."""
    if INFO not in place.files_here():
        return None
    content = place.child(INFO).read_bytes()
    try:
        version = json.loads(content)["schema_version"]
    except (ValueError, KeyError, TypeError):
        version = None
    if not isinstance(version, int):
        raise ValueError(f"{place}: dataset.json is damaged or not ours; delete the folder first")
    if version != SCHEMA_VERSION:
        return Current(place=place, info=None)
    return Current(place=place, info=DatasetInfo.from_json(content, of=str(place)))
