"""Which image is seen when depends on the data, the seed and the step, and on nothing else."""

from itertools import chain, pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.order import Order, balanced, deal, epoch_permutation, steps_per_epoch

SIZES = st.lists(st.integers(1, 500), min_size=1, max_size=60)
BATCHES = st.integers(1, 20)
WINDOWS = st.integers(1, 9)
SEEDS = st.integers(0, 2**40)
WORKERS = st.sampled_from([1, 2, 3, 8])
PARTS = st.integers(1, 4)
MANY = settings(max_examples=500, deadline=None)


def order_of(sizes: list[int], batch: int, seed: int = 0, window: int = 1) -> Order:
    return Order(digest="d", seed=seed, groups=sizes, batch_images=batch, balance_steps=window)


def steps_of(order: Order, epoch: int) -> list[list[int]]:
    first = epoch * order.steps_per_epoch
    return [order.batch(first + step).tolist() for step in range(order.steps_per_epoch)]


def loads(sizes: list[int], *, workers: int, parts: int = 1) -> list[int]:
    """Groups that each worker has in each micro-step."""
    dealt = deal(sizes, num_workers=workers, num_parts=parts)
    return [sum(sizes[place] for place in part) for worker in dealt for part in worker]


@MANY
@given(SIZES, BATCHES, WINDOWS, SEEDS, st.integers(0, 5))
def test_every_image_comes_exactly_once_an_epoch_in_batches_of_one_size_but_the_last(
    sizes: list[int], batch: int, window: int, seed: int, epoch: int
) -> None:
    batches = steps_of(order_of(sizes, batch, seed, window), epoch)
    assert sorted(chain(*batches)) == list(range(len(sizes)))
    assert {len(each) for each in batches[:-1]} <= {batch}
    assert 1 <= len(batches[-1]) <= batch


@MANY
@given(SIZES, BATCHES, SEEDS, st.integers(1, 50), st.booleans())
def test_images_of_one_size_keep_the_order_that_chance_gave_them(
    sizes: list[int], batch: int, seed: int, window: int, alike: bool
) -> None:
    sizes, window = ([7] * len(sizes), window) if alike else (sizes, 1)
    drawn = epoch_permutation(digest="d", seed=seed, epoch=1, num_images=len(sizes)).tolist()
    batches = steps_of(order_of(sizes, batch, seed, window), 1)
    assert [sorted(each) for each in batches] == [
        sorted(drawn[first : first + batch]) for first in range(0, len(drawn), batch)
    ]


