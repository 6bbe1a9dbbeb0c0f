"""Which image is seen when depends on the data, the seed and the step, and on nothing else."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.order import epoch_permutation, global_batch, steps_per_epoch, worker_share

IMAGES = st.integers(1, 60)
BATCHES = st.integers(1, 20)
SEEDS = st.integers(0, 2**40)
WORKERS = st.integers(1, 9)


def epoch_of(epoch: int, *, images: int, batch: int, seed: int, digest: str = "d") -> np.ndarray:
    steps = steps_per_epoch(images, batch_images=batch)
    batches = [
        global_batch(step, digest=digest, seed=seed, num_images=images, batch_images=batch)
        for step in range(epoch * steps, (epoch + 1) * steps)
    ]
    return np.concatenate(batches)


@given(IMAGES, BATCHES, SEEDS, st.integers(0, 5))
def test_every_image_comes_exactly_once_an_epoch(
    images: int, batch: int, seed: int, epoch: int
) -> None:
    seen = epoch_of(epoch, images=images, batch=batch, seed=seed)
    assert sorted(seen.tolist()) == list(range(images))


@given(IMAGES, BATCHES, BATCHES, SEEDS)
def test_the_order_inside_an_epoch_is_the_same_for_any_batch_size(
    images: int, one: int, other: int, seed: int
) -> None:
    first = epoch_of(1, images=images, batch=one, seed=seed)
    assert first.tolist() == epoch_of(1, images=images, batch=other, seed=seed).tolist()


@given(IMAGES, BATCHES, SEEDS, WORKERS, st.integers(0, 200))
def test_workers_share_a_step_without_changing_it(
    images: int, batch: int, seed: int, workers: int, step: int
) -> None:
    whole = global_batch(step, digest="d", seed=seed, num_images=images, batch_images=batch)
    shares = [worker_share(whole, rank=rank, num_workers=workers) for rank in range(workers)]
    assert sorted(np.concatenate(shares).tolist()) == sorted(whole.tolist())
    sizes = [len(share) for share in shares]
    assert max(sizes) - min(sizes) <= 1


def test_epochs_seeds_and_datasets_each_have_an_order_of_their_own() -> None:
    orders = {
        tuple(epoch_permutation(digest=digest, seed=seed, epoch=epoch, num_images=50))
        for digest in ("a", "b")
        for seed in (0, 1)
        for epoch in (0, 1)
    }
    assert len(orders) == 8


def test_an_epoch_is_drawn_once_for_all_its_steps_and_cannot_be_spoiled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn: list[np.ndarray] = []
    philox = np.random.Philox
    monkeypatch.setattr("numpy.random.Philox", lambda key: drawn.append(key) or philox(key=key))
    epoch_of(0, images=40, batch=3, seed=1, digest="drawn once")
    assert len(drawn) == 1
    batch = global_batch(0, digest="drawn once", seed=1, num_images=40, batch_images=3)
    with pytest.raises(ValueError, match="read-only"):
        batch[0] = 0


def test_the_order_stays_what_it_was_in_the_first_release() -> None:
    order = epoch_permutation(digest="sha256:00", seed=7, epoch=3, num_images=10)
    assert order.tolist() == [1, 0, 6, 2, 5, 7, 9, 3, 8, 4]


@pytest.mark.parametrize(("rank", "workers"), [(-1, 2), (2, 2), (0, 0)])
def test_a_rank_outside_the_workers_is_refused(rank: int, workers: int) -> None:
    with pytest.raises(ValueError, match="rank"):
        worker_share(np.arange(4), rank=rank, num_workers=workers)


def test_an_empty_dataset_or_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="0 image"):
        steps_per_epoch(0, batch_images=4)
    with pytest.raises(ValueError, match="batches of 0"):
        steps_per_epoch(4, batch_images=0)
