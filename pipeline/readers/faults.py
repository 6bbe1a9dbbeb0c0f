"""Tell a damaged source from a machine or a store that fails: only the source is quarantined.

A file that is missing, refused or undecodable is the user's to mend, and the job goes on without
it. A full disk or a dead endpoint would make good images look bad, one after the other.
"""

import errno
import os
from collections.abc import Iterator
from functools import lru_cache

from pipeline.readers.protocol import MachineError
from pipeline.storage import Location

MACHINE_ERRNOS = {
    getattr(errno, name)
    for name in ("ENOSPC", "EDQUOT", "EMFILE", "ENFILE", "ENOMEM", "EIO", "ESTALE", "EROFS")
    if hasattr(errno, name)
}
BLOCK_BYTES = 1 << 22


def fault_of(error: BaseException, *, uri: str) -> str | None:
    """One line that names the file where the machine or the store is at fault, else None."""
    told = told_fault(error)
    if told is not None:
        return _line(told, uri=uri)
    try:
        _read_through(Location.of(uri))
    except OSError as refused:
        # A decoder written in C says only that it could not read, and never why.
        return _line(refused, uri=uri) if _is_fault(refused) else None
    return None


def told_fault(error: BaseException) -> BaseException | None:
    """The cause that says itself that the machine or the store is at fault, without a look."""
    return next((cause for cause in _chain(error) if _is_fault(cause)), None)


def _is_fault(error: BaseException) -> bool:
    if isinstance(error, MachineError | ConnectionError | TimeoutError | MemoryError):
        return True
    return isinstance(error, OSError) and error.errno in MACHINE_ERRNOS


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _read_through(place: Location) -> None:
    """Read a local file's bytes; a remote one's trouble is known without."""
    if not place.is_local or (os.path.exists(place.path) and not os.path.isfile(place.path)):
        return  # reading a pipe would never end
    status = os.stat(place.path)
    _read_once(place.path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=256)
def _read_once(path: str, size: int, mtime_ns: int) -> None:
    """A large image may have thousands of damaged pieces: a process reads it once for all."""
    with open(path, "rb", buffering=0) as source:
        while source.read(BLOCK_BYTES):
            pass


def _line(error: BaseException, *, uri: str) -> str:
    said = " ".join(str(error).split())[:300] or type(error).__name__
    return said if uri in said else f"{uri}: {said}"
