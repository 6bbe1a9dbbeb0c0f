"""Every group has one worker, every worker a group, and none much more than another."""

from itertools import pairwise

import pytest

from fit_model.groups import collate
from fit_model.parallel.shares import share_of, shares
from tests.fit_model.parallel.cases import IMAGES, TALL

ROWS = [[0, 0, 0, 1, 1, 3, 3], [0, 1, 2, 3], [0, 0, 2, 2, 2, 5, 6, 6, 6], [1, 2, 4, 4, 9, 9]]


@pytest.mark.parametrize("unit", ["groups", "rows"])
@pytest.mark.parametrize("num_workers", [1, 2, 3])
def test_runs_follow_each_other_and_leave_nothing_out(unit, num_workers):
    for rows, runs in zip(ROWS, shares(ROWS, num_workers=num_workers, unit=unit), strict=True):
        assert len(runs) == num_workers
        assert (runs[0].start, runs[-1].stop) == (0, len(rows))
        assert all(before.stop == after.start for before, after in pairwise(runs))
        assert all(run.start < run.stop for run in runs)


@pytest.mark.parametrize("num_workers", [2, 3, 4])
def test_workers_differ_by_a_group_in_every_image_and_in_all_together(num_workers):
    found = shares(ROWS, num_workers=num_workers, unit="groups")
    counts = [[run.stop - run.start for run in runs] for runs in found]
    totals = [sum(column) for column in zip(*counts, strict=True)]
    for each in [*counts, totals]:
        assert max(each) - min(each) <= 1


def test_rows_stay_whole_and_are_as_even_as_they_can_be():
    runs = shares([[0, 0, 0, 0, 1, 2, 2, 3]], num_workers=3, unit="rows")[0]
    assert [(run.start, run.stop) for run in runs] == [(0, 4), (4, 5), (5, 8)]
    for rows, found in zip(ROWS, shares(ROWS, num_workers=3, unit="rows"), strict=True):
        assert all(rows[run.start] != rows[run.start - 1] for run in found[1:])


@pytest.mark.parametrize(
    ("rows", "unit", "says"),
    [
        ([[0, 1, 2], [0, 0]], "groups", "more group workers than an image has groups, 2: take at"),
        ([[0, 0, 0, 1]], "rows", "more group workers than an image has rows of groups, 2"),
    ],
)
def test_more_workers_than_there_is_to_share_are_refused(rows, unit, says):
    with pytest.raises(ValueError, match=f"parallel.groups 3 is {says}"):
        shares(rows, num_workers=3, unit=unit)


@pytest.mark.parametrize(("images", "unit"), [(IMAGES, "groups"), (TALL, "rows")])
def test_shares_of_a_batch_make_the_batch_again(images, unit):
    batch = collate(images)
    parts = [share_of(batch, worker=worker, num_workers=3, unit=unit) for worker in range(3)]
    for number, whole in enumerate(images):
        own = [part.image == number for part in parts]
        held = [part.pixels[rows] for part, rows in zip(parts, own, strict=True)]
        assert [pixel for each in held for pixel in each.flatten().tolist()] == (
            whole.pixels.flatten().tolist()
        )
    for part in parts:
        assert part.nodata.tolist() == pytest.approx(batch.nodata.tolist(), nan_ok=True)
        assert part.grid_rows.equal(batch.grid_rows)
