"""Workers that share images read them between them; what they cannot share is refused."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from fit_model.parallel.config import ParallelConfig
from fit_model.vix import VixConfig
from jobs.batches import Feed
from jobs.sharing import Seat, require_shares
from jobs.targets import read_labelled
from jobs.train import model_config
from jobs.train_config import TrainConfig
from jobs.workers import WorkersConfig
from pipeline.dataset import open_dataset
from tests.jobs import small_generating
from tests.jobs.small_training import train_config, write_dataset, write_images

PARALLEL = ParallelConfig(groups=2, timeout_s=120.0)
WORKERS = WorkersConfig(num_workers=4)
"""Two group sets of two."""
SIZES_PX = ((32, 16), (20, 40), (48, 32), (33, 17))


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> str:
    """Images of several sizes, of two groups at least, one with a corner that is missing."""
    folder = tmp_path_factory.mktemp("shared")
    write_images(folder / "images", sizes_px=SIZES_PX)
    return write_dataset(folder / "images", folder / "dataset")


def encoder(dataset: str, **changes: Any) -> TrainConfig:
    settings = {"total_steps": 10, "parallel": PARALLEL, "workers": WORKERS} | changes
    return train_config(dataset, **settings)


@pytest.mark.parametrize("face", ["encoder", "autoregressive"])
def test_the_workers_of_a_set_read_its_images_between_them(images, face):
    dataset, config = open_dataset(images), encoder(images)
    head = model_config(config, dataset).head
    labelled = read_labelled(dataset, head, split="train")
    unit = "rows" if face == "autoregressive" else "groups"

    def read(**seat: Any):
        seated = Seat(unit=unit, set=1, num_sets=2, **seat)
        feed = Feed(dataset, labelled=labelled, head=head, config=config.batch, seat=seated)
        return feed.read(feed.share(0, 0))

    whole, parts = read(), [read(worker=worker, groups=2) for worker in range(2)]
    for part in parts:
        assert part.targets.equal(whole.targets)
        assert part.seeds.equal(whole.seeds)
        assert part.weights.equal(whole.weights)
        assert part.groups_per_image == whole.groups_per_image
        assert part.groups.grid_rows.equal(whole.groups.grid_rows)
    assert sum(part.megapixels for part in parts) == pytest.approx(whole.megapixels)
    for image in range(len(whole.seeds)):
        held = [part.groups.pixels.to("cpu")[part.groups.image == image] for part in parts]
        assert torch.cat(held).equal(whole.groups.pixels.to("cpu")[whole.groups.image == image])
        if face == "autoregressive":
            rows = [set(part.groups.row[part.groups.image == image].tolist()) for part in parts]
            assert not rows[0] & rows[1]


def test_ranks_that_follow_each_other_make_a_set():
    face = small_generating.FACES["autoregressive"]
    seats = [Seat.of(n, num_workers=6, parallel=PARALLEL, face=face) for n in range(6)]
    assert [(seat.set, seat.worker) for seat in seats] == [
        (0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1),
    ]  # fmt: skip
    assert all((seat.num_sets, seat.groups, seat.unit) == (3, 2, "rows") for seat in seats)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"workers": WorkersConfig(num_workers=3)}, "num_workers 3 is no multiple of parallel.gr"),
        (
            {"model": VixConfig(patch_px=8, depth=1, width=8, heads=2)},
            "kind 'vix' sees its images whole: leave parallel.groups at 1",
        ),
    ],
    ids=["no multiple", "vix"],
)
def test_what_cannot_be_shared_is_refused(changes, says):
    encoder("d")
    with pytest.raises(ValueError, match=says):
        encoder("d", **changes)


def test_as_many_images_a_step_as_there_are_sets_are_enough():
    config = encoder("d")
    encoder("d", batch=replace(config.batch, images_per_step=2))
    with pytest.raises(ValueError, match="images_per_step 1 leaves some of 2 workers x 1"):
        encoder("d", batch=replace(config.batch, images_per_step=1))


def test_an_image_of_too_few_groups_is_refused_by_name(tiny_dataset):
    dataset, config = open_dataset(tiny_dataset), encoder(tiny_dataset)
    records = read_labelled(dataset, model_config(config, dataset).head, split="train").records
    says = "image 'train-00': parallel.groups 2 is more group workers than an image has groups, 1"
    with pytest.raises(ValueError, match=says):
        require_shares(records, parallel=PARALLEL, face=config.model)