@MANY
@given(st.lists(st.integers(1, 500), min_size=1, max_size=200), BATCHES, WINDOWS, SEEDS)
def test_batches_hold_neighbours_in_size_of_their_window(
    sizes: list[int], batch: int, window: int, seed: int
) -> None:
    order = order_of(sizes, batch, seed, window)
    drawn = epoch_permutation(digest="d", seed=seed, epoch=0, num_images=len(sizes)).tolist()
    # never more than a quarter of an epoch
    reach = batch * max(1, min(window, len(sizes) // batch // 4))
    batches = steps_of(order, 0)
    for first in range(0, len(drawn), reach):
        inside = [each for each in batches if each[0] in drawn[first : first + reach]]
        assert sorted(chain(*inside)) == sorted(drawn[first : first + reach])
        whole = [each for each in inside if len(each) == batch]
        spans = sorted((min(sizes[i] for i in b), max(sizes[i] for i in b)) for b in whole)
        assert all(one[1] <= other[0] for one, other in pairwise(spans))
        earliest = [min(map(drawn.index, each)) for each in whole]
        assert earliest == sorted(earliest)


@MANY
@given(st.lists(st.integers(1, 500), min_size=1, max_size=200), BATCHES, WINDOWS, SEEDS)
def test_chance_alone_decides_who_is_in_the_smaller_batch_at_the_end(
    sizes: list[int], batch: int, window: int, seed: int
) -> None:
    left_over = len(sizes) % batch
    drawn = epoch_permutation(digest="d", seed=seed, epoch=0, num_images=len(sizes)).tolist()
    if left_over:
        assert steps_of(order_of(sizes, batch, seed, window), 0)[-1] == drawn[-left_over:]


@MANY
@given(SIZES, WORKERS, PARTS)
def test_workers_share_a_batch_whole_and_nobody_waits_for_an_image_while_another_has_two(
    sizes: list[int], workers: int, parts: int
) -> None:
    dealt = deal(sizes, num_workers=workers, num_parts=parts)
    assert [len(worker) for worker in dealt] == [parts] * workers
    held = [part for worker in dealt for part in worker]
    assert sorted(chain(*held)) == list(range(len(sizes)))
    assert all(part == sorted(part) for part in held)
    if len(sizes) >= workers * parts:
        assert all(held)
    else:
        assert max(map(len, held)) == 1
        # the last micro-steps are the empty ones
        assert all(sorted(worker, key=len, reverse=True) == worker for worker in dealt)


@MANY
@given(SIZES, WORKERS, PARTS)
def test_loads_keep_within_what_the_largest_image_forces(
    sizes: list[int], workers: int, parts: int
) -> None:
    bins = workers * parts
    found = loads(sizes, workers=workers, parts=parts)
    # list scheduling (Graham 1966), and as many images of the largest size as there are at once
    assert max(found) <= sum(sizes) / bins + (1 - 1 / bins) * max(sizes) + 1e-9
    assert max(found) <= -(-len(sizes) // bins) * max(sizes)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=7), st.sampled_from([2, 3]))
def test_loads_are_within_a_third_of_the_best_that_exists(sizes: list[int], workers: int) -> None:
    best = min(
        max(sum(s for s, w in zip(sizes, each, strict=True) if w == k) for k in range(workers))
        for each in product(range(workers), repeat=len(sizes))
    )
    bound = 4 / 3 - 1 / (3 * workers)
    assert best <= max(loads(sizes, workers=workers)) <= bound * best + 1e-9


@MANY
@given(SIZES, WORKERS, st.integers(2, 4))
def test_micro_steps_hold_neighbours_in_load_and_workers_like_sums(
    sizes: list[int], workers: int, parts: int
) -> None:
    found = np.array(loads(sizes, workers=workers, parts=parts)).reshape(workers, parts)
    for before, after in pairwise(found.T):
        assert before.min() >= after.max()
    spread = found.sum(axis=1)
    assert spread.max() - spread.min() <= found.max()


@MANY
@given(SIZES, BATCHES, WINDOWS, SEEDS, st.integers(0, 200))
def test_a_step_asked_for_alone_is_the_step_of_the_whole_run(
    sizes: list[int], batch: int, window: int, seed: int, step: int
) -> None:
    run = order_of(sizes, batch, seed, window)
    for before in range(max(0, step - 3), step):
        run.batch(before)
    alone = order_of(sizes, batch, seed, window)
    assert alone.batch(step).tolist() == run.batch(step).tolist()


@MANY
@given(SIZES, BATCHES, WINDOWS, SEEDS, st.data())
def test_every_other_image_may_stand_in_those_that_need_no_more_room_first(
    sizes: list[int], batch: int, window: int, seed: int, data: st.DataObject
) -> None:
    order = order_of(sizes, batch, seed, window)
    step = data.draw(st.integers(0, 2 * order.steps_per_epoch))
    image = data.draw(st.sampled_from(order.batch(step).tolist()))
    found = order.substitutes(step, image).tolist()
    assert sorted([image, *found]) == list(range(len(sizes)))
    fits = [sizes[each] <= sizes[image] for each in found]
    assert fits == sorted(fits, reverse=True)
    larger = [sizes[each] for each in found if sizes[each] > sizes[image]]
    assert larger == sorted(larger)
    after = order.batch(step + 1).tolist()
    if step % order.steps_per_epoch < order.steps_per_epoch - 1 and fits.count(True):
        smaller = [each for each in after if sizes[each] <= sizes[image]]
        assert found[: len(smaller)] == smaller


def test_windows_of_eight_steps_keep_eight_workers_nine_tenths_busy() -> None:
    # log-normal sizes, as scans have them: the busiest worker sets the pace of a step
    sizes = np.random.default_rng(0).lognormal(np.log(64), 1.0, 4096).round().astype(int) + 1
    busy = {}
    for window in (1, 8):
        batches = steps_of(order_of(sizes.tolist(), 32, window=window), 0)
        held = [loads(sizes[each].tolist(), workers=8) for each in batches]
        busy[window] = sum(map(np.mean, held)) / sum(map(max, held))
    assert busy[1] < 0.8
    assert busy[8] > 0.9


def test_epochs_seeds_and_datasets_each_have_an_order_of_their_own() -> None:
    orders = {
        tuple(epoch_permutation(digest=digest, seed=seed, epoch=epoch, num_images=50))
        for digest in ("a", "b")
        for seed in (0, 1)
        for epoch in (0, 1)
    }
    assert len(orders) == 8


def test_batches_of_another_epoch_hold_other_images_together() -> None:
    order = order_of(list(range(1, 65)), 4, window=1000)
    epochs = [{frozenset(each) for each in steps_of(order, epoch)} for epoch in range(3)]
    assert all(len(one & other) <= 4 for one in epochs for other in epochs if one is not other)


def test_an_epoch_is_drawn_once_for_all_its_steps_and_cannot_be_spoiled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn: list[int] = []
    whole = balanced
    monkeypatch.setattr(
        "pipeline.order.balanced", lambda *a, **k: drawn.append(1) or whole(*a, **k)
    )
    order = order_of([1] * 40, 3)
    steps_of(order, 0)
    assert len(drawn) == 1
    with pytest.raises(ValueError, match="read-only"):
        order.batch(0)[0] = 0


def test_the_order_stays_what_it_was_in_the_first_release() -> None:
    order = epoch_permutation(digest="sha256:00", seed=7, epoch=3, num_images=10)
    assert order.tolist() == [1, 0, 6, 2, 5, 7, 9, 3, 8, 4]


def test_an_empty_dataset_or_batch_and_a_negative_step_are_refused() -> None:
    with pytest.raises(ValueError, match="0 image"):
        steps_per_epoch(0, batch_images=4)
    with pytest.raises(ValueError, match="batches of 0"):
        steps_per_epoch(4, batch_images=0)
    with pytest.raises(ValueError, match="step -1"):
        order_of([1], 1).batch(-1)
