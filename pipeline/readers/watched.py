"""A remote raster as GDAL sees it: one file, and whatever its store answers is remembered."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rasterio.abc import FileContainer

from pipeline.storage import Location, explained


class WatchedFile(FileContainer):
    """The opener of one remote file.

    GDAL calls it from C, where an exception is dropped and the image looks damaged: so reads never
    raise here, they end short and leave the reason in `failure`.
    """

    def __init__(self, place: Location) -> None:
        self._place = place
        self.failure: OSError | None = None
        """The first thing that the store refused or failed to do."""

    def open(self, path: str, mode: str = "rb", **options: Any) -> "_WatchedStream":
        """The file, opened for reading whatever GDAL calls it."""
        with self.noted():
            return _WatchedStream(self._place.filesystem.open(self._place.path, "rb"), self)
        raise FileNotFoundError(path)

    def size(self, path: str) -> int:
        """Bytes; 0 when the store does not say."""
        with self.noted():
            return self._place.size()
        return 0

    def isfile(self, path: str) -> bool:
        """There is one file, and nobody asks for another."""
        return True

    def isdir(self, path: str) -> bool:
        """There is no folder."""
        return False

    def ls(self, path: str) -> list[str]:
        """Sidecar files are never looked for."""
        return []

    def mtime(self, path: str) -> int:
        """Unknown: an open file is not expected to change."""
        return 0

    def rm(self, path: str) -> None:
        """Sources are never deleted."""
        raise PermissionError(path)

    @contextmanager
    def noted(self) -> Iterator[Any]:
        """Keep what the store answers, as a line that names the file, instead of raising it."""
        try:
            with explained(self._place):
                yield
        except OSError as error:
            self.failure = self.failure or error


class _WatchedStream:
    """An open remote file for GDAL: read, seek, tell, close."""

    def __init__(self, source: Any, watch: WatchedFile) -> None:
        self._source = source
        self._watch = watch

    def read(self, size: int = -1) -> bytes:
        with self._watch.noted():
            return self._source.read(size)
        return b""

    def seek(self, offset: int, whence: int = 0) -> int:
        return int(self._source.seek(offset, whence))

    def tell(self) -> int:
        return int(self._source.tell())

    def close(self) -> None:
        self._source.close()

    def __enter__(self) -> "_WatchedStream":
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()
