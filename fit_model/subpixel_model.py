"""The autoregressive decoder as a model: trained on pixels, measured, asked for pictures."""

import math
from collections.abc import Callable
from typing import cast

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from fit_model.autoregressive import AutoregressiveConfig, Decoder
from fit_model.choosing import DecodingConfig
from fit_model.course import WHOLE, Course, Runner, Start, Sums
from fit_model.crew import ALONE, Crew
from fit_model.decoding import KnownLevels, decode
from fit_model.groups import GroupBatch, Places
from fit_model.model import Model, ModelConfig
from fit_model.pixels import GenerateConfig, one_hot, pixels_of, require_guidable
from fit_model.shapes import DataTokens, Latents, Outputs
from fit_model.subpixels import Sequences, patch_places, sequence_order
from fit_model.tokens import squares_of


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
        self,
        batch: GroupBatch,
        targets: Tensor | None,
        *,
        seeds: Int64[Tensor, " b"],
        runner: Runner = WHOLE,
    ) -> Float[Tensor, " b"]:
        """Bits a sub-pixel of every image, the label withheld where its seed says so."""
        classes = one_hot(targets, config=self.head, device=self.device)
        if classes is not None and self.face.label_dropout > 0.0:
            classes = classes * self.named(seeds).to(classes)[:, None]
        return runner.outputs(self.course(batch, classes, crew=runner.crew))[:, 0]

    def measures(
        self,
        batch: GroupBatch,
        targets: Tensor | None,
        *,
        seeds: Int64[Tensor, " b"],
        runner: Runner = WHOLE,
    ) -> Outputs:
        """Bits a sub-pixel of every image, with its label."""
        classes = one_hot(targets, config=self.head, device=self.device)
        return runner.outputs(self.course(batch, classes, crew=runner.crew))

    def generate(
        self,
        places: Places,
        *,
        targets: Int64[Tensor, " b"] | None,
        seeds: Int64[Tensor, " b"],
        sampling: DecodingConfig,
        progress: Callable[[], None] | None = None,
        known: KnownLevels | None = None,
    ) -> Shaped[Tensor, "g side side bands"]:
        """Pixels of the groups of new images; each image depends on its own seed and class only.

        Args:
            places: of the stored groups, equally many an image; all images advance together.
            targets: class numbers; None for a model without classes.
            seeds: one an image.
            sampling: how levels are chosen.
            progress: called after every patch that is drawn, for all images at once.
            known: what `first_patches` gives, for images that are to be completed.
        """
        require_guidable(sampling.guidance, config=self.head, label_dropout=self.face.label_dropout)
        source, face = self.config.input, self.face
        across = source.group_side_px // face.patch_px
        patches = patch_places(places, across=across)
        sequence = sequence_order(patches, order=face.order)
        levels = decode(
            self.decoder,
            patches.take(sequence),
            num_tokens=self.config.patch_channels,
            classes=one_hot(targets, config=self.head, device=places.image.device),
            seeds=seeds,
            config=sampling,
            known=known,
            progress=progress,
        )
        stored = levels[sequence.argsort()].unflatten(0, (-1, across * across))
        values = stored.to(torch.float64)
        squares = squares_of(values, patch_px=face.patch_px, bands=source.bands)
        return pixels_of(squares / (face.num_levels - 1), config=self.head)

    def first_patches(self, batch: GroupBatch, *, num_patches: int) -> KnownLevels:
        """The first patches of every image in the order in which the decoder draws them.

        Later pixels are not looked at, except that they must lie in the model's range.
        """
        read = self.sequences(batch)
        counts = torch.bincount(read.places.image, minlength=batch.num_images)
        if not 0 <= num_patches <= int(counts.min()):
            raise ValueError(
                f"num_patches is {num_patches}: the images have {int(counts.min())} patches of "
                f"{self.face.patch_px} px"
            )
        order = torch.arange(len(read.levels), device=counts.device)
        first = counts.cumsum(0) - counts
        return read.levels[order - first[read.places.image] < num_patches]

    def course(
        self, batch: GroupBatch, classes: Float[Tensor, "b k"] | None, *, crew: Crew = ALONE
    ) -> "SubpixelCourse":
        """A pass over the sub-pixels of a batch."""
        return SubpixelCourse(self.decoder, self.sequences(batch, crew=crew), classes=classes)

    def sequences(self, batch: GroupBatch, *, crew: Crew = ALONE) -> Sequences:
        """The images as the decoder reads them."""
        self.require_format(batch)
        return Sequences(
            batch,
            patch_px=self.face.patch_px,
            order=self.face.order,
            num_levels=self.face.num_levels,
            config=self.head,
            device=self.device,
            crew=crew,
        )

    def named(self, seeds: Int64[Tensor, " b"]) -> Float[Tensor, " b"]:
        """1 where the label is told."""
        chances = [
            torch.rand((), generator=torch.Generator().manual_seed(seed)) for seed in seeds.tolist()
        ]
        return (torch.stack(chances) >= self.face.label_dropout).to(torch.float32)


class SubpixelCourse(Course):
    """Levels in, bits a sub-pixel out; a group of the trunk is one patch.

    Args:
        decoder: the network.
        read: the images as it reads them.
        classes: one-hot rows, or None.
    """

    def __init__(
        self, decoder: Decoder, read: Sequences, *, classes: Float[Tensor, "b k"] | None
    ) -> None:
        self.model, self.trunk = decoder, decoder.trunk
        self.decoder, self.read, self.classes = decoder, read, classes
        self.images = decoder.layout(read.places, crew=read.crew)
        self.num_groups = len(read.places.image)

    def start(self) -> Start:
        """Latents know nothing but where their patch lies."""
        return Start(latents=self.decoder.latents(self.read.places), context=None)

    def enter(self, groups: slice) -> DataTokens:
        """Tokens of what comes before each sub-pixel of these patches."""
        places = self.read.places.take(groups)
        return self.decoder.tokens(self.read.inputs(groups), places, self.classes)

    def leave(self, groups: slice, stream: DataTokens | Latents) -> Sums:
        """The nats of each patch, and its number of sub-pixels."""
        nats = self.decoder.nats(self.decoder.token_norm(stream), self.read.part(groups))
        return torch.stack([nats, torch.full_like(nats, stream.shape[1])], 1)

    def finish(self, sums: Float[Tensor, "b z"]) -> Outputs:
        """Their mean in bits."""
        return sums[:, :1] / sums[:, 1:] / math.log(2.0)
