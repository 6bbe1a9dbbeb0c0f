"""From a ModelConfig to a model: the one place that looks at the kind of a model."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from fit_model import configuration
from fit_model.encoder import Encoder, EncoderConfig
from fit_model.groups import GroupBatch
from fit_model.heads import HEADS, Head, HeadConfig
from fit_model.shapes import Outputs
from fit_model.tokens import InputConfig, normalized, patches_of, valid_patches


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Everything that builds a model: its pixels, its body and its head."""

    encoder: EncoderConfig
    input: InputConfig
    head: HeadConfig

    def __post_init__(self) -> None:
        side_px, patch_px = self.input.group_side_px, self.encoder.patch_px
        if side_px % patch_px:
            raise ValueError(
                f"group_side_px {side_px} is no multiple of patch_px {patch_px}: "
                "choose another patch, or cut the images into other groups"
            )
        layers = self.encoder.trunk.layers
        ends_globally = self.encoder.trunk.blocks[-1].num_across > 0
        if self.head.pool == "latents" and not ends_globally:
            raise ValueError(
                f"the last local layers of {layers!r} would not reach the head, which pools "
                "latents: end in global layers, or pool tokens"
            )
        if self.head.pool == "tokens" and ends_globally:
            raise ValueError(
                f"the last global layers of {layers!r} would not reach the head, which pools "
                "tokens: end in local layers, or pool latents"
            )

    @property
    def num_tokens(self) -> int:
        """Patches of a group."""
        return (self.input.group_side_px // self.encoder.patch_px) ** 2

    @property
    def patch_channels(self) -> int:
        """Values of a patch."""
        return self.encoder.patch_px**2 * self.input.bands


class Model(nn.Module):
    """Pixels of groups in, one row of outputs an image out.

    `model.head.loss(outputs, targets)` and `model.head.predictions(outputs)` say what the outputs
    mean. `model.config` builds the same model again.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        trunk = config.encoder.trunk
        self.config = config
        self.encoder = Encoder(
            config.encoder, num_tokens=config.num_tokens, inputs=config.patch_channels
        )
        width = trunk.latent_width if config.head.pool == "latents" else trunk.width
        make_head: Callable[..., Head] = HEADS[config.head.kind]
        self.head = make_head(config.head, width=width)

    def forward(self, batch: GroupBatch) -> Outputs:
        """Logits or standardised numbers of every image, in float32 at least."""
        source, patch_px = self.config.input, self.config.encoder.patch_px
        side_px, bands = batch.pixels.shape[2:]
        if (side_px, bands) != (source.group_side_px, source.bands):
            raise ValueError(
                f"this model takes groups of {source.group_side_px} px and {source.bands} bands, "
                f"not of {side_px} px and {bands} bands"
            )
        patches = patches_of(normalized(batch, config=source), patch_px=patch_px)
        valid = valid_patches(batch, patch_px=patch_px)
        return self.head(self.encoder(patches, batch.places, valid=valid))


MODELS: dict[str, Callable[[ModelConfig], Model]] = {"encoder": Model}


def build(config: ModelConfig) -> Model:
    """A model with fresh weights, drawn from torch's global generator."""
    return MODELS[config.encoder.kind](config)


def config_to_dict(config: ModelConfig) -> dict[str, Any]:
    """The configuration as JSON knows it."""
    return configuration.to_dict(config)


def config_from_dict(values: Any) -> ModelConfig:
    """The inverse of config_to_dict; refuses unknown keys, missing ones and wrong types."""
    return configuration.from_dict(ModelConfig, values)
