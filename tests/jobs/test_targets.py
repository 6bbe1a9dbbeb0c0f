"""What a model learns: labels as the dataset has them, or one line that says why not."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fit_model.heads import ClassifyConfig
from fit_model.vix import VixConfig
from jobs.targets import ClassifyTarget, RegressTarget, head_config, read_labelled, require_grid
from jobs.train import model_config
from pipeline.dataset import open_dataset
from tests.jobs.small_training import TEST_IMAGES, TRAINING_IMAGES, train_config


@pytest.fixture
def dataset(tiny_dataset):
    return open_dataset(tiny_dataset)


def test_classes_are_counted_as_the_head_names_them(dataset):
    head = head_config(ClassifyTarget(label="kind"), dataset, split="train")
    labelled = read_labelled(dataset, head, split="test")
    assert len(labelled.records) == TEST_IMAGES
    names = [head.classes[index] for index in labelled.values]
    assert names == [record.labels["kind"] for record in labelled.records]


def test_an_image_of_background_only_is_left_out_and_counted(dataset):
    head = head_config(ClassifyTarget(label="kind"), dataset, split="train")
    labelled = read_labelled(dataset, head, split="train")
    assert labelled.without_groups == 1
    assert len(labelled.records) == len(labelled.values) == TRAINING_IMAGES


def test_numbers_are_standardised_by_the_images_that_are_learned_from(dataset):
    head = head_config(RegressTarget(labels=("amount",)), dataset, split="train")
    seen = [each.labels["amount"] for each in dataset.images("train") if each.groups]
    assert head.target_mean == (pytest.approx(np.mean(seen)),)
    assert head.target_std == (pytest.approx(np.std(seen)),)
    values = read_labelled(dataset, head, split="train").values
    # kept as finely as the table has them: float32 would round a date away
    assert values.dtype == torch.float64
    assert values[:, 0].tolist() == seen


@pytest.mark.parametrize(
    ("target", "says"),
    [
        (ClassifyTarget(label="knd"), "no label 'knd'; its labels: kind, amount, seven, tenth"),
        (
            ClassifyTarget(label="amount"),
            r"a number: use target.kind=regress, or preprocess .*=\[amount\]",
        ),
        (RegressTarget(labels=("kind",)), "'kind' holds a class: use target.kind=classify"),
        (RegressTarget(labels=("amount", "no")), "no label 'no'"),
        (RegressTarget(labels=("amount", "seven")), "'seven' is the same for every image"),
        # its deviation is not 0 but a rounding error
        (RegressTarget(labels=("tenth",)), "'tenth' is the same for every image"),
    ],
)
def test_a_target_that_cannot_be_learned_is_refused_with_the_remedy(dataset, target, says):
    with pytest.raises(ValueError, match=says):
        head_config(target, dataset, split="train")


def test_numbers_without_a_column_are_refused():
    with pytest.raises(ValueError, match=r"target\.labels is empty: name at least one"):
        RegressTarget(labels=())


def test_a_split_without_images_is_refused_with_those_that_exist(dataset):
    with pytest.raises(ValueError, match=r"split 'val' has no images .* has: test, train"):
        head_config(RegressTarget(labels=("amount",)), dataset, split="val")


def test_a_class_that_the_model_does_not_know_is_refused_with_the_image(dataset):
    head = ClassifyConfig(target="kind", classes=("bright", "grey"))
    with pytest.raises(ValueError, match=r"'test-09' has kind 'dark', .* classes: bright, grey"):
        read_labelled(dataset, head, split="test")


def test_images_of_another_grid_than_a_plain_vision_transformer_takes_are_refused_by_name(dataset):
    config = replace(train_config("d"), model=VixConfig(patch_px=8, width=8, depth=1, heads=1))
    model = model_config(config, dataset)
    labelled = read_labelled(dataset, model.head, split="train")
    said = r"'train-01' has 2 x 3 groups.*grid_rows 1 and grid_columns 1"
    with pytest.raises(ValueError, match=said):
        require_grid(model, labelled)
    require_grid(model, replace(labelled, records=labelled.records[:1]))
    encoder = model_config(train_config("d"), dataset)
    require_grid(encoder, labelled)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"num_groups": 5}, "'train-01' has 6 groups.*at most 5: set it to those of the largest"),
        (
            {"num_groups": 6, "latent_position": "learned"},
            "'train-00' has 1 x 1 groups.*one for 6: set it to what all images have",
        ),
    ],
)
def test_images_with_other_groups_than_a_model_knows_are_refused_before_training(
    dataset, settings, said
):
    encoder = model_config(train_config("d"), dataset)
    labelled = read_labelled(dataset, encoder.head, split="train")
    require_grid(replace(encoder, face=replace(encoder.face, num_groups=6)), labelled)
    with pytest.raises(ValueError, match=said):
        require_grid(replace(encoder, face=replace(encoder.face, **settings)), labelled)
