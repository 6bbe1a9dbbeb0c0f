"""Which worker of a training holds what: images are dealt to group sets, groups inside a set.

rank 0 1 2 3, parallel.groups 2:  sets (0 1) (2 3)
images of a step                  dealt so that all sets have like numbers of groups
groups of an image                a run of them to each worker of the set
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fit_model.crew import Crew
from fit_model.parallel.config import ParallelConfig
from fit_model.parallel.crew import GroupCrew
from fit_model.parallel.shares import shares
from pipeline.dataset import ImageRecord

UNITS = {"autoregressive": "rows"}
"""What a model that reads in order does not divide; all others take groups as they come."""


@dataclass(frozen=True, kw_only=True)
class Seat:
    """A worker's place among all workers."""

    set: int = 0
    num_sets: int = 1
    worker: int = 0
    """Inside the set."""
    groups: int = 1
    """Workers of a set."""
    unit: str = "groups"

    @classmethod
    def of(cls, rank: int, *, num_workers: int, parallel: ParallelConfig, face: Any) -> "Seat":
        """Neighbouring ranks make a set, as in fit_model.parallel.crew."""
        number, worker = divmod(rank, parallel.groups)
        return cls(
            set=number,
            num_sets=num_workers // parallel.groups,
            worker=worker,
            groups=parallel.groups,
            unit=UNITS.get(face.kind, "groups"),
        )

    def runs(self, records: Sequence[ImageRecord]) -> list[slice]:
        """Of every image, the run of stored groups that this worker reads."""
        return self.runs_of(
            [[group // each.grid_columns for group in each.groups] for each in records]
        )

    def runs_of(self, rows: Sequence[Sequence[int]]) -> list[slice]:
        """The same, of images whose groups lie in these rows."""
        return [runs[self.worker] for runs in shares(rows, num_workers=self.groups, unit=self.unit)]


ALONE = Seat()


def by_itself(numbers: tuple[int, ...]) -> list[tuple[int, ...]]:
    """What all workers of a set say, where it has one."""
    return [numbers]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What all workers of a set say, in order of their ranks; all of them ask at the same time."""

    crew: Crew
    device: torch.device

    def __call__(self, numbers: tuple[int, ...]) -> list[tuple[int, ...]]:
        """Numbers of equal count from every worker."""
        if not isinstance(self.crew, GroupCrew):
            return by_itself(numbers)
        mine = torch.tensor(numbers, device=self.device)
        told = self.crew.links.gather(mine, of="images that cannot be read")
        return [tuple(each) for each in told.tolist()]


def require_shareable(parallel: ParallelConfig, *, num_workers: int, face: Any) -> None:
    """Refuse sets that the workers cannot form, and models that see their images whole."""
    if num_workers % parallel.groups:
        raise ValueError(
            f"workers.num_workers {num_workers} is no multiple of parallel.groups "
            f"{parallel.groups}: so many workers share an image, take {parallel.groups} or a "
            "multiple"
        )
    if parallel.groups > 1 and face.kind == "vix":
        raise ValueError("a model of kind 'vix' sees its images whole: leave parallel.groups at 1")


def require_shares(records: Sequence[ImageRecord], *, parallel: ParallelConfig, face: Any) -> None:
    """Refuse, by its name, an image of which some worker would hold nothing."""
    seat = Seat.of(0, num_workers=parallel.groups, parallel=parallel, face=face)
    for record in records:
        try:
            seat.runs([record])
        except ValueError as error:
            raise ValueError(f"image {record.image_id!r}: {error}") from error
