"""Large images are drawn a few at a time, however many are asked for."""

import warnings
from typing import Any

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from fit_model import canvas
from fit_model.canvas import Canvas
from fit_model.models import build
from jobs import generate
from jobs.orders import CompleteConfig, GenerateConfig, order_of
from jobs.train import model_config
from pipeline.dataset import open_dataset
from tests.fit_model.examples import randomize
from tests.jobs.small_generating import train_config, write_dataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> str:
    return write_dataset(tmp_path_factory.mktemp("generating"))


@pytest.fixture(scope="module")
def model(dataset) -> Any:
    config = model_config(train_config(dataset, "autoregressive"), open_dataset(dataset))
    return randomize(build(config)).eval()


def drawn_together(model, config: GenerateConfig, folder, monkeypatch) -> int:
    """How many images each call of the model is given."""
    asked = {}

    def over_images(held, count, *, images_per_batch, **_):
        asked["together"] = images_per_batch
        return iter(())

    monkeypatch.setattr(generate, "over_images", over_images)
    generate.write_images(order_of(model, config), folder, config=config, console=Console())
    return asked["together"]


@pytest.mark.parametrize(
    ("most_pixels", "images_per_batch", "together"),
    # an image has 2 x 3 groups of 8 x 8
    [(3 * 384, 32, 3), (4 * 384 - 1, 32, 3), (384, 32, 1), (1, 32, 1), (3 * 384, 2, 2)],
)
def test_a_batch_holds_no_more_pixels_than_stated(
    model, tmp_path, monkeypatch, most_pixels, images_per_batch, together
):
    monkeypatch.setattr(canvas, "PIXELS_A_BATCH", most_pixels)
    config = GenerateConfig(
        model="m", output="o", grid_rows=2, grid_columns=3, images_per_batch=images_per_batch
    )
    assert drawn_together(model, config, tmp_path / "images", monkeypatch) == together


def test_of_images_to_complete_the_largest_counts(model, dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(canvas, "PIXELS_A_BATCH", 2 * 256)
    complete = CompleteConfig(dataset=dataset, split="train", patches=1)
    config = GenerateConfig(model="m", output="o", complete=complete)
    assert drawn_together(model, config, tmp_path / "images", monkeypatch) == 2


def test_a_hundred_small_images_share_a_batch():
    assert Canvas(rows=1, columns=1).images_together(group_side_px=8) > 100
    assert Canvas(rows=100, columns=100).images_together(group_side_px=64) == 1


def test_a_served_model_draws_a_call_in_batches_and_gives_the_same_images(model, monkeypatch):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow warns about its own type hints
        from jobs.served_model import ServedModel
    served = ServedModel()
    served.model = model
    rows = pd.DataFrame({"label": ["dark", "bright", "dark", "bright", "dark"], "seed": range(5)})
    params = {"grid_rows": 2, "grid_columns": 1}
    at_once = served.predict(None, rows, params)
    sizes, whole = [], model.generate

    def counted(places, **given):
        sizes.append(places.num_images)
        return whole(places, **given)

    monkeypatch.setattr(model, "generate", counted)
    monkeypatch.setattr(canvas, "PIXELS_A_BATCH", 2 * 128)
    assert at_once.shape == (5, 16, 8, 1)
    np.testing.assert_array_equal(served.predict(None, rows, params), at_once)
    assert sizes == [2, 2, 1]
