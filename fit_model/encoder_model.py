"""The encoder as a model: pixels of groups in, one row of outputs an image out."""

from collections.abc import Callable
from typing import cast

from jaxtyping import Float, Int64
from torch import Tensor

from fit_model.encoder import Encoder, EncoderConfig
from fit_model.groups import GroupBatch
from fit_model.heads import HEADS, Head, PredictConfig
from fit_model.model import Model, ModelConfig
from fit_model.shapes import Outputs
from fit_model.tokens import normalized, patches_of, valid_patches


class EncoderModel(Model):
    """Encoder and head; what the outputs mean is up to `head`.

    Pixels are normalised in float32, whatever the model runs in; missing ones become their band's
    mean.
    """

    face: EncoderConfig

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        face, head = cast(EncoderConfig, config.face), cast(PredictConfig, config.head)
        self.face = face
        self.encoder = Encoder(face, num_tokens=config.num_tokens, inputs=config.patch_channels)
        width = face.trunk.latent_width if head.pool == "latents" else face.trunk.width
        make_head: Callable[..., Head] = HEADS[head.kind]
        self.head = make_head(head, width=width)

    def forward(self, batch: GroupBatch) -> Outputs:
        """Logits or standardised numbers of every image, in float32 at least."""
        self.require_format(batch)
        patch_px = self.face.patch_px
        patches = patches_of(normalized(batch, config=self.config.input), patch_px=patch_px)
        valid = valid_patches(batch, patch_px=patch_px)
        return self.head(self.encoder(patches, batch.places, valid=valid))

    def losses(
        self, batch: GroupBatch, targets: Tensor | None, *, seeds: Int64[Tensor, " b"]
    ) -> Float[Tensor, " b"]:
        """Cross-entropy in nats, or squared error in deviations."""
        return self.head.losses(self(batch), cast(Tensor, targets))

    def measures(
        self, batch: GroupBatch, targets: Tensor | None, *, seeds: Int64[Tensor, " b"]
    ) -> Outputs:
        """The outputs themselves."""
        return self(batch)
