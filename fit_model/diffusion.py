"""The diffusion decoder as a model: how it is trained on pixels, measured, and asked for pictures.

    clean = (2 share - 1) input_scale,   t ~ U(0, 1),   gamma = schedule(t)
    noisy = sqrt(gamma) clean + sqrt(1 - gamma) noise
    loss  = mean (noise - its estimate)^2,   or of the picture, divided by input_scale^2

With latent self-conditioning a first pass without gradient gives latents, which a second pass is
shown for self_conditioning_rate of the images.
Source: Chen & Li 2023, arXiv:2305.12689; Chen et al. 2022, arXiv:2208.04202 (self-conditioning);
google-research/pix2seq, models/image_token_diffusion_model.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from fit_model.denoiser import Denoised, Denoiser, DiffusionConfig
from fit_model.denoising import Steps, denoised, image_means, per_image, spread
from fit_model.dropout import without_dropout
from fit_model.groups import GroupBatch, Places
from fit_model.model import Model, ModelConfig
from fit_model.noise import PREDICTIONS, noised, schedule
from fit_model.pixels import GenerateConfig, one_hot, pixels_of, require_guidable, shares
from fit_model.samplers import SamplingConfig, sample
from fit_model.shapes import Latents, Outputs, Patches
from fit_model.tokens import patches_of, squares_of

MEASURED_TIMES = tuple((place + 0.5) / 10 for place in range(10))
"""Where evaluation measures the loss: the middles of ten equal parts of [0, 1]."""


@dataclass(frozen=True, kw_only=True)
class Draws:
    """Everything that chance decides about a batch, image by image."""

    time: Float[Tensor, " b"]
    noise: Patches
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
        self, batch: GroupBatch, targets: Tensor | None, *, seeds: Int64[Tensor, " b"]
    ) -> Float[Tensor, " b"]:
        """Mean squared error an image, at a time that its seed draws."""
        clean, places = self.clean(batch), batch.places
        draws = self.draw(seeds, places)
        classes = one_hot(targets, config=self.head, device=clean.device)
        if classes is not None:
            classes = classes * draws.named[:, None]
        gamma = self.schedule(draws.time)
        noisy = noised(clean, draws.noise, spread(gamma, places.image))
        before = self.first_pass(noisy, places, gamma=gamma, classes=classes)
        if before is not None:
            before = before * spread(draws.shown, places.image).to(before.dtype)
        found = self.denoise(noisy, places, gamma=gamma, classes=classes, before=before)
        return self.errors(found, clean, draws.noise, noisy, gamma=gamma, places=places)

    def measures(
        self, batch: GroupBatch, targets: Tensor | None, *, seeds: Int64[Tensor, " b"]
    ) -> Outputs:
        """The loss at each of MEASURED_TIMES, with the label told and a first pass shown."""
        clean, places = self.clean(batch), batch.places
        noise = self.draw(seeds, places).noise
        classes = one_hot(targets, config=self.head, device=clean.device)
        columns = []
        for time in MEASURED_TIMES:
            gamma = self.schedule(torch.full((places.num_images,), time, device=clean.device))
            noisy = noised(clean, noise, spread(gamma, places.image))
            before = self.first_pass(noisy, places, gamma=gamma, classes=classes)
            found = self.denoise(noisy, places, gamma=gamma, classes=classes, before=before)
            columns.append(self.errors(found, clean, noise, noisy, gamma=gamma, places=places))
        return torch.stack(columns, 1)

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

    def clean(self, batch: GroupBatch) -> Patches:
        """Patches of the pixels, from -input_scale to input_scale."""
        self.require_format(batch)
        values = (2.0 * shares(batch, config=self.head) - 1.0) * self.face.input_scale
        return patches_of(values, patch_px=self.face.patch_px)

    def draw(self, seeds: Int64[Tensor, " b"], places: Places) -> Draws:
        """What chance decides about these images."""
        shape = (self.config.num_tokens, self.config.patch_channels)
        chances, noise = [], []
        counts = torch.bincount(places.image, minlength=places.num_images).tolist()
        for seed, count in zip(seeds.tolist(), counts, strict=True):
            generator = torch.Generator().manual_seed(seed)
            chances.append(torch.rand(3, generator=generator))
            noise.append(torch.randn(count, *shape, generator=generator))
        device = places.image.device
        time, shown, named = torch.stack(chances, 1).to(device)
        return Draws(
            time=time,
            noise=torch.cat(noise).to(device),
            shown=(shown < self.face.self_conditioning_rate).to(torch.float32),
            named=(named >= self.face.label_dropout).to(torch.float32),
        )

    def first_pass(
        self,
        noisy: Patches,
        places: Places,
        *,
        gamma: Float[Tensor, " b"],
        classes: Float[Tensor, "b k"] | None,
    ) -> Latents | None:
        """The latents that a step before would have left; None without self-conditioning."""
        if self.face.self_conditioning == "none":
            return None
        with torch.no_grad():
            return self.denoise(noisy, places, gamma=gamma, classes=classes, before=None).latents

    def denoise(
        self,
        noisy: Patches,
        places: Places,
        *,
        gamma: Float[Tensor, " b"],
        classes: Float[Tensor, "b k"] | None,
        before: Latents | None,
    ) -> Denoised:
        """The network on noisy patches, scaled as configured."""
        return denoised(
            self.denoiser, self.face, noisy, places, gamma=gamma, classes=classes, before=before
        )

    def errors(
        self,
        found: Denoised,
        clean: Patches,
        noise: Patches,
        noisy: Patches,
        *,
        gamma: Float[Tensor, " b"],
        places: Places,
    ) -> Float[Tensor, " b"]:
        """Mean squared error an image, on the noise or on the picture."""
        level = spread(gamma, places.image)
        meaning = PREDICTIONS[self.face.prediction]
        if self.face.loss == "eps":
            squared = (meaning.noise(found.patches, noisy, level) - noise).square()
        else:
            picture = meaning.clean(found.patches, noisy, level)
            squared = ((picture - clean) / self.face.input_scale).square()
        return image_means(squared, places)
