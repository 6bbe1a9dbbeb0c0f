"""What a job says in the end: lines that can be typed as they stand."""

import io
from dataclasses import replace
from types import SimpleNamespace

import pytest
from rich.console import Console

from fit_model.bounded.config import BoundedConfig
from fit_model.encoder import EncoderConfig
from fit_model.heads import ClassifyConfig
from fit_model.models import build
from fit_model.vix import VixConfig
from jobs import evaluate, generate, train
from jobs.card import model_card
from jobs.evaluate import EvaluateConfig
from jobs.orders import GenerateConfig, Order, order_of
from jobs.targets import Labelled
from jobs.train import model_config
from jobs.trained import TrainResult, hand_out
from pipeline.dataset import open_dataset
from pipeline.storage import Location
from tests.jobs.small_generating import train_config, write_dataset
from tests.jobs.small_training import TRUNK
from tests.jobs.small_training import train_config as encoder_config


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> str:
    return write_dataset(tmp_path_factory.mktemp("generating"))


@pytest.fixture(scope="module")
def order(dataset) -> Order:
    model = build(model_config(train_config(dataset, "diffusion"), open_dataset(dataset)))
    return order_of(model, GenerateConfig(model="m", output="made", num_images=1))


def console() -> Console:
    return Console(file=io.StringIO(), soft_wrap=True, markup=False, highlight=False, width=80)


@pytest.mark.parametrize(
    ("labels", "asks"),
    [
        (("0", "1"), True),
        (("0.5", "-1e3"), True),
        (("0", "one"), False),
        (("bright", "dark"), False),
        ((), False),
    ],
)
def test_classes_that_look_like_numbers_are_preprocessed_as_names(order, labels, asks):
    said = console()
    generate.tell(replace(order, labels=labels), Location.of("made"), seconds=1.0, console=said)
    line = said.file.getvalue().splitlines()[-1]
    assert line.startswith("next: farreach preprocess sources=")
    assert (" class_labels=[label] " in line) == asks


@pytest.mark.parametrize(
    ("model", "asks"),
    [
        ("digits@challenger", ["generate digits@challenger output=made",
                               "models promote digits@challenger champion"]),
        ("s3://runs/model", ["generate s3://runs/model output=made"]),
    ],
)  # fmt: skip
def test_a_model_that_makes_images_is_asked_for_some_after_its_evaluation(order, model, asks):
    said, labelled = console(), Labelled(records=(), values=None, without_groups=0)
    config = EvaluateConfig(model=model, dataset="d")
    evaluate.tell(config, {"loss": 1.0}, labelled, order.head, said)
    lines = [line for line in said.file.getvalue().splitlines() if line.startswith("next: ")]
    assert lines == [f"next: farreach {each}" for each in asks]
    said = console()
    evaluate.tell(config, {"loss": 1.0}, labelled, ClassifyConfig(classes=("a", "b")), said)
    assert "generate" not in said.file.getvalue()


@pytest.mark.parametrize(
    ("bounded", "settings"),
    [
        (None, ""),
        (BoundedConfig(groups_a_chunk=8), " bounded.groups_a_chunk=8 bounded.offload=none"),
        (
            BoundedConfig(groups_a_chunk=8, offload="disk", folder="/fast"),
            " bounded.groups_a_chunk=8 bounded.offload=disk bounded.folder=/fast",
        ),
    ],
)
def test_what_trained_in_bounded_memory_is_evaluated_in_it(dataset, bounded, settings):
    config = replace(train_config(dataset, "diffusion"), bounded=bounded)
    result = TrainResult(run_id="r", model_folder="runs/model", version=None, last={}, measured="")
    said = console()
    train.tell(config, result, open_dataset(dataset), said)
    line = said.file.getvalue().splitlines()[-1]
    wanted = f"model=runs/model dataset={dataset} split=test{settings}"
    assert line == f"next: farreach evaluate {wanted}"


LEARNED = {"latent_position": "learned"}


@pytest.mark.parametrize(
    ("face", "changes", "says"),
    [
        # the grid of most training images; a group holds 2 x 2 patches of the autoregressive model
        ("diffusion", {}, "1 x 1 groups an image unless asked for another size"),
        ("diffusion", LEARNED | {"num_groups": 6}, "6 groups an image, no more and no fewer"),
        ("autoregressive", LEARNED | {"num_groups": 24}, "6 groups an image, no more"),
        ("encoder", {}, "any number of groups an image"),
        ("vix", {"grid_rows": 2, "grid_columns": 3}, "2 x 3 groups an image, in no other grid"),
        ("encoder", LEARNED | {"num_groups": 6}, "6 groups an image, no more and no fewer"),
        ("encoder", {"group_token": "one_hot", "num_groups": 6}, "6 groups an image, no more"),
    ],
)
def test_a_card_says_how_large_images_may_be(dataset, face, changes, says):
    opened = open_dataset(dataset)
    predicting = {
        "encoder": EncoderConfig(patch_px=4, trunk=TRUNK),
        "vix": VixConfig(patch_px=4, width=8, depth=1, heads=1),
    }
    if face in predicting:
        config = encoder_config(dataset, model=predicting[face])
    else:
        config = train_config(dataset, face)
    config = replace(config, model=replace(config.model, **changes))
    card = model_card(
        "m", model_config(config, opened), opened, split="train", run_id="r", steps=1,
        metrics={}, measured="last step",
    )  # fmt: skip
    assert f"- **Images** of 1 bands in groups of 8 px,\n  patches of 4 px; {says}" in card


def test_a_card_says_how_many_steps_were_made_where_training_ended_early(
    dataset, tmp_path, monkeypatch
):
    opened, config = open_dataset(dataset), encoder_config(dataset, register_as="m", total_steps=90)
    cards = []
    monkeypatch.setattr(
        "jobs.trained.registry.register", lambda *_, card, **settings: cards.append(card) or 1
    )
    hand_out(
        config,
        model_config(config, opened),
        opened,
        run=SimpleNamespace(run_id="r"),
        folder=str(tmp_path),
        steps=20,
        last={"loss": 0.5},
    )
    assert "- **Run** `r`, 20 steps" in cards[0]
