"""The encoder as a model: pixels of groups in, one row of outputs an image out."""

from collections.abc import Sequence
from typing import cast

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from fit_model.course import WHOLE, Course, Runner, Start, Sums
from fit_model.crew import ALONE, Crew
from fit_model.encoder import Encoder, EncoderConfig
from fit_model.groups import GroupBatch
from fit_model.heads import PredictConfig, build_head, summed
from fit_model.model import ModelConfig
from fit_model.predictor import Predictor
from fit_model.shapes import DataTokens, Latents, Outputs, ValidTokens
from fit_model.tokens import normalized, patches_of, valid_patches


class EncoderModel(Predictor):
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
        self.head = build_head(head, width=width)

    def forward(self, batch: GroupBatch, *, runner: Runner = WHOLE) -> Outputs:
        """Logits or standardised numbers of every image, in float32 at least."""
        self.require_format(batch)
        return runner.outputs(EncoderCourse(self, batch, crew=runner.crew))


class EncoderCourse(Course):
    """Pixels in, means over images out."""

    def __init__(self, model: EncoderModel, batch: GroupBatch, *, crew: Crew = ALONE) -> None:
        self.model, self.batch = model, batch
        self.encoder, self.head, self.trunk = model.encoder, model.head, model.encoder.trunk
        self.config, self.patch_px = model.config.input, model.face.patch_px
        self.device = model.device
        self.places = batch.places.to(self.device)
        self.images = self.encoder.layout(self.places, crew=crew)
        self.num_groups = len(batch.image)
        self.num_named = int(self.encoder.group_token is not None)
        self.ends_in = self.head.pool

    def parameters(self) -> Sequence[nn.Parameter]:
        """All but those of the norm of the stream that is not pooled."""
        encoder = self.encoder
        idle = encoder.token_norm if self.ends_in == "latents" else encoder.latent_norm
        unused = {id(each) for each in idle.parameters()}
        return [each for each in self.model.parameters() if id(each) not in unused]

    def start(self) -> Start:
        """Latents know nothing but where their group lies."""
        return Start(latents=self.encoder.latents(self.places), context=None)

    def enter(self, groups: slice) -> DataTokens:
        """Tokens of the groups' normalised pixels."""
        part = self.batch.part(groups).to(self.device)
        patches = patches_of(normalized(part, config=self.config), patch_px=self.patch_px)
        return self.encoder.tokens(patches, self.places.take(groups))

    def valid(self, groups: slice) -> ValidTokens | None:
        """Tokens that show a pixel of their image, and those that name a group."""
        shown = valid_patches(self.batch.part(groups), patch_px=self.patch_px)
        if shown is None:
            return None
        return functional.pad(shown.to(self.device), (self.num_named, 0), value=True)

    def leave(self, groups: slice, stream: DataTokens | Latents) -> Sums:
        """The normed rows of the stream that the head pools, summed."""
        if self.ends_in == "latents":
            return summed(self.encoder.latent_norm(stream), None)
        return summed(self.encoder.token_norm(stream), self.valid(groups))

    def finish(self, sums: Float[Tensor, "b z"]) -> Outputs:
        """What the head makes of them."""
        return self.head(sums)
