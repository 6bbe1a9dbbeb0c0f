"""Which steps the guard refuses, and what it does about many of them."""

import json
import math
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.guard import (
    LEAST_SHARE,
    Diverged,
    Guard,
    GuardConfig,
    RollBack,
    Skip,
    spike_bound,
)

SMALL = GuardConfig(window_steps=5, least_steps=3, max_skips_in_a_row=2, margin_steps=3)
FINITE = st.floats(-1e6, 1e6)
STEPS = st.one_of(st.floats(0.0, 5.0), st.sampled_from([math.nan, math.inf, 1e9]))


def guard_of(config: GuardConfig = SMALL, **state) -> Guard:
    return Guard(config, state=state)


@given(values=st.lists(FINITE, min_size=1), deviations=st.floats(0.1, 100.0))
def test_the_bound_of_a_spike_is_that_of_the_median_and_the_median_distance(values, deviations):
    median = statistics.median(values)
    spread = 1.4826 * statistics.median(abs(each - median) for each in values)
    expected = median + deviations * max(spread, LEAST_SHARE * abs(median))
    assert spike_bound(values, deviations=deviations) == pytest.approx(expected, abs=1e-6)


@given(values=st.lists(st.tuples(STEPS, STEPS), max_size=60))
def test_the_guard_decides_as_a_plain_loop_does(values):
    config = GuardConfig(
        window_steps=5, least_steps=3, max_skips_in_a_row=1000, spike_deviations=4.0
    )
    guard, accepted = guard_of(config), []
    for loss, norm in values:
        recent = accepted[-5:]
        refused = not (math.isfinite(loss) and math.isfinite(norm))
        if not refused and len(recent) >= 3:
            median = np.median(recent)
            spread = 1.4826 * np.median(np.abs(recent - median))
            bound = median + 4.0 * max(spread, LEAST_SHARE * abs(median))
            refused = loss > max(bound, np.median(accepted[:3]))
        assert bool(guard.judge(loss=loss, norm=norm)) == refused
        if not refused:
            accepted.append(loss)


@given(values=st.lists(STEPS, min_size=2, max_size=40), cut=st.integers(0, 39))
def test_a_guard_that_was_stored_as_json_decides_as_the_one_that_was_not(values, cut):
    config = GuardConfig(window_steps=5, least_steps=3, max_skips_in_a_row=4, spike_deviations=4.0)
    whole, parts = [], []
    for found, cuts in ((whole, ()), (parts, (cut,))):
        guard = guard_of(config)
        for step, value in enumerate(values):
            if step in cuts:
                guard = guard_of(config, **json.loads(json.dumps(guard.state())))
            reason = guard.judge(loss=value, norm=1.0)
            found.append(reason)
            try:
                if reason:
                    guard.skipped(Skip(step=step, reason=reason, images=("a", "b")))
            except RollBack as back:
                found.append((back.around, str(back)))
                break
    assert whole == parts


def test_a_flat_loss_does_not_trip_and_a_multiple_of_it_does():
    guard = guard_of(GuardConfig())
    for _ in range(40):
        assert not guard.judge(loss=2.0, norm=1.0)
    assert not guard.judge(loss=2.0 * (1 + 20 * LEAST_SHARE), norm=1.0)
    assert "loss is 13" in guard.judge(loss=13.0, norm=1.0)


def test_a_large_gradient_is_left_to_clipping():
    guard = guard_of(GuardConfig())
    for _ in range(40):
        assert not guard.judge(loss=2.0, norm=1.0)
    assert not guard.judge(loss=2.0, norm=1e9)


def test_a_loss_that_has_come_to_0_may_move_up_to_where_it_began():
    guard = guard_of(GuardConfig())
    for loss in [2.0] * 40 + [0.0] * 200:
        assert not guard.judge(loss=loss, norm=1.0)
    assert not guard.judge(loss=1.99, norm=1.0)
    assert "loss is 2.01" in guard.judge(loss=2.01, norm=1.0)


