"""What happened to a training, beside its steps: restarts, skipped steps, a record that was away.

storage_path/NAME/events.jsonl      an event a line, oldest first; the driver writes it
"""

import contextlib
import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pipeline.storage import Location

EVENTS = "events.jsonl"
RESTARTS = ("continued", "worker lost", "worker hangs", "preempted")
"""Kinds of events after which steps were done again, or other processes did the next ones."""


@dataclass(frozen=True, kw_only=True)
class Event:
    """One thing that happened, as the record of the run tells it."""

    kind: str
    """Short and lasting, as "worker lost": people search for it."""
    step: int
    """Finished steps when it happened, as far as was known."""
    text: str
    """One line for people."""
    time_s: float = field(default_factory=time.time)
    """Since 1970."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """JSON-able details for programs."""


class Journal:
    """All events of a run, in its folder; a restart reads them back and goes on.

    Cost: S3 knows no appending, so there every event writes the whole file again.
    """

    def __init__(self, folder: str) -> None:
        self.place = Location.of(folder).child(EVENTS)
        self.events = read_events(folder)
        # what was cut off is not appended to: after a kill or a fault the file is written anew
        self._written = 0

    def add(self, event: Event) -> None:
        """Keep an event; where the folder does not answer, it is written with the next one."""
        self.events.append(event)
        try:
            self._write()
        except OSError:
            self._written = 0

    def _write(self) -> None:
        if self.place.is_local and self._written:
            with Path(self.place.path).open("a") as file:
                file.write("".join(map(_line, self.events[self._written :])))
        else:
            self.place.write_bytes("".join(map(_line, self.events)).encode())
        self._written = len(self.events)


def read_events(folder: str) -> list[Event]:
    """The events of a run, oldest first; a line that a kill has cut off is left out."""
    place = Location.of(folder).child(EVENTS)
    if not place.exists():
        return []
    events = []
    for line in place.read_bytes().decode(errors="replace").splitlines():
        with contextlib.suppress(json.JSONDecodeError, TypeError):
            events.append(Event(**json.loads(line)))
    return events


def num_restarts(events: Sequence[Event]) -> int:
    """How often the training was broken off and went on."""
    return sum(event.kind in RESTARTS for event in events)


def told_restarts(events: Sequence[Event]) -> str:
    """How often the training went on after what, in one line; empty when nothing broke it off."""
    counts = Counter(event.kind for event in events if event.kind in RESTARTS)
    if not counts:
        return ""
    kinds = ", ".join(f"{kind} {count}" for kind, count in counts.items())
    times = "once" if counts.total() == 1 else f"{counts.total()} times"
    return f"went on {times} after a break ({kinds}); every step is in the record once"


def _line(event: Event) -> str:
    return json.dumps(asdict(event), default=str) + "\n"
