"""A step's images are the same for any number of workers, and each worker reads its own."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.batches import Batch, BatchConfig, Feed, Share, as_batch
from jobs.sharing import Seat
from jobs.targets import ClassifyTarget, Labelled, head_config, read_labelled
from pipeline.dataset import Dataset, open_dataset
from tests.jobs.small_training import NODATA, SIDE_PX, TRAINING_IMAGES, one_image, order_of


@pytest.fixture(scope="module")
def dataset(tiny_dataset) -> Dataset:
    return open_dataset(tiny_dataset)


@pytest.fixture(scope="module")
def labelled(dataset) -> Labelled:
    """Targets are the images' own numbers, so that a batch tells which images it holds."""
    head = head_config(ClassifyTarget(label="kind"), dataset, split="train")
    found = read_labelled(dataset, head, split="train")
    numbers = torch.arange(len(found.records))
    return Labelled(records=found.records, values=numbers, without_groups=found.without_groups)


def feed(dataset, labelled, *, rank=0, num_workers=1, **config) -> Feed:
    return Feed(
        dataset,
        labelled=labelled,
        head=head_config(ClassifyTarget(label="kind"), dataset, split="train"),
        config=BatchConfig(**config),
        seat=Seat(set=rank, num_sets=num_workers),
    )


def whole_step(dataset, labelled, step, *, num_workers, accumulation, images_per_step):
    sources = [
        feed(
            dataset,
            labelled,
            rank=rank,
            num_workers=num_workers,
            accumulation=accumulation,
            images_per_step=images_per_step,
        )
        for rank in range(num_workers)
    ]
    return [each.read(each.share(step, part)) for each in sources for part in range(accumulation)]


@pytest.mark.parametrize("num_workers", [1, 2, 3, 8])
@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("images_per_step", [4, 20])
def test_all_shares_together_are_the_global_batch_and_weigh_one(
    dataset, labelled, num_workers, accumulation, images_per_step
):
    # in fours, step 2 is the last of the epoch and holds one image: most workers get none
    for step in (0, 2, 3):
        batches = whole_step(
            dataset,
            labelled,
            step,
            num_workers=num_workers,
            accumulation=accumulation,
            images_per_step=images_per_step,
        )
        seen = [
            int(number)
            for batch in batches
            for number, weight in zip(batch.targets, batch.weights, strict=True)
            if weight > 0
        ]
        config = BatchConfig(images_per_step=images_per_step)
        expected = order_of(dataset, labelled.records, config).batch(step)
        assert sorted(seen) == sorted(expected)
        weights = torch.cat([batch.weights for batch in batches])
        assert float(weights.sum()) == pytest.approx(1)
        assert set(weights.tolist()) <= {0.0, weights.max().item()}


@pytest.mark.parametrize("num_workers", [1, 3])
def test_speed_counts_every_pixel_and_group_of_the_step_once_and_no_padding(
    dataset, labelled, num_workers
):
    batches = whole_step(
        dataset, labelled, 2, num_workers=num_workers, accumulation=2, images_per_step=4
    )
    (index,) = [int(b.targets[0]) for b in batches if float(b.weights.sum()) > 0]
    record = labelled.records[index]
    stored = [divmod(group, record.grid_columns) for group in record.groups]
    inside = sum(
        min(SIDE_PX, record.height_px - row * SIDE_PX)
        * min(SIDE_PX, record.width_px - column * SIDE_PX)
        for row, column in stored
    )
    assert sum(batch.megapixels for batch in batches) == pytest.approx(inside / 1e6)
    assert [n for batch in batches for n in batch.groups_per_image] == [len(record.groups)]
    assert len(batches) == 2 * num_workers  # the others hold an image all the same
    assert all(len(batch.groups.pixels) for batch in batches)


@settings(max_examples=10, deadline=None)
@given(first=st.integers(0, 9), accumulation=st.sampled_from([1, 2]), ahead=st.integers(0, 5))
def test_a_stream_gives_what_direct_reads_give_from_any_step(
    dataset, labelled, first, accumulation, ahead
):
    source = feed(
        dataset, labelled, rank=1, num_workers=2, images_per_step=4, accumulation=accumulation
    )
    streamed = list(source.stream(first, 10, ahead=ahead))
    direct = [
        source.read(source.share(step, part))
        for step in range(first, 10)
        for part in range(accumulation)
    ]
    assert len(streamed) == len(direct)
    for one, other in zip(streamed, direct, strict=True):
        assert torch.equal(one.groups.pixels.to("cpu"), other.groups.pixels.to("cpu"))
        assert torch.equal(one.targets, other.targets)
        assert torch.equal(one.weights, other.weights)


def test_a_stream_that_is_left_reads_nothing_that_had_not_begun(dataset, labelled, monkeypatch):
    source = feed(dataset, labelled, images_per_step=1)
    whole_read, whole_shutdown = source.read, ThreadPoolExecutor.shutdown
    asked, begun, left = [], threading.Event(), threading.Event()

    def read(share: Share) -> Batch:
        asked.append(share.step)
        if share.step == 1:
            begun.set()
            left.wait(timeout=30)
        return whole_read(share)

    def shutdown(self: ThreadPoolExecutor, wait: bool = True, **how: bool) -> None:
        whole_shutdown(self, wait=False, **how)
        left.set()
        whole_shutdown(self, wait=wait)

    monkeypatch.setattr(source, "read", read)
    monkeypatch.setattr(ThreadPoolExecutor, "shutdown", shutdown)
    stream = source.stream(0, 9)
    next(stream)
    begun.wait(timeout=30)
    stream.close()
    assert asked == [0, 1]


def test_images_of_different_sizes_arrive_whole_in_one_batch(dataset, labelled):
    source = feed(dataset, labelled, images_per_step=20)
    batch = source.read(source.share(0, 0))
    assert len(set(zip(batch.groups.grid_rows, batch.groups.grid_columns, strict=True))) > 1
    assert batch.groups.pixels.dtype == torch.uint16
    for place, index in enumerate(batch.targets.tolist()):
        expected = one_image(dataset, labelled.records[index])
        mine = batch.groups.image == place
        np.testing.assert_array_equal(batch.groups.pixels.to("cpu")[mine], expected.pixels)
        for name in ("row", "column", "valid_height_px", "valid_width_px"):
            found = getattr(batch.groups, name)[mine.numpy()]
            np.testing.assert_array_equal(found, getattr(expected, name), err_msg=name)
    assert batch.groups.nodata.tolist() == [NODATA] * TRAINING_IMAGES


def test_a_missing_corner_leaves_its_place_in_the_grid_empty(dataset, labelled):
    (record,) = [each for each in labelled.records if each.image_id == "train-02"]
    groups = as_batch(dataset.read(record), record)
    places = set(zip(groups.row.tolist(), groups.column.tolist(), strict=True))
    assert places == {(row, column) for row in range(3) for column in range(2)} - {(0, 0)}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"images_per_step": 0}, "batch.images_per_step 0"),
        ({"accumulation": 0}, "batch.accumulation 0"),
        ({"seed": -1}, "batch.seed -1"),
        ({"balance_steps": 0}, "batch.balance_steps 0"),
        ({"max_damaged_share": 1.0}, "batch.max_damaged_share 1.0"),
    ],
)
def test_a_batch_of_nothing_is_refused(change, says):
    with pytest.raises(ValueError, match=says):
        BatchConfig(**change)