def test_nothing_is_a_spike_before_there_are_enough_steps_and_nan_always_is_refused():
    guard = guard_of(GuardConfig(least_steps=30))
    for _ in range(29):
        assert not guard.judge(loss=1.0, norm=1.0)
    assert guard.judge(loss=math.nan, norm=1.0) == "the loss is not finite"
    assert guard.judge(loss=1.0, norm=math.inf) == "the gradient is not finite"
    assert not guard.judge(loss=1e9, norm=1e9)
    assert guard.judge(loss=1e9, norm=1e9)


def test_what_is_enough_steps_may_change_on_the_way():
    state = guard_of(GuardConfig(least_steps=30))
    for _ in range(20):
        assert not state.judge(loss=1.0, norm=1.0)
    guard = guard_of(GuardConfig(least_steps=10), **state.state())
    assert not guard.judge(loss=1.0, norm=1.0)
    assert guard.judge(loss=1e9, norm=1.0)


def test_without_deviations_every_finite_step_is_taken():
    guard = guard_of(GuardConfig(spike_deviations=None))
    for _ in range(50):
        assert not guard.judge(loss=1.0, norm=1.0)
    assert not guard.judge(loss=1e30, norm=1e30)


def test_a_full_row_goes_back_around_its_steps_and_a_margin():
    guard = guard_of()
    guard.skipped(Skip(step=10, reason="the loss is not finite"))
    with pytest.raises(RollBack, match="steps 11 to 12 were not taken") as raised:
        guard.skipped(Skip(step=11, reason="the loss is not finite"))
    assert raised.value.around == range(7, 12)


def test_ranges_as_long_as_a_hostile_file_likes_take_no_room():
    around = guard_of(around=[[5, 10**15]]).goes_around()
    assert 10**12 in around
    assert 4 not in around


def test_a_taken_step_ends_a_row():
    guard = guard_of()
    for step in range(10):
        guard.skipped(Skip(step=2 * step, reason="the loss is not finite"))
        assert not guard.judge(loss=1.0, norm=1.0)


def test_what_is_gone_around_is_never_before_the_first_step():
    guard = guard_of(GuardConfig(max_skips_in_a_row=1, margin_steps=10))
    with pytest.raises(RollBack) as raised:
        guard.skipped(Skip(step=2, reason="the loss is not finite"))
    assert raised.value.around == range(3)


def test_training_ends_when_going_back_has_not_helped():
    guard = guard_of(GuardConfig(max_skips_in_a_row=1, max_rollbacks=2), around=[[0, 3], [5, 9]])
    around = guard.goes_around()
    assert [step for step in range(12) if step in around] == [0, 1, 2, 5, 6, 7, 8]
    line = r"steps 13 to 13 were not taken, for the loss is not finite \(images 'a'\).* 2 times"
    with pytest.raises(Diverged, match=line):
        guard.skipped(Skip(step=12, reason="the loss is not finite", images=("a",)))


@given(steps=st.integers(0, 300))
def test_the_state_stays_small(steps):
    guard = guard_of(GuardConfig(max_skips_in_a_row=50))
    for step in range(steps):
        if reason := guard.judge(loss=1.0 if step % 3 else math.nan, norm=1 / 3):
            guard.skipped(Skip(step=step, reason=reason))
    assert len(json.dumps(guard.state())) < 10_000


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"window_steps": 0}, "guard.window_steps 0 must be at least 1"),
        ({"margin_steps": -1}, "guard.margin_steps -1 must not be negative"),
        ({"least_steps": 101}, "no step would ever be called a spike"),
        ({"spike_deviations": 0.0}, "null takes every step that is finite"),
        ({"spike_deviations": math.nan}, "spike_deviations"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, reason):
    with pytest.raises(ValueError, match=reason):
        GuardConfig(**settings)
