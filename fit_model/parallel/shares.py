"""Which worker holds which groups of an image: pure functions over integers.

Every worker holds a run of the stored groups, in order, and at least one; groups that are not
stored count for nobody.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate

import torch

from fit_model.groups import GroupBatch, collate

Cut = Callable[..., list[slice]]


def shares(rows: Sequence[Sequence[int]], *, num_workers: int, unit: str) -> list[list[slice]]:
    """For every image the run of stored groups that each of the workers holds.

    Args:
        rows: of every image, the row of the grid that each stored group lies in.
        num_workers: that share every image.
        unit: what is not divided: a name of UNITS.
    """
    dealt, found = 0, []
    for each in rows:
        found.append(UNITS[unit](each, num_workers=num_workers, dealt=dealt))
        dealt += len(each)
    return found


def by_groups(rows: Sequence[int], *, num_workers: int, dealt: int = 0) -> list[slice]:
    """Runs that differ by at most one group; who has one more goes on from the image before."""
    require_enough(len(rows), num_workers=num_workers, counted="groups")
    least, more = divmod(len(rows), num_workers)
    sizes = [least + ((worker - dealt) % num_workers < more) for worker in range(num_workers)]
    return runs(sizes)


def by_rows(rows: Sequence[int], *, num_workers: int, dealt: int = 0) -> list[slice]:
    """Runs of whole rows of the grid, as even as rows allow."""
    ends = [at for at in range(1, len(rows) + 1) if at == len(rows) or rows[at] != rows[at - 1]]
    require_enough(len(ends), num_workers=num_workers, counted="rows of groups")
    cuts, first = [0], 0
    for worker in range(1, num_workers):
        # as many rows stay for the others as there are others
        possible = ends[first : len(ends) - (num_workers - worker)]
        wanted = len(rows) * worker / num_workers
        cuts.append(min(possible, key=partial(_apart, wanted)))
        first = ends.index(cuts[-1]) + 1
    return [slice(start, stop) for start, stop in zip(cuts, [*cuts[1:], len(rows)], strict=True)]


def _apart(wanted: float, end: int) -> float:
    return abs(end - wanted)


UNITS: dict[str, Cut] = {"groups": by_groups, "rows": by_rows}
"""What an image falls into: an autoregressive model reads row by row, all others in any order."""


def require_enough(count: int, *, num_workers: int, counted: str) -> None:
    """Refuse an image of which some worker would hold nothing."""
    if count < num_workers:
        raise ValueError(
            f"parallel.groups {num_workers} is more group workers than an image has {counted}, "
            f"{count}: take at most {count}, or leave such images out"
        )


def runs(sizes: Sequence[int]) -> list[slice]:
    """Neighbouring runs of these sizes."""
    return [slice(stop - size, stop) for size, stop in zip(sizes, accumulate(sizes), strict=True)]


def share_of(batch: GroupBatch, *, worker: int, num_workers: int, unit: str) -> GroupBatch:
    """The groups of every image of a batch that one of the workers holds."""
    counts = torch.bincount(batch.image, minlength=batch.num_images).tolist()
    images = runs(counts)
    rows = [batch.row[each].tolist() for each in images]
    cut = shares(rows, num_workers=num_workers, unit=unit)
    return collate(
        [
            batch.part(slice(each.start + own[worker].start, each.start + own[worker].stop))
            for each, own in zip(images, cut, strict=True)
        ]
    )
