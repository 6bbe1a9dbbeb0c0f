"""What makes a folder of parts a checkpoint: its manifest, written last and read with suspicion.

    manifest.json     {"blake3": of the rest, "version": 1, "step": ..., "parts": [...], ...}

A checkpoint may come from anywhere: no name in a manifest leads out of its folder, and nothing in
it can run code.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from blake3 import blake3

from jobs.engine_state import MOMENTS, STATES
from jobs.errors import UserError
from jobs.events import Event
from jobs.inbox import StepRecord
from pipeline.storage import Location

MANIFEST = "manifest.json"
VERSION = 1
MAX_MANIFEST_BYTES = 100_000_000
PART = re.compile(r"part-\d{5,}-of-\d{5,}-[0-9a-f]{8}\.safetensors")
CHECKSUM = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a training has come, in what JSON can hold."""

    step: int = 0
    """Finished steps."""
    records: tuple[StepRecord, ...] = ()
    """The newest steps' figures: a kill may come before the driver has logged them."""
    guard: Mapping[str, Any] = field(default_factory=dict)
    """What the guard of the steps remembers."""
    validation: Mapping[str, Any] = field(default_factory=dict)
    """What validation remembers."""
    damaged: tuple[int, ...] = ()
    """Images that were found damaged, as the feed numbers them."""

    @staticmethod
    def of(told: Mapping[str, Any]) -> "Progress":
        """From a manifest."""
        return Progress(
            step=told["step"],
            records=tuple(_record(each) for each in told["records"]),
            guard=dict(told["guard"]),
            validation=dict(told["validation"]),
            damaged=tuple(told["damaged"]),
        )


def _record(told: Mapping[str, Any]) -> StepRecord:
    events = tuple(Event(**each) for each in told.get("events", ()))
    return StepRecord(**{**told, "events": events})


@dataclass(frozen=True, kw_only=True)
class PartEntry:
    """One file of a checkpoint."""

    name: str
    bytes: int
    blake3: str

    def __post_init__(self) -> None:
        if not PART.fullmatch(self.name):
            raise ValueError(f"names a file {self.name!r}")
        if not isinstance(self.bytes, int) or self.bytes < 0:
            raise ValueError(f"says that {self.name} has {self.bytes!r} bytes")
        if not CHECKSUM.fullmatch(self.blake3):
            raise ValueError(f"says that {self.name} has the checksum {self.blake3!r}")


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """All that there is to know of a checkpoint beside its tensors."""

    step: int
    optimizer_steps: int
    states: tuple[str, ...]
    """What the optimizer keeps of every element of every parameter."""
    elements: Mapping[str, int]
    """Of every parameter, by name: a piece that is not there is missed."""
    buffers: Mapping[str, int]
    """The same of what the model keeps beside its parameters."""
    parts: tuple[PartEntry, ...]
    world_size: int
    """Workers that wrote it, at `zero_stage` and `precision`; others may read it."""
    zero_stage: int
    precision: str
    progress: Progress
    run_id: str
    config: Mapping[str, Any]
    """The resolved settings, with dotted names."""
    dataset_digest: str
    made_by: Mapping[str, str]
    """Versions of programs."""

    def __post_init__(self) -> None:
        counts = (self.step, self.optimizer_steps, *self.elements.values(), *self.buffers.values())
        if not all(isinstance(count, int) and count >= 0 for count in counts):
            raise ValueError("holds a count that is none")
        if self.progress.step != self.step:
            raise ValueError(f"is of step {self.step} and of step {self.progress.step}")
        if not self.parts:
            raise ValueError("names no files")
        needed = set(MOMENTS) if self.optimizer_steps else set()
        if not needed <= set(self.states) <= set(STATES):
            raise ValueError(f"names {', '.join(self.states)} as what the optimizer keeps")

    def write(self, folder: Location) -> None:
        """Put it beside its parts, whole or not at all: from now on this is a checkpoint.

        What would be too long to be read goes without its oldest records.
        """
        told = {"version": VERSION, **asdict(self)}
        signed = {"blake3": _checksum(told), **told}
        content = json.dumps(signed, indent=1).encode()
        records = self.progress.records
        if len(content) > MAX_MANIFEST_BYTES and records:
            newest = replace(self.progress, records=records[(len(records) + 1) // 2 :])
            replace(self, progress=newest).write(folder)
            return
        folder.child(MANIFEST).write_bytes(content)


def read_manifest(folder: Location) -> Manifest:
    """The manifest of a checkpoint.

    Raises ValueError, saying what is wrong, for one that is damaged, and UserError for one that
    another version of this program wrote.
    """
    place = folder.child(MANIFEST)
    if (size := place.size()) > MAX_MANIFEST_BYTES:
        raise ValueError(f"is {size} bytes long")
    try:
        told = json.loads(place.read_bytes())
        signed, version = told.pop("blake3"), told.pop("version")
    except (ValueError, RecursionError, AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"cannot be read ({type(error).__name__})") from error
    if version != VERSION:
        raise UserError(
            f"{place} has version {version!r}, and this program reads {VERSION}: go on with the "
            "program that wrote it, or choose another name"
        )
    if signed != _checksum({"version": version, **told}):
        raise ValueError("has a wrong checksum")
    return manifest_of(told)


def manifest_of(told: dict[str, Any]) -> Manifest:
    """From JSON; ValueError where that is no manifest."""
    try:
        return Manifest(
            **{
                **told,
                "states": tuple(told["states"]),
                "parts": tuple(PartEntry(**each) for each in told["parts"]),
                "progress": Progress.of(told["progress"]),
            }
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"is no manifest ({type(error).__name__}: {error})") from error


def _checksum(told: Mapping[str, Any]) -> str:
    return blake3(json.dumps(told, sort_keys=True).encode()).hexdigest()
