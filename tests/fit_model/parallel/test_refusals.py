"""What several workers cannot share, and what happens when one of them is gone."""

import pytest

from fit_model.parallel.config import ParallelConfig
from tests.fit_model.parallel.work import bring, leave_alone, line_up


@pytest.mark.parametrize("how", ["dies", "hangs"])
def test_a_worker_that_is_gone_ends_the_others_with_a_line(pair, how):
    pair.send(leave_alone, how)
    said = pair.answer(0, timeout_s=30.0)
    assert said.startswith(
        "ConnectionError: group worker 0 of 2 got no answer in the all-gather of keys and values "
        "of a global layer: another one has died or hangs ("
    )
    assert "\n" not in said


def test_a_worker_without_a_group_is_refused_by_all_of_them(world):
    told = world.call(line_up, [[0, 1], [0, 1, 1], [0], [0, 1]])
    assert all("one of them holds no group of an image" in each for each in told)


def test_an_autoregressive_model_refuses_workers_that_read_out_of_order(world):
    runs = [slice(2, 3), slice(0, 1), slice(1, 2), slice(3, 4)]
    told = world.call(bring, "autoregressive", runs)
    assert all("give every worker whole rows of groups, in order" in str(each) for each in told)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"groups": 0}, "groups is 0: it must be at least 1"),
        ({"timeout_s": 0.0}, "timeout_s is 0.0: it must be above 0"),
        ({"timeout_s": float("inf")}, "timeout_s holds inf"),
    ],
    ids=str,
)
def test_settings_that_mean_nothing_are_refused(settings, says):
    with pytest.raises(ValueError, match=says):
        ParallelConfig(**settings)
