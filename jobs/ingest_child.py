"""One process of `farreach bench ingest`: writes a system's copy, or reads an epoch.

Run      PYTHON -m jobs.ingest_child TASK ANSWER; both are JSON files, in any environment
"""

import json
import os
import re
import sys
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jobs.ingest_epochs import Source, Timed, timed
from jobs.ingest_systems import SYSTEMS, System

MOST = 200
"""Characters of an error that a table can hold."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a process is for."""

    system: str
    action: str
    """One of ACTIONS."""
    source: Source


def write(system: System, source: Source) -> None:
    """The copy; on the disk when this ends."""
    folder = Path(source.copy)
    folder.mkdir(parents=True)
    system.write(source.dataset, folder)
    os.sync()


def warm(system: System, source: Source) -> Timed:
    """The second epoch of two: files are in memory, workers have started; the first is checked."""
    with system.opened(source) as epoch:
        first = timed(epoch, 0, check=True)
        second = timed(epoch, 1)
    return Timed(seconds=second.seconds, arrived=first.arrived | second.arrived)


def cold(system: System, source: Source) -> Timed:
    """The first epoch after the files were forgotten; the start of workers counts."""
    forget(Path(source.copy if system.copies else source.dataset))
    return fresh(system, source)


def fresh(system: System, source: Source) -> Timed:
    """The first epoch, with empty caches; the start of workers counts."""
    with system.opened(source) as epoch:
        return timed(epoch, 0)


def forget(folder: Path) -> None:
    """Take files out of the page cache."""
    for path in (each for each in folder.rglob("*") if each.is_file()):
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def cause(error: Exception) -> str:
    """One line; torch hands on what its workers raise as the text of a traceback."""
    told = re.findall(r"^\w+Error: .+", str(error), re.MULTILINE)
    first = (str(error).strip().splitlines() or [""])[0]
    return (told or [f"{type(error).__name__}: {first}"])[-1][:MOST]


ACTIONS: dict[str, Callable[[System, Source], Timed | None]] = {
    "write": write,
    "warm": warm,
    "cold": cold,
    "s3": fresh,
}


def main(task: Path, answer: Path) -> None:
    """Do it; what goes wrong is an answer too."""
    given: dict[str, Any] = json.loads(task.read_text(encoding="utf-8"))
    source = Source(**given["source"])
    try:
        found = ACTIONS[given["action"]](SYSTEMS[given["system"]], source)
        said: dict[str, Any] = {"found": None if found is None else asdict(found)}
    except Exception as error:
        traceback.print_exc()
        said = {"failed": cause(error)}
    answer.write_text(json.dumps(said), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
