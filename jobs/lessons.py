"""What a training has learned about running itself, and keeps however it is broken off.

    storage_path/NAME/guard.json     {around: [[first, end], ...], bounded: {groups_a_chunk, ...}}

The first worker writes it before it goes back to a checkpoint, the driver between two attempts:
never both at once.
"""

import json
from dataclasses import asdict, dataclass

from fit_model.bounded.config import BoundedConfig
from pipeline.storage import Location

FILE = "guard.json"


@dataclass(frozen=True, kw_only=True)
class Lessons:
    """Nothing, at the beginning."""

    around: tuple[tuple[int, int], ...] = ()
    """Steps to go around, from the first to before the end, for every rollback."""
    bounded: BoundedConfig | None = None
    """How groups go through the model since memory ran out; None for as configured."""

    def write(self, folder: str) -> None:
        """Put them into the run's folder, whole or not at all."""
        place = Location.of(folder).child(FILE)
        place.write_bytes(json.dumps(asdict(self), indent=2).encode())


def read_lessons(folder: str) -> Lessons:
    """Of the run in this folder; none for one that has not had any."""
    place = Location.of(folder).child(FILE)
    if not place.exists():
        return Lessons()
    try:
        found = json.loads(place.read_bytes())
        bounded = found["bounded"]
        return Lessons(
            around=tuple((int(first), int(end)) for first, end in found["around"]),
            bounded=None if bounded is None else BoundedConfig(**bounded),
        )
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"{place} is damaged ({error}); choose another name") from error
