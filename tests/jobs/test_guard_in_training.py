"""A pixel that overflows costs a training the steps that see it, and its image is named."""

import csv
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs.batches import BatchConfig
from jobs.train import main
from pipeline.config import GroupingConfig, PreprocessConfig
from pipeline.dataset import open_dataset
from pipeline.flow import preprocess
from tests.jobs.conftest import Trained
from tests.jobs.small_training import order_of, train_config
from tests.pipeline.scenes import in_process, noise, write_raster

pytestmark = [pytest.mark.ray]

STEPS, IMAGES, HUGE_IMAGE, HUGE_GROUP = 5, 8, "scene-5", 3


def write_scenes(folder: Path) -> None:
    """Rasters of 2 x 2 groups, one with a value that no sum of squares holds."""
    rows = []
    for number in range(IMAGES):
        pixels = noise(32, 32, 2, seed=number, dtype="uint8").astype(np.float32)
        name = f"scene-{number}"
        if name == HUGE_IMAGE:
            pixels[20, 20, 0] = 1e30
        write_raster(folder / f"{name}.tif", pixels, nodata=None)
        rows.append([name, "even" if number % 2 == 0 else "odd", "train"])
    with (folder / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["image", "kind", "split"], *rows])


def write_dataset(images: Path, output: Path) -> str:
    """With the mean and the deviation of the other images, as if they alone had been known."""
    preprocess(
        PreprocessConfig(
            sources=str(images),
            output=str(output),
            grouping=GroupingConfig(group_side_px=16, patch_px=8),
            labels=str(images / "labels.csv"),
        ),
        run_stage=in_process,
    )
    place = output / "dataset.json"
    found = json.loads(place.read_text())
    for kept in found["formats"]:
        kept["band_mean"], kept["band_std"] = [127.0, 127.0], [74.0, 74.0]
    place.write_text(json.dumps(found))
    return str(output)


@dataclass(frozen=True)
class Spoilt:
    trained: Trained
    bad_steps: list[int]
    """In which the image is seen."""

    def artifact(self, file: str) -> Any:
        import mlflow

        return mlflow.artifacts.load_dict(f"runs:/{self.trained.result.run_id}/{file}")


@pytest.fixture(scope="module")
def spoilt(ray_local, empty_store, tmp_path_factory) -> Iterator[Spoilt]:
    folder = tmp_path_factory.mktemp("spoilt")
    (folder / "mlflow.db").write_bytes(empty_store.read_bytes())
    write_scenes(folder / "images")
    address = write_dataset(folder / "images", folder / "dataset")
    config = train_config(
        address,
        total_steps=STEPS,
        storage_path=str(folder / "runs"),
        batch=BatchConfig(images_per_step=4, seed=3),
    )
    dataset = open_dataset(address)
    records = [each for each in dataset.images("train") if each.groups]
    order = order_of(dataset, records, config.batch)
    bad = [
        step + 1
        for step in range(STEPS)
        if HUGE_IMAGE in [records[index].image_id for index in order.batch(step)]
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        result = main(config)
        trained = Trained(config=config, result=result, storage=folder / "runs")
        yield Spoilt(trained=trained, bad_steps=bad)


def test_just_the_steps_that_see_it_are_skipped_and_training_ends(spoilt):
    assert 0 < len(spoilt.bad_steps) < STEPS
    skipped = spoilt.trained.history("guard/skipped")
    assert skipped == [(step, 1.0) for step in spoilt.bad_steps]


def test_every_step_is_in_the_record_once_with_its_loss_as_it_was(spoilt):
    losses = dict(spoilt.trained.history("loss"))
    assert list(losses) == list(range(1, STEPS + 1))
    lost = [step for step, value in losses.items() if not math.isfinite(value)]
    assert lost == spoilt.bad_steps


def test_its_image_and_its_group_are_named(spoilt):
    for step in spoilt.bad_steps:
        found = spoilt.artifact(f"offenders/step-{step:07d}.json")
        assert found["reason"] == "the loss is not finite"
        assert found["images"] == [{"id": HUGE_IMAGE, "loss": "nan", "groups": [HUGE_GROUP]}]


def test_the_events_say_so(spoilt):
    events = spoilt.artifact("events.json")
    told = [(each["step"], each["kind"]) for each in events]
    assert told == [(step, "step skipped") for step in spoilt.bad_steps]
