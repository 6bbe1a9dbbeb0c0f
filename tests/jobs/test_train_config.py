"""What a training may not be told, and which broken-off run it is taken to continue."""

from dataclasses import replace

import pytest

from jobs.targets import GenerateTarget
from tests.jobs.small_generating import train_config


def test_an_autoregressive_model_without_labels_has_none_to_withhold():
    config = train_config("d", "autoregressive")
    unlabelled = GenerateTarget(pixel_range=(0.0, 16.0))
    with pytest.raises(ValueError, match=r"model.label_dropout 0.3 withholds labels, and there"):
        replace(config, target=unlabelled)
    replace(config, target=unlabelled, model=replace(config.model, label_dropout=0.0))
    # of a diffusion model it is the default
    replace(train_config("d", "diffusion"), target=unlabelled)
