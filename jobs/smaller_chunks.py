"""Out of memory in a step: the next attempt lets fewer groups through the model at once."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch

from fit_model.bounded.config import BoundedConfig
from jobs.assignment import Assignment
from jobs.errors import MachineFault
from jobs.events import Event
from jobs.lessons import read_lessons
from jobs.runner import root_cause

CPU_ALLOCATOR = "can't allocate memory"
"""What torch says in a RuntimeError where it gets no memory of the host."""


class OutOfMemory(MachineFault):
    """A step did not fit; smaller chunks of groups may."""

    def __init__(self, line: str, step: int) -> None:
        # a worker's error travels to the driver as its arguments
        super().__init__(line, step)
        self.line, self.step = line, step

    def __str__(self) -> str:
        return self.line


@contextmanager
def memory_named(*, step: int, rank: int) -> Iterator[None]:
    """Want of memory in this block, on a device or the host, is told as OutOfMemory."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        known = isinstance(error, torch.OutOfMemoryError | MemoryError)
        if not known and CPU_ALLOCATOR not in str(error):
            raise
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise OutOfMemory(
            f"worker {rank} ran out of memory in step {step + 1} ({said}): take "
            "bounded.groups_a_chunk, or a smaller one, or more batch.accumulation",
            step=step,
        ) from error


@dataclass(frozen=True, kw_only=True)
class SmallerChunks:
    """What the next attempt is told after a failure; None where nothing smaller is left."""

    folder: str
    """Of the run, which keeps the choice."""
    begin: Callable[[], BoundedConfig | None]
    """Chooses chunks where all groups went at once."""
    tell: Callable[[Event], None]

    def __call__(self, error: BaseException, assignment: Assignment) -> Assignment | None:
        """Fewer groups at once, after want of memory."""
        cause = root_cause(error)
        if not isinstance(cause, OutOfMemory):
            return None
        before = assignment.bounded
        after = self.begin() if before is None else halved(before)
        if after is None:
            return None
        replace(read_lessons(self.folder), bounded=after).write(self.folder)
        was = "all groups" if before is None else str(before.groups_a_chunk)
        self.tell(
            Event(
                kind="out of memory",
                step=cause.step,
                text=f"{cause.line.split(': take')[0]}; going on from the newest checkpoint with "
                f"bounded.groups_a_chunk {after.groups_a_chunk} (until now {was})",
                facts={
                    "from": None if before is None else before.groups_a_chunk,
                    "to": after.groups_a_chunk,
                },
            )
        )
        return replace(assignment, bounded=after)


def within_lessons(
    configured: BoundedConfig | None, folder: str, *, zero_stage: int
) -> BoundedConfig | None:
    """What is configured, with no more groups at once than the run in this folder could hold."""
    learned = read_lessons(folder).bounded
    # spread weights go through whole only, and the lesson was another stage's
    if learned is None or zero_stage == 3:
        return configured
    if configured is None:
        return learned
    count = min(configured.groups_a_chunk, learned.groups_a_chunk)
    return replace(configured, groups_a_chunk=count)


def halved(bounded: BoundedConfig) -> BoundedConfig | None:
    """Half as many groups at once; None below one."""
    count = bounded.groups_a_chunk // 2
    return replace(bounded, groups_a_chunk=count) if count else None
