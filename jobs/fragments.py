"""The tensors of a checkpoint as its files hold them, whatever they were cut into."""

import tempfile
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from jobs.engine_state import WEIGHT
from jobs.manifests import Manifest, PartEntry
from jobs.parts import BUFFER, Key, checksum, read_header
from pipeline.patience import patiently
from pipeline.storage import Location


class Files:
    """The parts of one checkpoint on this machine's disk: local ones as they are, others fetched.

    A file that is afar is fetched when it is first wanted, and goes when the block ends.
    """

    def __init__(self, folder: Location, *, patience_s: float) -> None:
        self.folder = folder
        self.patience_s = patience_s
        self._stack = ExitStack()
        self._fetched: dict[str, Path] = {}

    def __enter__(self) -> "Files":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def path(self, name: str) -> Path:
        """Where the file lies now."""
        place = self.folder.child(name)
        if place.is_local:
            return Path(place.path)
        if name not in self._fetched:
            draft = tempfile.TemporaryDirectory(prefix="farreach-part-")
            file = Path(self._stack.enter_context(draft)) / "part"
            self.patient(lambda: place.download(file))
            self._fetched[name] = file
        return self._fetched[name]

    def patient(self, attempt: Callable[[], Any]) -> Any:
        """Wait for a store that is away."""
        return patiently(
            attempt,
            patience_s=self.patience_s,
            setting="record.patience_s",
            faults=ConnectionError,
        )

    def header(self, name: str) -> dict[Key, int]:
        """The pieces in a file and their numbers of elements, without fetching it."""
        try:
            return self.patient(lambda: read_header(self.folder.child(name)))
        except ValueError as error:
            raise ValueError(f"{name} {error}") from error

    def verify(self, parts: Iterable[PartEntry]) -> None:
        """Raise ValueError, naming the file, where one of them is not what was written.

        A store that does not answer says nothing about its files: TimeoutError.
        """
        for part in parts:
            try:
                size = self.patient(self.folder.child(part.name).size)
                if size != part.bytes:
                    raise ValueError(f"{part.name} is {size} bytes long instead of {part.bytes}")
                if checksum(self.path(part.name)) != part.blake3:
                    raise ValueError(f"{part.name} has a wrong checksum")
            except FileNotFoundError as error:
                raise ValueError(f"{part.name} is missing") from error
            except OSError as error:
                if isinstance(error, TimeoutError):
                    raise
                raise ValueError(f"{part.name} cannot be read ({error})") from error


@dataclass(frozen=True, kw_only=True)
class Run:
    """Elements [start, start + numel) of something, and the file that has them."""

    start: int
    numel: int
    part: str
    key: str


class Fragments:
    """Fills tensors from files; which pieces these hold is known beforehand."""

    def __init__(self, files: Files, manifest: Manifest) -> None:
        """Read what every file holds; ValueError where that is not the whole state."""
        self.files = files
        self.runs: dict[tuple[str, str], list[Run]] = {}
        for part in manifest.parts:
            for key, numel in files.header(part.name).items():
                run = Run(start=key.start, numel=numel, part=part.name, key=str(key))
                self.runs.setdefault((key.kind, key.name), []).append(run)
        for kind in (WEIGHT, *manifest.states):
            for name, elements in manifest.elements.items():
                self._require(kind, name, elements)
        for name, elements in manifest.buffers.items():
            self._require(BUFFER, name, elements)
        self._open: dict[str, Any] = {}

    def _require(self, kind: str, name: str, elements: int) -> None:
        """Every element once: neither a gap nor an overlap."""
        runs = sorted(self.runs.get((kind, name), ()), key=lambda run: run.start)
        end = 0
        for run in runs:
            if run.start != end:
                break
            end += run.numel
        else:
            if end == elements:
                return
        raise ValueError(f"its files do not hold the {elements} elements of {kind} {name}")

    def fill(self, kind: str, name: str, start: int, into: Tensor) -> None:
        """Copy elements [start, start + len(into)) into a flat tensor."""
        end = start + into.numel()
        for run in self.runs[kind, name]:
            first, last = max(start, run.start), min(end, run.start + run.numel)
            if first < last:
                found = self._slice(run)[first - run.start : last - run.start]
                into[first - start : last - start].copy_(found)

    def fill_whole(self, name: str, into: Tensor) -> None:
        """Copy a buffer, which is in one file as it is."""
        into.view(-1).copy_(self._slice(self.runs[BUFFER, name][0])[:])

    def _slice(self, run: Run) -> Any:
        try:
            if run.part not in self._open:
                self._open[run.part] = safe_open(self.files.path(run.part), framework="pt")
            return self._open[run.part].get_slice(run.key)
        except SafetensorError as error:
            raise ValueError(f"{run.part} cannot be read: {error}") from error
