"""What a restarted driver must know of the run that it continues.

storage_path/NAME/run.json     the MLflow run's id, the resolved configuration, finished or not
"""

import json
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.storage import Location

RECORD = "run.json"


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """One training, however often it is broken off."""

    run_id: str
    """MLflow's; empty as long as nobody has seen the run."""
    config: dict[str, Any]
    """The resolved settings, with dotted names."""
    digest: str
    """Of the dataset."""
    finished: bool = False
    token: str = ""
    """What the MLflow run is found by that a killed driver has made and could not note."""

    def write(self, folder: str) -> None:
        """Put the record into the run's folder, whole or not at all."""
        place = Location.of(folder).child(RECORD)
        place.write_bytes(json.dumps(asdict(self), indent=2).encode())


def read_record(folder: str) -> RunRecord | None:
    """The record of a run that was started in this folder, or None."""
    place = Location.of(folder).child(RECORD)
    if not place.exists():
        return None
    try:
        found = RunRecord(**json.loads(place.read_bytes()))
        if not (isinstance(found.config, dict) and isinstance(found.digest, str)):
            raise TypeError("its config or its digest is none")
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{place} is damaged ({error}); choose another name") from error
    return found
