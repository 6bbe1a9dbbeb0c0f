"""The autoregressive decoder as a model: trained on pixels, measured, asked for pictures."""

from typing import cast

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from fit_model.autoregressive import AutoregressiveConfig, Decoder
from fit_model.groups import GroupBatch
from fit_model.model import Model, ModelConfig
from fit_model.pixels import GenerateConfig, one_hot
from fit_model.shapes import Outputs
from fit_model.subpixels import Sequences, sequences_of


class AutoregressiveModel(Model):
    """A decoder on the sub-pixels of groups."""

    face: AutoregressiveConfig
    head: GenerateConfig

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        face, head = cast(AutoregressiveConfig, config.face), cast(GenerateConfig, config.head)
        self.face, self.head = face, head
        self.decoder = Decoder(
            face, num_tokens=config.patch_channels, num_classes=len(head.classes)
        )

    def losses(
        self, batch: GroupBatch, targets: Tensor | None, *, seeds: Int64[Tensor, " b"]
    ) -> Float[Tensor, " b"]:
        """Bits a sub-pixel of every image, the label withheld where its seed says so."""
        classes = one_hot(targets, config=self.head, device=batch.pixels.device)
        if classes is not None and self.face.label_dropout > 0.0:
            classes = classes * self.named(seeds).to(classes)[:, None]
        return self.bits(batch, classes)

    def measures(
        self, batch: GroupBatch, targets: Tensor | None, *, seeds: Int64[Tensor, " b"]
    ) -> Outputs:
        """Bits a sub-pixel of every image, with its label."""
        classes = one_hot(targets, config=self.head, device=batch.pixels.device)
        return self.bits(batch, classes)[:, None]

    def bits(self, batch: GroupBatch, classes: Float[Tensor, "b k"] | None) -> Float[Tensor, " b"]:
        """Mean over the sub-pixels of -log2 of the probability of what is there."""
        read = self.sequences(batch)
        return self.decoder.bits(read.levels, read.places, classes=classes)

    def sequences(self, batch: GroupBatch) -> Sequences:
        """The images as the decoder reads them."""
        self.require_format(batch)
        return sequences_of(
            batch,
            patch_px=self.face.patch_px,
            order=self.face.order,
            num_levels=self.face.num_levels,
            config=self.head,
        )

    def named(self, seeds: Int64[Tensor, " b"]) -> Float[Tensor, " b"]:
        """1 where the label is told."""
        chances = [
            torch.rand((), generator=torch.Generator().manual_seed(seed)) for seed in seeds.tolist()
        ]
        return (torch.stack(chances) >= self.face.label_dropout).to(torch.float32)
