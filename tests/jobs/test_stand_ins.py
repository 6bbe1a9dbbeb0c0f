"""A damaged image is replaced by the same one on every worker, and counted."""

import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fit_model.augment.config import UNCHANGED, AugmentConfig
from jobs.batches import Batch, BatchConfig, Feed, Share
from jobs.errors import MachineFault
from jobs.sharing import Seat
from jobs.stand_ins import StandIns
from jobs.targets import ClassifyTarget, Labelled, head_config, read_labelled
from pipeline.dataset import DamagedError, Dataset, open_dataset
from pipeline.order import Order
from pipeline.records import ImageRecord
from tests.jobs.small_training import TRAINING_IMAGES, order_of, write_dataset, write_images

IMAGES_PER_STEP, STEPS = 4, 6  # two epochs of nine images
CROPS = AugmentConfig(crop_groups=(2, 2), symmetries="all")
SIZES_PX = ((32, 32), (32, 16), (48, 32), (16, 32))


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("stand-ins")
    write_images(folder / "images", sizes_px=SIZES_PX)
    return write_dataset(folder / "images", folder / "dataset")


def damage(folder: Path, record: ImageRecord, *, group: int = 0) -> None:
    """Flip a bit in the pixels of one group."""
    (part,) = record.parts
    shard = folder / part.shard
    content = bytearray(shard.read_bytes())
    size = part.num_bytes // part.num_batches
    content[part.start_byte + (group + 1) * size - 100] ^= 1
    shard.write_bytes(content)


@pytest.fixture
def damaged(whole, tmp_path) -> Callable[..., Dataset]:
    """The dataset with these images of the training split damaged, in one of their groups."""

    def opened(*numbers: int, group: int = 0) -> Dataset:
        folder = Path(shutil.copytree(whole, tmp_path / "damaged", dirs_exist_ok=True))
        records = labelled_of(open_dataset(whole)).records
        for number in numbers:
            damage(folder, records[number], group=group)
        return open_dataset(str(folder))

    return opened


def labelled_of(dataset: Dataset) -> Labelled:
    """Targets are the images' own numbers, so that a batch tells which images it holds."""
    head = head_config(ClassifyTarget(label="kind"), dataset, split="train")
    found = read_labelled(dataset, head, split="train")
    numbers = torch.arange(len(found.records))
    return Labelled(records=found.records, values=numbers, without_groups=found.without_groups)


def feed(dataset: Dataset, *, max_damaged_share: float = 0.5, **changes) -> Feed:
    labelled = labelled_of(dataset)
    config = BatchConfig(images_per_step=IMAGES_PER_STEP, max_damaged_share=max_damaged_share)
    head = head_config(ClassifyTarget(label="kind"), dataset, split="train")
    return Feed(dataset, labelled=labelled, head=head, config=config, **changes)


def weighted(batches: list[Batch]) -> list[int]:
    return sorted(
        int(number)
        for batch in batches
        for number, weight in zip(batch.targets, batch.weights, strict=True)
        if weight > 0
    )


@pytest.mark.parametrize("numbers", [(4,), (0, 1, 2), (8, 7)])
def test_the_same_images_stand_in_on_any_number_of_workers(damaged, whole, numbers):
    dataset = damaged(*numbers)
    records = labelled_of(dataset).records
    order = order_of(dataset, records, BatchConfig(images_per_step=IMAGES_PER_STEP))
    for step in range(STEPS):
        expected = []
        for image in order.batch(step).tolist():
            chain = [image, *order.substitutes(step, image).tolist()]
            expected.append(next(each for each in chain if each not in numbers))
        for num_workers in (1, 2, 3):
            seats = [Seat(set=rank, num_sets=num_workers) for rank in range(num_workers)]
            sources = [feed(dataset, seat=seat) for seat in seats]
            batches = [next(each.stream(step, step + 1)) for each in sources]
            assert weighted(batches) == sorted(expected)
            assert sum(float(each.weights.sum()) for each in batches) == pytest.approx(1.0)
            found = sorted({image for each in batches for image in each.damaged})
            assert set(numbers) & set(order.batch(step).tolist()) <= set(found) <= set(numbers)


def test_who_stands_in_brings_its_own_pixels_and_seed(damaged, whole):
    dataset = damaged(4)
    sound = feed(open_dataset(whole))
    step = next(s for s in range(STEPS) if 4 in sound.order.batch(s))
    source = feed(dataset)
    batch = source.read(source.share(step, 0))
    images = batch.targets.tolist()
    expected = sound._read(Share(step=step, images=images, weight=0.25))
    assert 4 not in images
    assert batch.seeds.equal(expected.seeds)
    assert batch.groups.pixels.to("cpu").equal(expected.groups.pixels.to("cpu"))
    assert batch.groups_per_image == [len(sound.labelled.records[i].groups) for i in images]
    assert batch.damaged == (4,)


