"""Both decoders learn over workers what one plain loop learns, chance included."""

from dataclasses import replace
from typing import Any

import pytest
import ray
import ray.train
from ray.train.torch import TorchTrainer

from fit_model.bounded.config import BoundedConfig
from fit_model.parallel.config import ParallelConfig
from jobs.batches import image_seed
from jobs.engine import EngineConfig
from jobs.inbox import Inbox
from jobs.targets import GenerateTarget, head_config, read_labelled
from jobs.train_config import TrainConfig
from pipeline.dataset import open_dataset
from tests.jobs.small_generating import FACES, plain_losses, train_config, write_dataset
from tests.jobs.small_training import told
from tests.jobs.test_engine import losses, train_all

pytestmark = [pytest.mark.ray]

OPERATORS = {
    "diffusion": {"local_operator": "xca", "global_operator": "performer@features=4"},
    "autoregressive": {"local_operator": "aft_local@window=4,rank=2"},
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> str:
    return write_dataset(tmp_path_factory.mktemp("generating"))


def with_other_operators(config: TrainConfig, face: str) -> TrainConfig:
    trunk = replace(FACES[face].trunk, **OPERATORS[face])
    return replace(config, model=replace(config.model, trunk=trunk))


def variants(dataset: str) -> dict[str, TrainConfig]:
    named = {}
    for face in FACES:
        config = train_config(dataset, face)
        for stage in (0, 2, 3):
            named[f"{face}, stage {stage}"] = replace(config, engine=EngineConfig(zero_stage=stage))
        recomputed = replace(FACES[face].trunk, checkpointing="layer")
        named[f"{face}, layers recomputed, 2 micro-steps"] = replace(
            config,
            model=replace(FACES[face], trunk=recomputed),
            batch=replace(config.batch, accumulation=2),
        )
        named[f"{face}, bounded"] = replace(config, bounded=BoundedConfig(groups_a_chunk=3))
        named[f"{face}, other operators, stage 3"] = replace(
            with_other_operators(config, face), engine=EngineConfig(zero_stage=3)
        )
        named[f"{face}, no label"] = train_config(dataset, face, label=None)
        named[f"{face}, bf16"] = replace(
            config, engine=EngineConfig(zero_stage=2, precision="bf16")
        )
    return named


TALL_PX = ((16, 8), (24, 16), (16, 16))
"""Two rows of groups at least."""


@pytest.fixture(scope="module")
def tall(tmp_path_factory) -> str:
    """Images whose rows of groups two workers can share."""
    return write_dataset(tmp_path_factory.mktemp("tall"), sizes_px=TALL_PX)


def shared_variants(dataset: str) -> dict[str, TrainConfig]:
    parallel = ParallelConfig(groups=2, timeout_s=120.0)
    return {
        f"{face}, shared": replace(train_config(dataset, face), parallel=parallel) for face in FACES
    }


@pytest.fixture(scope="module")
def results(ray_local, dataset, tall, tmp_path_factory) -> dict[str, Any]:
    inbox, folder = Inbox.remote(), tmp_path_factory.mktemp("decoders")
    tasks = {
        name: told(config, folder / name, inbox=inbox)
        for name, config in (variants(dataset) | shared_variants(tall)).items()
    }
    TorchTrainer(
        train_all,
        train_loop_config={"tasks": tasks},
        scaling_config=ray.train.ScalingConfig(num_workers=2),
        run_config=ray.train.RunConfig(name="decoders", storage_path=str(folder)),
    ).fit()
    sent = ray.get(inbox.drain.remote()).records
    return {name: (metrics, weights) for name, metrics, weights in sent}


@pytest.fixture(scope="module")
def plain(dataset) -> dict[str, list[float]]:
    return {
        f"{face}, {label}": plain_losses(train_config(dataset, face, label=label))[0]
        for face in FACES
        for label in ("kind", None)
    }


@pytest.mark.parametrize(
    "how", ["stage 0", "stage 2", "stage 3", "layers recomputed, 2 micro-steps", "bounded"]
)
@pytest.mark.parametrize("face", FACES)
def test_two_workers_learn_what_one_plain_loop_learns(results, plain, face, how):
    assert losses(results, f"{face}, {how}") == pytest.approx(plain[f"{face}, kind"], rel=2e-5)


@pytest.mark.parametrize("face", FACES)
def test_two_workers_that_share_every_image_learn_what_one_plain_loop_learns(results, tall, face):
    expected, _ = plain_losses(train_config(tall, face))
    assert losses(results, f"{face}, shared") == pytest.approx(expected, rel=2e-5)


@pytest.mark.parametrize("face", FACES)
def test_other_operators_learn_over_workers_what_they_learn_alone(results, dataset, face):
    alone, _ = plain_losses(with_other_operators(train_config(dataset, face), face))
    assert losses(results, f"{face}, other operators, stage 3") == pytest.approx(alone, rel=2e-5)


@pytest.mark.parametrize("face", FACES)
def test_a_decoder_learns_without_labels(results, plain, face):
    assert losses(results, f"{face}, no label") == pytest.approx(plain[f"{face}, None"], rel=2e-5)


@pytest.mark.parametrize("face", FACES)
def test_bf16_stays_near_fp32(results, plain, face):
    assert losses(results, f"{face}, bf16") == pytest.approx(plain[f"{face}, kind"], rel=0.03)


def test_chance_is_another_one_for_every_image_and_step():
    seeds = {image_seed(3, step=step, image=image) for step in range(20) for image in range(20)}
    assert len(seeds) == 400
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_images_that_groups_do_not_divide_are_refused_by_name(tiny_dataset):
    opened = open_dataset(tiny_dataset)
    head = head_config(GenerateTarget(), opened, split="train")
    said = "'train-01' is 20 px high and 40 px wide, which groups of 16 px do not divide"
    with pytest.raises(ValueError, match=said):
        read_labelled(opened, head, split="train")


@pytest.mark.parametrize(
    ("target", "says"),
    [
        (GenerateTarget(label="knd"), "no label 'knd'; its labels: kind, shade"),
        (
            GenerateTarget(label="shade"),
            r"a number, and .*: preprocess with class_labels=\[shade\]",
        ),
        (GenerateTarget(pixel_range=(16.0, 0.0)), r"pixel_low 16.0 must lie below pixel_high 0.0"),
    ],
)
def test_a_target_that_cannot_be_made_is_refused(dataset, target, says):
    with pytest.raises(ValueError, match=says):
        head_config(target, open_dataset(dataset), split="train")
