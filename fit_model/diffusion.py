"""The diffusion decoder as a model: how it is trained on pixels, measured, and asked for pictures.

    t ~ U(0, 1),   gamma = schedule(t);   the loss is that of `diffusion_course`

With latent self-conditioning a first pass without gradient gives latents, which a second pass is
shown for self_conditioning_rate of the images.
Source: Chen & Li 2023, arXiv:2305.12689; Chen et al. 2022, arXiv:2208.04202 (self-conditioning);
google-research/pix2seq, models/image_token_diffusion_model.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from fit_model.course import WHOLE, Runner
from fit_model.crew import ALONE, Crew
from fit_model.denoiser import Denoiser, DiffusionConfig
from fit_model.denoising import Steps, per_image, spread
from fit_model.diffusion_course import DiffusionCourse, Pictures
from fit_model.dropout import without_dropout
from fit_model.groups import GroupBatch, Places
from fit_model.model import Model, ModelConfig
from fit_model.noise import schedule
from fit_model.pixels import GenerateConfig, one_hot, pixels_of, require_guidable
from fit_model.samplers import SamplingConfig, sample
from fit_model.shapes import Outputs
from fit_model.tokens import squares_of

MEASURED_TIMES = tuple((place + 0.5) / 10 for place in range(10))
"""Where evaluation measures the loss: the middles of ten equal parts of [0, 1]."""


@dataclass(frozen=True, kw_only=True)
class Draws:
    """What chance decides about every image of a batch."""

    time: Float[Tensor, " b"]
    shown: Float[Tensor, " b"]
    """1 where the latents of the first pass are shown."""
    named: Float[Tensor, " b"]
    """1 where the label is told."""


class DiffusionModel(Model):
    """A denoiser on the pixels of groups."""

    face: DiffusionConfig
    head: GenerateConfig

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        face, head = cast(DiffusionConfig, config.face), cast(GenerateConfig, config.head)
        self.face, self.head = face, head
        self.schedule = schedule(face.schedule)
        self.denoiser = Denoiser(
            face,
            num_tokens=config.num_tokens,
            inputs=config.patch_channels,
            num_classes=len(head.classes),
        )

    def losses(
        self,
        batch: GroupBatch,
        targets: Tensor | None,
        *,
        seeds: Int64[Tensor, " b"],
        runner: Runner = WHOLE,
    ) -> Float[Tensor, " b"]:
        """Mean squared error an image, at a time that its seed draws."""
        pictures, draws = self.pictures(batch, seeds, crew=runner.crew), self.draw(seeds)
        classes = one_hot(targets, config=self.head, device=self.device)
        if classes is not None:
            classes = classes * draws.named[:, None]
        gamma = self.schedule(draws.time)
        return self.errors(pictures, gamma, classes=classes, shown=draws.shown, runner=runner)

    def measures(
        self,
        batch: GroupBatch,
        targets: Tensor | None,
        *,
        seeds: Int64[Tensor, " b"],
        runner: Runner = WHOLE,
    ) -> Outputs:
        """The loss at each of MEASURED_TIMES, with the label told and a first pass shown."""
        pictures = self.pictures(batch, seeds, crew=runner.crew)
        classes = one_hot(targets, config=self.head, device=self.device)
        always = torch.ones(batch.num_images, device=self.device)
        columns = []
        for time in MEASURED_TIMES:
            gamma = self.schedule(time * always)
            errors = self.errors(pictures, gamma, classes=classes, shown=always, runner=runner)
            columns.append(errors)
        return torch.stack(columns, 1)

    def errors(
        self,
        pictures: Pictures,
        gamma: Float[Tensor, " b"],
        *,
        classes: Float[Tensor, "b k"] | None,
        shown: Float[Tensor, " b"],
        runner: Runner,
    ) -> Float[Tensor, " b"]:
        """Mean squared error an image; `shown` is 1 where the latents of a first pass are shown."""
        image = pictures.places.image
        deviations = (
            pictures.deviations(gamma, runner.chunks(len(image)))
            if self.face.normalize_input == "deviation"
            else None
        )
        course = partial(
            DiffusionCourse,
            self.denoiser,
            pictures,
            gamma=gamma,
            classes=classes,
            deviations=deviations,
        )
        if self.face.self_conditioning == "none":
            return runner.outputs(course())[:, 0]
        before = runner.latents(course())
        return runner.outputs(course(before=before * spread(shown, image).to(before)))[:, 0]

    def generate(
        self,
        places: Places,
        *,
        targets: Int64[Tensor, " b"] | None,
        seeds: Int64[Tensor, " b"],
        sampling: SamplingConfig,
        progress: Callable[[], None] | None = None,
    ) -> Shaped[Tensor, "g side side bands"]:
        """Pixels of the groups of new images; each image depends on its own seed and class only."""
        require_guidable(sampling.guidance, config=self.head, label_dropout=self.face.label_dropout)
        device = places.image.device
        classes = one_hot(targets, config=self.head, device=device)
        channels, bands = self.config.patch_channels, self.config.input.bands
        shape = (self.config.num_tokens, channels)
        draw = per_image(places, seeds, shape=shape)
        steps = Steps(self.denoiser, self.face, places, classes=classes, guidance=sampling.guidance)
        with without_dropout(self.denoiser):
            clean = sample(
                steps,
                draw(),
                config=sampling,
                schedule=self.schedule,
                prediction=self.face.prediction,
                limit=self.face.input_scale,
                draw=draw,
                progress=progress,
            )
        values = squares_of(clean, patch_px=self.face.patch_px, bands=bands)
        return pixels_of((values / self.face.input_scale + 1.0) / 2.0, config=self.head)

    def pictures(
        self, batch: GroupBatch, seeds: Int64[Tensor, " b"], *, crew: Crew = ALONE
    ) -> Pictures:
        """The patches of a batch, from -input_scale to input_scale, and their noise."""
        self.require_format(batch)
        return Pictures(
            batch,
            seeds,
            face=self.face,
            head=self.head,
            device=self.device,
            exact=self.exact,
            crew=crew,
        )

    def draw(self, seeds: Int64[Tensor, " b"]) -> Draws:
        """What chance decides about these images, beside their noise."""
        chances = [
            torch.rand(3, generator=torch.Generator().manual_seed(seed)) for seed in seeds.tolist()
        ]
        time, shown, named = torch.stack(chances, 1).to(self.device)
        return Draws(
            time=time,
            shown=(shown < self.face.self_conditioning_rate).to(torch.float32),
            named=(named >= self.face.label_dropout).to(torch.float32),
        )
