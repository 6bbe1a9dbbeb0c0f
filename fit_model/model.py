"""What makes a model, and what every model can do, whichever of its faces it has.

Targets are class numbers [b], numbers [b k], or None where nothing is asked for. Seeds are one an
image: what a model draws for an image depends on nothing else, so neither on the number of workers
nor on who shares the batch.
"""

from abc import abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from fit_model.autoregressive import AutoregressiveConfig
from fit_model.course import WHOLE, Runner
from fit_model.denoiser import DiffusionConfig
from fit_model.encoder import EncoderConfig
from fit_model.groups import GroupBatch
from fit_model.heads import ClassifyConfig, RegressConfig
from fit_model.pixels import GenerateConfig
from fit_model.shapes import Outputs
from fit_model.tokens import InputConfig
from fit_model.vix import VixConfig


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Everything that builds a model: which face, its pixels, and what it is for."""

    face: EncoderConfig | DiffusionConfig | AutoregressiveConfig | VixConfig
    input: InputConfig
    head: ClassifyConfig | RegressConfig | GenerateConfig

    def __post_init__(self) -> None:
        side_px, patch_px = self.input.group_side_px, self.face.patch_px
        if side_px % patch_px:
            raise ValueError(
                f"group_side_px {side_px} is no multiple of patch_px {patch_px}: "
                "choose another patch, or cut the images into other groups"
            )
        predicts = isinstance(self.face, EncoderConfig | VixConfig)
        if predicts == isinstance(self.head, GenerateConfig):
            wanted = "classify or regress" if predicts else "generate"
            raise ValueError(
                f"a model of kind {self.face.kind!r} cannot {self.head.kind}: "
                f"take target.kind {wanted}"
            )
        if not isinstance(self.face, VixConfig):
            self._refuse_layers_without_effect(self.face)
        elif isinstance(self.head, ClassifyConfig | RegressConfig) and self.head.pool != "latents":
            raise ValueError(
                f"a model of kind 'vix' pools {self.face.pooling} as its own setting pooling says: "
                "leave target.pool out"
            )

    def _refuse_layers_without_effect(
        self, face: EncoderConfig | DiffusionConfig | AutoregressiveConfig
    ) -> None:
        layers = face.trunk.layers
        ends_globally = face.trunk.blocks[-1].num_across > 0
        if isinstance(self.head, GenerateConfig):
            blind = not any(block.num_across for block in face.trunk.blocks)
            if blind and isinstance(face, DiffusionConfig):
                raise ValueError(
                    f"layers {layers!r} have no global layers, and without them a diffusion model "
                    "is not told how much noise there is: take for example '(2)4(2)'"
                )
            if ends_globally:
                raise ValueError(
                    f"the last global layers of {layers!r} would not reach the pixels: "
                    "end in local layers, for example '(2)4(2)'"
                )
        elif self.head.pool == "latents" and not ends_globally:
            raise ValueError(
                f"the last local layers of {layers!r} would not reach the head, which pools "
                "latents: end in global layers, or pool tokens"
            )
        elif self.head.pool == "tokens" and ends_globally:
            raise ValueError(
                f"the last global layers of {layers!r} would not reach the head, which pools "
                "tokens: end in local layers, or pool latents"
            )

    @property
    def num_tokens(self) -> int:
        """Data tokens of a stored group."""
        patches = (self.input.group_side_px // self.face.patch_px) ** 2
        subpixels = isinstance(self.face, AutoregressiveConfig)
        return patches * self.patch_channels if subpixels else patches

    @property
    def patch_channels(self) -> int:
        """Values of a patch."""
        return self.face.patch_px**2 * self.input.bands


class Model(nn.Module):
    """A face on pixels; `model.config` builds the same model again."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config

    @abstractmethod
    def losses(
        self,
        batch: GroupBatch,
        targets: Tensor | None,
        *,
        seeds: Int64[Tensor, " b"],
        runner: Runner = WHOLE,
    ) -> Float[Tensor, " b"]:
        """One loss an image: what training lowers. `runner` says how many groups are there at once.

        The batch may stay on the CPU, whichever device the model is on.
        """

    @abstractmethod
    def measures(
        self,
        batch: GroupBatch,
        targets: Tensor | None,
        *,
        seeds: Int64[Tensor, " b"],
        runner: Runner = WHOLE,
    ) -> Outputs:
        """What an evaluation wants to know of every image, a row each."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def exact(self) -> torch.dtype:
        """What is computed in where rounding would hurt: the weights' dtype, or float32."""
        return torch.promote_types(next(self.parameters()).dtype, torch.float32)

    def require_format(self, batch: GroupBatch) -> None:
        """Refuse groups of another side or with other bands than the model was made for."""
        source = self.config.input
        side_px, bands = batch.pixels.shape[2:]
        if (side_px, bands) != (source.group_side_px, source.bands):
            raise ValueError(
                f"this model takes groups of {source.group_side_px} px and {source.bands} bands, "
                f"not of {side_px} px and {bands} bands"
            )
