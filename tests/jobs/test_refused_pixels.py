"""Pixels that a model must not be shown are refused where batches are made, on the CPU."""

from types import SimpleNamespace
from typing import Any, NoReturn

import pytest

from fit_model.choosing import DecodingConfig
from jobs.batches import BatchConfig, Feed
from jobs.predictions import Measurer, Measuring
from jobs.sampling import Completer, Completing
from jobs.targets import GenerateTarget, Labelled, head_config, read_labelled
from pipeline.dataset import Dataset, open_dataset
from tests.jobs.small_generating import write_dataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Dataset:
    return open_dataset(write_dataset(tmp_path_factory.mktemp("generating")))


class Blind:
    """A model on an accelerator: it would look at no value, and must not be reached."""

    def __init__(self, dataset: Dataset) -> None:
        # bright images go up to 16
        target = GenerateTarget(label="kind", pixel_range=(0.0, 8.0))
        self.config = SimpleNamespace(head=head_config(target, dataset, split="train"))

    def to(self, device: str) -> "Blind":
        return self

    def eval(self) -> "Blind":
        return self

    def refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise AssertionError("the model was shown the pixels")

    measures = first_patches = generate = refuse


@pytest.fixture
def model(dataset) -> Any:
    return Blind(dataset)


@pytest.fixture
def labelled(dataset, model) -> Labelled:
    return read_labelled(dataset, model.config.head, split="train")


REFUSAL = r"image 'train-01': a pixel is \d+, outside 0 to 8"


def test_training_refuses_pixels_beyond_the_range_by_their_image(dataset, model, labelled):
    feed = Feed(
        dataset,
        labelled=labelled,
        head=model.config.head,
        config=BatchConfig(images_per_step=9),
    )
    with pytest.raises(ValueError, match=r"image 'train-\d+': a pixel is \d+, outside 0 to 8"):
        feed.read(feed.share(0, 0))


def test_an_evaluation_refuses_pixels_beyond_the_range_by_their_image(dataset, model, labelled):
    held = Measuring(
        model=model, dataset=str(dataset.place), labelled=labelled, device="cpu", threads=1
    )
    with pytest.raises(ValueError, match=REFUSAL):
        Measurer(held)([0, 1])


def test_a_completion_refuses_pixels_beyond_the_range_by_their_image(dataset, model, labelled):
    held = Completing(
        model=model,
        targets=labelled.values,
        seed=0,
        sampling=DecodingConfig(),
        device="cpu",
        threads=1,
        dataset=str(dataset.place),
        records=labelled.records,
        patches=1,
    )
    with pytest.raises(ValueError, match=REFUSAL):
        Completer(held)([1])
