"""From a ModelConfig to a model: the one place that looks at the kind of a model."""

from collections.abc import Callable
from typing import Any

from fit_model import configuration
from fit_model.diffusion import DiffusionModel
from fit_model.encoder_model import EncoderModel
from fit_model.model import Model, ModelConfig
from fit_model.subpixel_model import AutoregressiveModel
from fit_model.vix_model import VixModel

MODELS: dict[str, Callable[[ModelConfig], Model]] = {
    "encoder": EncoderModel,
    "diffusion": DiffusionModel,
    "autoregressive": AutoregressiveModel,
    "vix": VixModel,
}


def build(config: ModelConfig) -> Model:
    """A model with fresh weights, drawn from torch's global generator."""
    return MODELS[config.face.kind](config)


def config_to_dict(config: ModelConfig) -> dict[str, Any]:
    """The configuration as JSON knows it."""
    return configuration.to_dict(config)


def config_from_dict(values: Any) -> ModelConfig:
    """The inverse of config_to_dict; refuses unknown keys, missing ones and wrong types."""
    return configuration.from_dict(ModelConfig, values)
