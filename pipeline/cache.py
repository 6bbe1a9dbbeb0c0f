"""What has been read from afar, kept on a node's disk for all its workers.

    FOLDER/
      space             bytes that all entries take together; its lock guards what comes and goes
      3f/lock           held by whoever fetches an entry of this shelf
      3f/3f9a...        an entry: crc32 of the content (4 bytes, little-endian), the content
      3f/3f9a...partial one that is being written, or was when its writer died

An entry is whole or not there, and names are hashes, so nothing leads out of the folder. What has
not been used for longest goes when the limit is reached. Locks are those of the kernel (flock): a
process that dies leaves none behind.
"""

import contextlib
import fcntl
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
from zlib_ng.zlib_ng import crc32

HEADER_BYTES = 4
PARTIAL = ".partial"
ROOM_SHARE = 0.95
"""What of the limit is left full when entries go: looking for the oldest ones takes a while."""


@dataclass(frozen=True, kw_only=True)
class CacheConfig:
    """Where each node keeps what it has read, and how much of it."""

    folder: str
    """On a disk of the node; all its workers and jobs may share one."""
    limit_gb: float

    def __post_init__(self) -> None:
        if not 0.0 < self.limit_gb < float("inf"):
            raise ValueError(f"reading.cache.limit_gb {self.limit_gb} must be more than 0")
        if not os.path.isabs(os.path.expanduser(self.folder)):
            raise ValueError(
                f"reading.cache.folder {self.folder!r} must be an absolute path: workers may have "
                "another working folder"
            )


class RangeCache:
    """Keeps ranges of bytes; safe to use from several threads and processes.

    Never holds more than the limit, but for what is being written at the moment. A disk that is
    full or fails keeps nothing, and reading goes on without.
    """

    def __init__(self, config: CacheConfig) -> None:
        self.folder = Path(os.path.expanduser(config.folder))
        self.limit_bytes = int(config.limit_gb * 1e9)
        self._failed = False
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            with self._space() as space:
                space.taken = self._make_room(self.limit_bytes)
        except OSError as error:
            raise ValueError(
                f"reading.cache.folder {self.folder}: cannot be written ({error.strerror}); "
                "take another folder, or leave the cache out"
            ) from error

    def read(
        self,
        key: tuple[str | int, ...],
        size: int,
        fetch: Callable[[], pa.Buffer],
        *,
        fresh: bool = False,
    ) -> pa.Buffer:
        """The `size` bytes that `key` stands for: kept ones, else those that `fetch` gives.

        Several that want one range wait for the first of them to fetch it. With `fresh` what is
        kept is not trusted, and replaced. What is shorter than `size` is not kept.
        """
        name = hashlib.sha256(json.dumps(key).encode()).hexdigest()
        entry = self.folder / name[:2] / name
        if HEADER_BYTES + size > self.limit_bytes:
            return fetch()
        found = None if fresh else load(entry, size)
        if found is not None:
            return found
        with contextlib.ExitStack() as held:
            try:
                entry.parent.mkdir(exist_ok=True, mode=0o700)
                held.enter_context(locked(entry.with_name("lock")))
            except OSError as error:
                self._gave_up(error)
                return fetch()
            found = None if fresh else load(entry, size)
            if found is not None:
                return found
            content = fetch()
            if content.size == size:
                self._keep(entry, content)
            return content

    def _keep(self, entry: Path, content: pa.Buffer) -> None:
        draft = entry.with_name(entry.name + PARTIAL)
        try:
            with draft.open("wb") as file:
                file.write(crc32(content).to_bytes(HEADER_BYTES, "little"))
                file.write(content)
            size = draft.stat().st_size
            with self._space() as space:
                with contextlib.suppress(FileNotFoundError):
                    space.taken -= entry.lstat().st_size
                    entry.unlink()
                if space.taken + size > self.limit_bytes:
                    space.taken = self._make_room(int(self.limit_bytes * ROOM_SHARE) - size)
                # counted before it is there: a crash in between leaves too much counted, not less
                space.taken += size
                space.write()
                draft.replace(entry)
        except OSError as error:
            self._gave_up(error)
            with contextlib.suppress(OSError):
                draft.unlink(missing_ok=True)

    def _make_room(self, allowed: int) -> int:
        """Remove the entries used longest ago until `allowed` bytes are left; gives what is left.

        Also removes what a process that died was writing. The caller holds the lock of the space.
        """
        kept: list[tuple[int, int, Path]] = []
        for path in self.folder.glob("??/*"):
            if path.name.endswith(PARTIAL):
                remove_if_abandoned(path)
            elif path.name != "lock":
                with contextlib.suppress(FileNotFoundError):
                    state = path.lstat()
                    kept.append((state.st_mtime_ns, state.st_size, path))
        taken = sum(size for _, size, _ in kept)
        for _, size, path in sorted(kept):
            if taken <= allowed:
                break
            path.unlink(missing_ok=True)
            taken -= size
        return taken

    @contextlib.contextmanager
    def _space(self) -> Iterator["Space"]:
        with locked(self.folder / "space") as file:
            space = Space(file)
            if space.taken < 0:
                space.taken = self._make_room(self.limit_bytes)
            yield space
            space.write()

    def _gave_up(self, error: OSError) -> None:
        if not self._failed:
            logging.getLogger(__name__).warning(
                "%s: cannot keep what was read (%s); reading goes on without", self.folder, error
            )
        self._failed = True


class Space:
    """How many bytes all entries take together, as its file says; -1 where that cannot be read."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        try:
            self.taken = int(file.read())
        except ValueError:
            self.taken = -1

    def write(self) -> None:
        """Make the file say so."""
        self._file.seek(0)
        self._file.truncate()
        self._file.write(str(self.taken).encode())
        self._file.flush()


@contextlib.contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[BinaryIO]:
    """A file held by one thread of one process at a time; BlockingIOError rather than to wait."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield file


def remove_if_abandoned(draft: Path) -> None:
    """Remove what nobody is writing any more: a writer holds the lock of its shelf."""
    with (
        contextlib.suppress(BlockingIOError, FileNotFoundError),
        locked(draft.with_name("lock"), wait=False),
    ):
        draft.unlink()


def load(entry: Path, size: int) -> pa.Buffer | None:
    """What an entry holds, now the last to go; None where there is none, or a damaged one."""
    try:
        descriptor = os.open(entry, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb", buffering=0) as file:
            if os.fstat(descriptor).st_size != HEADER_BYTES + size:
                return None
            checksum = int.from_bytes(file.read(HEADER_BYTES), "little")
            content = np.empty(size, np.uint8)
            view, filled = content.data, 0
            while filled < size and (more := file.readinto(view[filled:])):
                filled += more
            os.utime(descriptor)
    except OSError:
        return None
    return pa.py_buffer(content) if filled == size and crc32(content) == checksum else None
