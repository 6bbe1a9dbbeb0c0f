"""The order in which an epoch reads our shards, and reading ahead in that order by threads."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from jobs.ingest_epochs import Delivery
from pipeline.dataset import Dataset
from pipeline.order import epoch_permutation
from pipeline.records import ImageRecord, Part

Task = TypeVar("Task")
AHEAD = 2
"""Batches a thread may be ahead of who uses them."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """Neighbouring groups of one image that lie in one shard."""

    record: ImageRecord
    part: Part
    first: int
    """Group of the image, counted among those stored."""
    before: int
    """Groups of the image that lie in shards before this one."""
    count: int

    @property
    def start_byte(self) -> int:
        """Of the first group's record batch."""
        return self.part.start_byte + (self.first - self.before) * self.group_bytes

    @property
    def group_bytes(self) -> int:
        """Of a record batch."""
        return self.part.num_bytes // self.part.num_batches

    @property
    def num_bytes(self) -> int:
        """Of all record batches."""
        return self.count * self.group_bytes

    @property
    def images(self) -> list[str]:
        """The image of every group."""
        return [self.record.image_id] * self.count

    @property
    def groups(self) -> tuple[int, ...]:
        """Their numbers in the grid."""
        return self.record.groups[self.first : self.first + self.count]


def runs_of(dataset: Dataset, epoch: int, *, range_groups: int) -> Iterator[Run]:
    """All groups of an epoch in the order of training: images are shuffled, groups are not."""
    records = dataset.images()
    order = epoch_permutation(
        digest=dataset.info.digest, seed=0, epoch=epoch, num_images=len(records)
    )
    for record in map(records.__getitem__, order):
        before = 0
        for part in record.parts:
            after = before + part.num_batches
            for first in range(before, after, range_groups):
                count = min(range_groups, after - first)
                yield Run(record=record, part=part, first=first, before=before, count=count)
            before = after


def read_ahead(
    tasks: Iterable[Task], read: Callable[[Task], Delivery], *, workers: int
) -> Iterator[Delivery]:
    """What is read, in the order of the tasks; AHEAD x workers of them are under way or wait."""
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[Future[Delivery]] = deque()
        for task in tasks:
            waiting.append(pool.submit(read, task))
            if len(waiting) > AHEAD * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
