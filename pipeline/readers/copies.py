"""Remote slides on the local disk: openslide opens files only, and a copy is dear."""

import shutil
import tempfile
from pathlib import Path, PurePosixPath
from typing import Any, Self

from pipeline.config import LimitsConfig
from pipeline.readers.protocol import MachineError, SourceError
from pipeline.storage import Location

SEVERAL_FILES = (".mrxs", ".vms", ".vmu")


class LocalCopies:
    """Keeps the last remote slide that a task opened, so that its shards share one download.

    One copy at a time: a worker's disk holds at most limits.max_download_gb of them. A copy goes
    when another slide is asked for, and at the end of the block; close a slide before the next.
    """

    def __init__(self) -> None:
        self._place: Location | None = None
        self._path = ""
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def path_of(self, place: Location, *, limits: LimitsConfig) -> str:
        """A path openslide can open: the file itself, or its copy."""
        if place.is_local:
            return place.path
        if place != self._place:
            self.close()
            self._fetch(place, limits=limits)
        return self._path

    def _fetch(self, place: Location, *, limits: LimitsConfig) -> None:
        suffix = PurePosixPath(place.path).suffix.lower()
        if suffix in SEVERAL_FILES:
            raise SourceError("a slide of several files can only be read from a local folder")
        size = place.size()
        if size > limits.max_download_gb * 1e9:
            raise SourceError(
                f"is {size / 1e9:.1f} GB, beyond limits.max_download_gb {limits.max_download_gb:g}"
            )
        try:
            self._folder = tempfile.TemporaryDirectory(prefix="farreach-")
        except OSError as error:
            raise MachineError(f"{place}: no folder for its local copy ({error})") from error
        copy = Path(self._folder.name) / f"slide{suffix}"
        with place.reader() as source, copy.open("wb") as target:
            shutil.copyfileobj(source, target, length=1 << 22)
        self._place, self._path = place, str(copy)

    def close(self) -> None:
        """Remove the copy."""
        if self._folder is not None:
            self._folder.cleanup()
        self._folder = self._place = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()