def test_a_damaged_image_is_read_twice_and_then_never_again(damaged, monkeypatch):
    dataset = damaged(4)
    read: list[str] = []
    whole_read = Dataset._read
    monkeypatch.setattr(
        Dataset, "_read", lambda self, record, *a, **k: (
            read.append(record.image_id) or whole_read(self, record, *a, **k)
        ),
    )  # fmt: skip
    source = feed(dataset)
    list(source.stream(0, STEPS))
    assert read.count(source.labelled.records[4].image_id) == 2


@pytest.mark.parametrize("augment", [UNCHANGED, CROPS], ids=["whole", "crops"])
def test_workers_that_share_an_image_agree_although_only_one_sees_the_damage(damaged, augment):
    # of 3 and 5 the second worker of the set reads the last group; of 6 some crops have neither
    dataset = damaged(3, 5, 6, group=1)
    told: dict[int, tuple[int, ...]] = {}
    both = threading.Barrier(2)

    def compare(worker: int) -> Callable[[tuple[int, ...]], list[tuple[int, ...]]]:
        def compared(turns: tuple[int, ...]) -> list[tuple[int, ...]]:
            told[worker] = turns
            both.wait(timeout=30)
            found = [told[0], told[1]]
            both.wait(timeout=30)
            return found

        return compared

    def run(worker: int) -> list[Batch]:
        seat = Seat(worker=worker, groups=2)
        shared = feed(dataset, seat=seat, compare=compare(worker), augment=augment)
        return list(shared.stream(0, 4 * STEPS))

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(run, range(2))
    alone = list(feed(dataset, augment=augment).stream(0, 4 * STEPS))
    assert any(each.damaged for each in alone)
    for one, other, both_parts in zip(first, second, alone, strict=True):
        assert one.targets.tolist() == other.targets.tolist() == both_parts.targets.tolist()
        assert one.damaged == other.damaged == both_parts.damaged
        assert one.megapixels + other.megapixels == pytest.approx(both_parts.megapixels)


def test_crops_beside_the_damage_are_seen_whatever_earlier_steps_came_upon(damaged):
    dataset = damaged(0, 2, 4, 6, 8, group=1)
    crops = AugmentConfig(crop_groups=(1, 1))

    def seen(first: int, **changes: Any) -> list[tuple[list[int], tuple[int, ...]]]:
        source = feed(dataset, max_damaged_share=0.9, augment=crops, **changes)
        return [(each.targets.tolist(), each.damaged) for each in source.stream(first, 4 * STEPS)]

    throughout = seen(0)
    passed = {image for _, images in throughout for image in images}
    assert any(passed & set(images) for images, _ in throughout)
    for step in range(1, 4 * STEPS):
        assert seen(step) == throughout[step:]


def test_padding_images_are_replaced_and_not_counted(damaged):
    dataset = damaged(*range(TRAINING_IMAGES - 1))
    sources = [
        feed(dataset, max_damaged_share=0.95, seat=Seat(set=rank, num_sets=2)) for rank in (0, 1)
    ]
    step = sources[0].order.steps_per_epoch - 1  # a single image
    batches = [each.read(each.share(step, 0)) for each in sources]
    assert [each.targets.tolist() for each in batches] == [[TRAINING_IMAGES - 1]] * 2
    assert [float(each.weights.sum()) for each in batches] == [1.0, 0.0]
    assert batches[1].damaged == ()
    assert batches[1].groups_per_image == []


def test_too_many_damaged_images_end_it_with_one_line_that_names_some(damaged):
    dataset = damaged(1, 2, 6, 7)
    with pytest.raises(MachineFault, match=r"images cannot be read \('train-0\d'") as caught:
        list(feed(dataset, max_damaged_share=0.3).stream(0, STEPS))
    assert "of 9 images" in str(caught.value)
    assert "batch.max_damaged_share allows 2" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(feed(dataset, max_damaged_share=0.45).stream(0, STEPS))


def test_what_others_found_counts_too():
    records: list[Any] = [SimpleNamespace(image_id=str(number)) for number in range(10)]
    order = Order(digest="d", seed=0, groups=[1] * 10, batch_images=4)
    known = StandIns(order, records=records, max_share=0.2)
    assert known.found(DamagedError("damaged", image_id="3")) == 3
    known.add([3, 4])
    with pytest.raises(MachineFault, match=r"^3 of 10 images cannot be read \('3', '4', '5'\)"):
        known.add([5])


@given(st.integers(0, 99), st.integers(1, 3000))
def test_a_share_in_percent_allows_so_many_of_a_hundred(percent, images):
    records: list[Any] = [SimpleNamespace(image_id="")] * images
    order = Order(digest="d", seed=0, groups=[1] * images, batch_images=4)
    known = StandIns(order, records=records, max_share=percent / 100)
    assert known.allowed == percent * images // 100
