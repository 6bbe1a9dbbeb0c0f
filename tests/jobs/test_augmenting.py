"""What a training sees of its images is the same on any number of workers; off, it is nothing."""

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch

from fit_model.augment.config import AugmentConfig
from fit_model.groups import GroupBatch
from fit_model.vix import VixConfig
from jobs.augmenting import draw_views, head_of_views, require_augmentable
from jobs.batches import Batch, Feed
from jobs.sharing import Seat
from jobs.targets import GenerateTarget, read_labelled
from jobs.train import model_config
from jobs.train_config import TrainConfig
from pipeline.dataset import Dataset, open_dataset
from tests.jobs import small_generating
from tests.jobs.small_training import SIDE_PX, train_config, write_dataset, write_images

SIZES_PX = ((32, 48), (20, 40), (48, 32), (33, 50))
CHANGED = AugmentConfig(
    symmetries="all", crop_groups=(2, 2), brightness=0.2, contrast=0.1, band_shift=0.3
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Dataset:
    """Images of several sizes, of two rows and two columns of groups at least."""
    folder = tmp_path_factory.mktemp("augmented")
    write_images(folder / "images", sizes_px=SIZES_PX)
    return open_dataset(write_dataset(folder / "images", folder / "dataset"))


def feed(dataset: Dataset, *, augment: AugmentConfig = CHANGED, **seat: Any) -> Feed:
    config = train_config(str(dataset.place))
    head = model_config(config, dataset).head
    return Feed(
        dataset,
        labelled=read_labelled(dataset, head, split="train"),
        head=head,
        config=config.batch,
        augment=augment,
        seat=Seat(**seat),
    )


def read(dataset: Dataset, step: int, **settings: Any) -> Batch:
    source = feed(dataset, **settings)
    return source.read(source.share(step, 0))


def same(one: GroupBatch, other: GroupBatch) -> bool:
    names = [each.name for each in fields(GroupBatch) if each.name not in ("pixels", "colours")]
    colours = one.colours, other.colours
    return (
        all(getattr(one, name).equal(getattr(other, name)) for name in names)
        and one.pixels.to("cpu").equal(other.pixels.to("cpu"))
        and (colours == (None, None) or equal_colours(*colours))
    )


def equal_colours(one: Any, other: Any) -> bool:
    return all(getattr(one, each.name).equal(getattr(other, each.name)) for each in fields(one))


def alone(batch: GroupBatch, image: int) -> GroupBatch:
    """One image of a batch."""
    first, last = (batch.image == image).nonzero()[[0, -1], 0].tolist()
    return batch.part(slice(first, last + 1))


@pytest.mark.parametrize("num_workers", [2, 3])
def test_images_look_the_same_on_any_number_of_workers(dataset, num_workers):
    for step in (0, 1, 2):
        whole, images = read(dataset, step), feed(dataset).share(step, 0).images
        for worker in range(num_workers):
            source = feed(dataset, set=worker, num_sets=num_workers)
            share = source.share(step, 0)
            mine = source.read(share)
            for place, image in enumerate(share.images):
                expected = alone(whole.groups, images.index(image))
                assert same(alone(mine.groups, place), expected)


@pytest.mark.parametrize("unit", ["groups", "rows"])
@pytest.mark.parametrize("augment", [CHANGED, replace(CHANGED, crop_groups=None)], ids=str)
def test_workers_that_share_images_see_one_view_between_them(dataset, unit, augment):
    for step in range(3):
        whole = read(dataset, step, augment=augment)
        parts = [
            read(dataset, step, augment=augment, worker=worker, groups=2, unit=unit)
            for worker in range(2)
        ]
        assert all(part.groups_per_image == whole.groups_per_image for part in parts)
        for image in range(whole.groups.num_images):
            held = [alone(part.groups, image) for part in parts]
            wanted = alone(whole.groups, image)
            assert torch.cat([each.pixels.to("cpu") for each in held]).equal(
                wanted.pixels.to("cpu")
            )
            for name in ("row", "column", "valid_height_px", "valid_width_px"):
                assert torch.cat([getattr(each, name) for each in held]).equal(
                    getattr(wanted, name)
                )
            assert all(equal_colours(each.colours, wanted.colours) for each in held)
            if unit == "rows":
                assert held[0].row[-1] < held[1].row[0]


def test_a_training_that_goes_on_sees_what_it_would_have_seen(dataset):
    gone_on = feed(dataset).stream(2, 4)
    throughout = list(feed(dataset).stream(0, 4))[2:]
    assert all(
        same(one.groups, other.groups) for one, other in zip(gone_on, throughout, strict=True)
    )


def test_an_image_looks_different_in_every_epoch(dataset):
    source = feed(dataset)
    looks = []
    for step in range(12):
        share = source.share(step, 0)
        if 1 in share.images:
            groups = alone(source.read(share).groups, share.images.index(1))
            looks.append(groups.colours.brightness.item())
    assert len(looks) == len(set(looks)) >= 6


def test_nothing_changes_unless_it_is_set(dataset):
    config = train_config(str(dataset.place))
    assert config.augment.changes_nothing
    batch = read(dataset, 0, augment=config.augment)
    source = feed(dataset)
    share = source.share(0, 0)
    for place, index in enumerate(share.images):
        record = source.labelled.records[index]
        found, stored = alone(batch.groups, place), dataset.read(record)
        np.testing.assert_array_equal(found.pixels.to("cpu"), stored.pixels)
        assert found.colours is None
        for name in ("row", "column", "valid_height_px", "valid_width_px"):
            np.testing.assert_array_equal(getattr(found, name), getattr(stored, name))
        assert found.grid_rows.tolist() == [record.grid_rows]
    assert not same(batch.groups, read(dataset, 0).groups)


def test_only_the_groups_of_a_crop_are_read(dataset, monkeypatch):
    asked, whole = [], Dataset.read

    def noticed(self: Dataset, record: Any, *, groups: slice, **how: Any) -> Any:
        asked.append(groups.stop - groups.start)
        return whole(self, record, groups=groups, **how)

    monkeypatch.setattr(Dataset, "read", noticed)
    batch = read(dataset, 0)
    assert sum(asked) == sum(batch.groups_per_image) == len(batch.groups.image)
    assert batch.groups.grid_rows.max() == 2
    assert max(batch.groups_per_image) == 4
    assert batch.megapixels <= 4 * len(batch.seeds) * SIDE_PX**2 / 1e6


def test_crops_that_are_read_row_by_row_hold_a_row_for_every_worker(dataset):
    record = replace(
        dataset.images("train")[0], grid_rows=5, grid_columns=2, groups=(2, 3, 6, 7, 8, 9)
    )
    for seed in range(20):
        seen = draw_views(
            [record], [seed], config=AugmentConfig(crop_groups=(2, 2)),
            seat=Seat(groups=2, unit="rows"),
        )  # fmt: skip
        assert [each.stored.tolist() for each in seen] == [[2, 3, 4, 5]]


def require(config: TrainConfig, dataset: Dataset, augment: AugmentConfig, *, groups=1) -> None:
    model = model_config(config, dataset)
    require_augmentable(
        augment,
        model=model,
        records=[record for record in dataset.images("train") if record.groups],
        side_px=SIDE_PX,
        seat=Seat.of(0, num_workers=groups, parallel=replace(config.parallel, groups=groups),
                     face=config.model),
    )  # fmt: skip


VIX = VixConfig(patch_px=8, depth=1, width=8, heads=2, grid_rows=2, grid_columns=3)


@pytest.mark.parametrize(
    ("augment", "changes", "says"),
    [
        (
            {"stain": 0.1},
            {},
            "augment.stain is for 3 bands of uint8, and image 'train-00' has 2 of",
        ),
        ({"crop_groups": (2, 2)}, {"model": VIX}, r"augment.crop_groups \[2, 2\] changes the grid"),
        ({"symmetries": "turns"}, {"model": VIX}, "'turns' turns image 'train-00' of 2 x 3 groups"),
        (
            {"symmetries": "mirror"},
            {"model": VIX},
            "gap in image 'train-01' for a model of kind 'vix': groups of 16 px do not divide",
        ),
    ],
    ids=str,
)
def test_what_a_model_cannot_take_is_refused_by_name(dataset, augment, changes, says):
    config = replace(train_config(str(dataset.place)), **changes)
    with pytest.raises(ValueError, match=says):
        require(config, dataset, AugmentConfig(**augment))


def test_a_crop_that_leaves_a_worker_without_groups_is_refused(dataset):
    config = train_config(str(dataset.place))
    require(config, dataset, AugmentConfig(crop_groups=(1, 2)), groups=2)
    with pytest.raises(ValueError, match="image 'train-00': 1 x 2 groups of a grid of 2 x 3 nowh"):
        require(config, dataset, AugmentConfig(crop_groups=(1, 2)), groups=3)


def test_a_model_that_makes_images_learns_crops_but_no_other_colours(dataset):
    config = train_config(
        str(dataset.place),
        model=small_generating.FACES["diffusion"],
        target=GenerateTarget(pixel_range=(0.0, 65535.0)),
    )
    head = model_config(config, dataset).head
    crop = AugmentConfig(crop_groups=(1, 9))
    assert head_of_views(head, config=AugmentConfig()) is head
    cropped = head_of_views(head, config=crop)
    assert (cropped.grid_rows, cropped.grid_columns) == (1, head.grid_columns)
    require(config, dataset, AugmentConfig(symmetries="all", crop_groups=(2, 2)))
    with pytest.raises(ValueError, match="contrast changes colours, and a model that makes"):
        require(config, dataset, AugmentConfig(contrast=0.1))
