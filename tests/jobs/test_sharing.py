"""Workers that share images learn what one plain loop learns, and each reads its own groups."""

from dataclasses import replace
from typing import Any

import pytest
import ray
import ray.train
import torch
from ray.train.torch import TorchTrainer

from fit_model.bounded.config import BoundedConfig
from fit_model.parallel.config import ParallelConfig
from fit_model.vix import VixConfig
from jobs.batches import Feed
from jobs.engine import EngineConfig
from jobs.monitor import Inbox
from jobs.sharing import Seat, require_shares
from jobs.targets import read_labelled
from jobs.train import TrainConfig, assignment, model_config
from jobs.workers import WorkersConfig
from pipeline.dataset import open_dataset
from tests.jobs import small_generating
from tests.jobs.small_training import Plain, train_config, write_dataset, write_images
from tests.jobs.test_engine import losses, norms, train_all

PARALLEL = ParallelConfig(groups=2, timeout_s=120.0)
WORKERS = WorkersConfig(num_workers=4)
"""Two group sets of two."""
SIZES_PX = ((32, 16), (20, 40), (48, 32), (33, 17))
TALL_PX = ((16, 8), (24, 16), (16, 16))


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> str:
    """Images of several sizes, of two groups at least, one with a corner that is missing."""
    folder = tmp_path_factory.mktemp("shared")
    write_images(folder / "images", sizes_px=SIZES_PX)
    return write_dataset(folder / "images", folder / "dataset")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> str:
    """Images to learn to make, of two rows of groups at least."""
    return small_generating.write_dataset(tmp_path_factory.mktemp("pictures"), sizes_px=TALL_PX)


def encoder(dataset: str, **changes: Any) -> TrainConfig:
    settings = {"total_steps": 10, "parallel": PARALLEL, "workers": WORKERS} | changes
    return train_config(dataset, **settings)


def variants(images: str, pictures: str) -> dict[str, TrainConfig]:
    stage_2 = encoder(images)
    bounded = BoundedConfig(groups_a_chunk=1, offload="disk")
    named = {
        "stage 2": stage_2,
        "stage 2, bounded, 2 micro-steps": replace(
            stage_2, bounded=bounded, batch=replace(stage_2.batch, accumulation=2)
        ),
        "stage 3": replace(stage_2, engine=EngineConfig(zero_stage=3)),
    }
    for face in small_generating.FACES:
        config = small_generating.train_config(pictures, face)
        named[face] = replace(config, parallel=PARALLEL, workers=WORKERS)
    return named


@pytest.fixture(scope="module")
def results(ray_local, images, pictures, tmp_path_factory) -> dict[str, Any]:
    inbox = Inbox.remote()
    tasks = {
        name: assignment(config, model_config(config, open_dataset(config.dataset)), inbox=inbox)
        for name, config in variants(images, pictures).items()
    }
    TorchTrainer(
        train_all,
        train_loop_config={"tasks": tasks},
        scaling_config=ray.train.ScalingConfig(
            num_workers=WORKERS.num_workers, resources_per_worker={"CPU": 0.5}
        ),
        run_config=ray.train.RunConfig(
            name="sharing", storage_path=str(tmp_path_factory.mktemp("sharing"))
        ),
    ).fit()
    return {name: (metrics, weights) for name, metrics, weights in ray.get(inbox.drain.remote())}


@pytest.fixture(scope="module")
def plain(images) -> Plain:
    config, dataset = encoder(images), open_dataset(images)
    loop = Plain(dataset=dataset, config=config, model_config=model_config(config, dataset))
    loop.train()
    return loop


@pytest.mark.ray
@pytest.mark.parametrize("name", ["stage 2", "stage 2, bounded, 2 micro-steps", "stage 3"])
def test_sets_of_workers_learn_what_one_plain_loop_learns(results, plain, name):
    assert losses(results, name) == pytest.approx(plain.losses, rel=1e-5)
    assert norms(results, name) == pytest.approx(plain.norms, rel=1e-4)


@pytest.mark.ray
@pytest.mark.parametrize("face", small_generating.FACES)
def test_sets_of_workers_learn_to_make_what_one_plain_loop_does(results, pictures, face):
    expected, _ = small_generating.plain_losses(small_generating.train_config(pictures, face))
    assert losses(results, face) == pytest.approx(expected, rel=2e-5)


@pytest.mark.parametrize("face", ["encoder", "autoregressive"])
def test_the_workers_of_a_set_read_its_images_between_them(images, face):
    dataset, config = open_dataset(images), encoder(images)
    head = model_config(config, dataset).head
    labelled = read_labelled(dataset, head, split="train")
    unit = "rows" if face == "autoregressive" else "groups"

    def read(**seat: Any):
        seated = Seat(unit=unit, set=1, num_sets=2, **seat)
        feed = Feed(dataset, labelled=labelled, head=head, config=config.batch, seat=seated)
        return feed.micro_batch(0, 0)

    whole, parts = read(), [read(worker=worker, groups=2) for worker in range(2)]
    for part in parts:
        assert part.targets.equal(whole.targets)
        assert part.seeds.equal(whole.seeds)
        assert part.weights.equal(whole.weights)
        assert part.groups_per_image == whole.groups_per_image
        assert part.groups.grid_rows.equal(whole.groups.grid_rows)
    assert sum(part.megapixels for part in parts) == pytest.approx(whole.megapixels)
    for image in range(len(whole.seeds)):
        held = [part.groups.pixels[part.groups.image == image] for part in parts]
        assert torch.cat(held).equal(whole.groups.pixels[whole.groups.image == image])
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
