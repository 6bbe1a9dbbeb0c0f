"""One job at a time at an output or a run: a lease that a thread renews while its job lives.

    lease-000001.json     the first holder: who it is, and a beat that rises while it lives
    lease-000002.json     whoever took over when the first had died; the highest number rules

A lease is created where there is none of its number, so of several jobs that want it one gets it.
Whether its holder lives is seen in the process table of the same machine; from elsewhere by
watching its beat for a while: clocks are never compared. A job that was only slow finds out that it
has lost its lease before it publishes.
"""

import json
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from pipeline.storage import Location

RENEW_S = 10.0
SILENT_S = 60.0
"""A lease whose beat has not risen for so long may be taken over."""
WATCH_S = 1.0
AT_WORK = "another job is at work here"
LEASE = re.compile(r"lease-(\d{6,9})\.json")

_alive_here: set[str] = set()
"""Owners in this process: it may hold one lease while it has lost another."""


class Lease:
    """The right to write at an output, for as long as nobody takes it over."""

    def __init__(self, place: Location, *, term: int) -> None:
        self._place = place
        self._term = term
        self._file = place.child(f"lease-{term:06d}.json")
        self._owner = uuid4().hex
        self._beat = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)
        self.lost = False
        """Whether a renewal has found another job's lease."""

    def take(self) -> None:
        """Begin to hold it; FileExistsError when somebody else was faster."""
        self._file.create_bytes(self._content())
        _alive_here.add(self._owner)
        self._thread.start()

    def check(self) -> None:
        """Still ours; ValueError once another job has taken the place over.

        Costs a listing and a small file.
        """
        self.lost = self.lost or self._is_lost()
        self.heed()

    def heed(self) -> None:
        """The same by what the last renewal has found; costs nothing."""
        if self.lost:
            raise ValueError(
                f"{self._place}: another job has taken over here, so this one has ended and "
                f"published nothing; run one job at a time, or give each a place of its own"
            )

    def release(self) -> None:
        """Let the next job begin at once."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()
        _alive_here.discard(self._owner)
        with suppress(OSError):
            if self._is_ours():
                self._file.delete()
            if self._place.is_local:
                Path(self._place.path).rmdir()  # only where nothing else came to lie

    def _content(self) -> bytes:
        said = {
            "owner": self._owner,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "machine": _machine(),
            "started": _started(os.getpid()),
            "beat": self._beat,
        }
        return json.dumps(said).encode()

    def _is_lost(self) -> bool:
        return max(_terms(self._place), default=None) != self._term or not self._is_ours()

    def _is_ours(self) -> bool:
        """Whether the file is: terms begin anew after a job that has ended well."""
        return _told(_read(self._file)).get("owner") == self._owner

    def _renew(self) -> None:
        while not self._ended.wait(RENEW_S):
            # A store that does not answer now may answer the next time.
            with suppress(OSError):
                if self._is_lost():
                    self.lost = True
                    return
                self._beat += 1
                self._file.write_bytes(self._content())


Tell = Callable[[str], None]


@contextmanager
def hold(place: Location, *, tell: Tell | None = None) -> Iterator[Lease]:
    """Hold the lease of an output inside this block; ValueError when another job is at work.

    `tell` hears why it takes so long where a former holder cannot be seen from here.
    """
    terms = _terms(place)
    if terms:
        _refuse_the_living(place, term=max(terms), tell=tell)
    lease = Lease(place, term=max(terms, default=0) + 1)
    try:
        lease.take()
    except FileExistsError as error:
        raise _taken(place, {}) from error
    try:
        if max(_terms(place), default=None) != lease._term:
            raise _taken(place, {})
        for term in terms:
            place.child(f"lease-{term:06d}.json").delete()
        yield lease
    finally:
        lease.release()


def _terms(place: Location) -> list[int]:
    found = (LEASE.fullmatch(name) for name in place.files_here())
    return [int(match[1]) for match in found if match]


def _refuse_the_living(place: Location, *, term: int, tell: Tell | None) -> None:
    file = place.child(f"lease-{term:06d}.json")
    content = _read(file)
    holder = _told(content)
    alive = _is_alive(holder)
    if alive is None:
        if tell:
            tell(
                f"a job on {holder.get('host')} was at work here: watching for {SILENT_S:g} s "
                "whether it still is"
            )
        alive = _beats(file, content)
    if alive:
        raise _taken(place, holder)


def _taken(place: Location, holder: dict[str, Any]) -> ValueError:
    who = f" (process {holder.get('pid')} on {holder.get('host')})" if holder else ""
    return ValueError(f"{place}: {AT_WORK}{who}; wait for it, or give this one a place of its own")


def _read(file: Location) -> bytes | None:
    try:
        return file.read_bytes()
    except FileNotFoundError:
        return None


def _told(content: bytes | None) -> dict[str, Any]:
    with suppress(ValueError, TypeError):
        told = json.loads(content or b"")
        if isinstance(told, dict):
            return told
    return {}


def _is_alive(holder: dict[str, Any]) -> bool | None:
    """Whether the holder's process lives; None where it cannot be seen from here."""
    pid = holder.get("pid")
    if holder.get("machine") != _machine() or not isinstance(pid, int):
        return None
    if pid == os.getpid():
        return holder.get("owner") in _alive_here
    started = _started(pid)
    return started is not None and started == holder.get("started")


def _beats(file: Location, content: bytes | None) -> bool:
    """Whether a lease changes while it is watched; one that is gone does not."""
    until = time.monotonic() + SILENT_S
    while time.monotonic() < until:
        now = _read(file)
        if now is None or now != content:
            return now is not None
        time.sleep(WATCH_S)
    return False


def _machine() -> str:
    """The same for two processes that see each other's ids: host, boot and process table."""
    seen = [socket.gethostname()]
    with suppress(OSError):
        seen.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        seen.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(seen)


def _started(pid: int) -> str | None:
    """When a living process began, in ticks, so that a reused id is told; None when there is none.

    Where there is no /proc it is "" for every living process.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "" if not Path("/proc/self/stat").exists() and _answers(pid) else None
    return None if fields[0] in "ZX" else fields[19]


def _answers(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
