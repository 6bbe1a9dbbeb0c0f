"""The digits dataset keeps its pixels and its held-out fifth; the judge says no where it should."""

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from pipeline.config import GroupingConfig, PreprocessConfig
from pipeline.dataset import open_dataset
from pipeline.flow import preprocess
from tests import digits
from tests.pipeline.scenes import in_process


def test_preprocessing_keeps_raw_pixels_classes_and_the_heldout_fifth(tmp_path: Path) -> None:
    digits.make(tmp_path / "digits")
    config = PreprocessConfig(
        sources=str(tmp_path / "digits" / "images"),
        labels=str(tmp_path / "digits" / "labels.csv"),
        output=str(tmp_path / "dataset"),
        grouping=GroupingConfig(group_side_px=8, patch_px=2),
    )
    preprocess(config, run_stage=in_process)
    dataset = open_dataset(str(tmp_path / "dataset"))
    images, real = dataset.images(), load_digits()
    assert dataset.info.classes["label"] == digits.CLASSES
    assert [image.image_id for image in images] == [f"{n:04d}" for n in range(1797)]
    assert [image.labels["label"] for image in images] == [f"digit_{k}" for k in real.target]
    heldout = [n for n, image in enumerate(images) if image.split == "test"]
    assert heldout == list(range(0, 1797, 5))
    for number in (0, 4, 1796):
        groups = dataset.read(images[number])
        assert groups.pixels[0].dtype == np.uint8
        np.testing.assert_array_equal(groups.pixels[0][:, :, 0], real.images[number])


def test_the_marginal_model_gives_a_distribution_that_real_digits_fit() -> None:
    entropy = np.log2(digits.LEVELS)
    assert digits.marginal_bits(smoothing=1e9) == pytest.approx(entropy)
    assert 2.40 < digits.marginal_bits() < digits.marginal_bits(smoothing=1.0) < 2.44


def test_the_judge_knows_real_heldout_digits_and_refuses_noise() -> None:
    assert digits.heldout_accuracy() > 0.95
    real = digits.part("test")
    assert digits.recognised(real).mean() > 0.95
    asked_for_others = digits.Digits(pixels=real.pixels, kinds=(real.kinds + 1) % 10)
    assert digits.recognised(asked_for_others).mean() < 0.05


def test_samples_are_judged_by_the_label_they_were_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    real = digits.part("train")
    (tmp_path / "images").mkdir()
    rows = [["image", "label"]]
    for number in range(4):
        Image.fromarray(real.pixels[number]).save(tmp_path / "images" / f"s{number}.png")
        asked = (real.kinds[number] + (number == 3)) % 10
        rows.append([f"s{number}", f"digit_{asked}"])
    with (tmp_path / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    digits.tell_samples(tmp_path)
    assert "recognised as the asked digit: 75.0% of 4 samples" in capsys.readouterr().out
    Image.fromarray(real.pixels[0] * 15).save(tmp_path / "images" / "s0.png")
    with pytest.raises(SystemExit, match="'s0' is not 8 x 8 px"):
        digits.tell_samples(tmp_path)
