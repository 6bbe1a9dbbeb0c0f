"""A pass of the denoiser over noisy pictures, some groups at a time.

    clean = (2 share - 1) input_scale
    noisy = sqrt(gamma) clean + sqrt(1 - gamma) noise
    loss  = mean (noise - its estimate)^2,   or of the picture, divided by input_scale^2

The noise of a group depends on its image's seed and on its number in the grid alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from fit_model.course import Course, Start, Sums
from fit_model.crew import ALONE, Crew
from fit_model.denoiser import Denoiser, DiffusionConfig
from fit_model.denoising import deviations_of, spread
from fit_model.groups import GroupBatch, Places
from fit_model.noise import PREDICTIONS, noised
from fit_model.pixels import GenerateConfig, shares
from fit_model.seeds import mixed
from fit_model.shapes import DataTokens, Latents, Outputs, Patches
from fit_model.tokens import patches_of


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A picture and what covers it."""

    clean: Patches
    noise: Patches


class Pictures:
    """Clean patches and their noise, those of the groups asked for last at hand.

    Args:
        batch: stored pixels, which stay where they are.
        seeds: one an image.
        face: patches and scale.
        head: the pixels' range.
        device: where patches are wanted.
        exact: in which dtype.
        crew: who holds the images' other groups.
    """

    def __init__(
        self,
        batch: GroupBatch,
        seeds: Int64[Tensor, " b"],
        *,
        face: DiffusionConfig,
        head: GenerateConfig,
        device: torch.device,
        exact: torch.dtype,
        crew: Crew = ALONE,
    ) -> None:
        self.batch, self.seeds = batch, seeds
        self.face, self.head = face, head
        self.device, self.exact = device, exact
        self.places, self.crew = batch.places.to(device), crew
        self._last: tuple[slice, Pair] | None = None

    def pair(self, groups: slice) -> Pair:
        """Patches of these groups."""
        if self._last is None or self._last[0] != groups:
            self._last = None
            self._last = groups, self._made(groups)
        return self._last[1]

    def _made(self, groups: slice) -> Pair:
        part = self.batch.part(groups)
        values = shares(part, config=self.head, exact=self.exact, device=self.device)
        scaled = (2.0 * values - 1.0) * self.face.input_scale
        clean = patches_of(scaled, patch_px=self.face.patch_px)
        noise = group_noise(self.batch.places.take(groups), self.seeds, shape=clean.shape[1:])
        return Pair(clean=clean, noise=noise.to(self.device, self.exact))

    def deviations(
        self, gamma: Float[Tensor, " b"], chunks: Sequence[slice]
    ) -> Float[Tensor, " b"]:
        """The standard deviation of every noisy image, in one sweep over the groups."""
        moments = []
        for groups in chunks:
            pair, level = self.pair(groups), spread(gamma, self.places.image[groups])
            noisy = noised(pair.clean, pair.noise, level)
            moments.append(torch.stack(torch.var_mean(noisy.flatten(1), 1, correction=0), 1))
        variances, means = torch.cat(moments).unbind(1)
        image, num_images = self.places.image, self.places.num_images
        images = self.crew.layout(image, num_images=num_images, latents_per_group=1)
        return deviations_of(means, variances, image, images)


def group_noise(
    places: Places, seeds: Int64[Tensor, " b"], *, shape: Sequence[int]
) -> Float[Tensor, "g n c"]:
    """Normal noise on the CPU, whichever other groups are there."""
    generator = torch.Generator()
    image_seeds = seeds.tolist()
    pairs = zip(places.image.tolist(), places.number.tolist(), strict=True)
    drawn = [
        torch.randn(*shape, generator=generator.manual_seed(mixed(image_seeds[image], number)))
        for image, number in pairs
    ]
    return torch.stack(drawn)


class DiffusionCourse(Course):
    """Noisy patches in, mean squared errors out.

    Args:
        denoiser: the network.
        pictures: what it is shown.
        gamma: share of signal of every image.
        classes: one-hot rows, or None.
        before: raw latents of the step before; None for zeros.
        deviations: what noisy images are divided by, or None.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        pictures: Pictures,
        *,
        gamma: Float[Tensor, " b"],
        classes: Float[Tensor, "b k"] | None,
        before: Latents | None = None,
        deviations: Float[Tensor, " b"] | None = None,
    ) -> None:
        self.model, self.trunk = denoiser, denoiser.trunk
        self.denoiser, self.pictures, self.face = denoiser, pictures, pictures.face
        self.gamma, self.classes, self.before = gamma, classes, before
        self.deviations = deviations
        self.images = denoiser.layout(pictures.places, crew=pictures.crew)
        self.num_groups = len(pictures.places.image)

    def start(self) -> Start:
        """Latents that have seen those of the step before."""
        return self.denoiser.start(
            self.pictures.places, gamma=self.gamma, classes=self.classes, before=self.before
        )

    def enter(self, groups: slice) -> DataTokens:
        """Tokens of the groups' noisy patches."""
        noisy = self.noisy(groups)
        if self.deviations is not None:
            noisy = noisy / spread(self.deviations, self.pictures.places.image[groups])
        return self.denoiser.tokens(noisy)

    def leave(self, groups: slice, stream: DataTokens | Latents) -> Sums:
        """The mean squared error of each group, on the noise or on the picture."""
        pair, noisy, level = self.pictures.pair(groups), self.noisy(groups), self.level(groups)
        found = self.denoiser.patches(stream).to(noisy.dtype)
        meaning = PREDICTIONS[self.face.prediction]
        if self.face.loss == "eps":
            errors = meaning.noise(found, noisy, level) - pair.noise
        else:
            errors = (meaning.clean(found, noisy, level) - pair.clean) / self.face.input_scale
        squared = errors.square().mean((1, 2))
        return torch.stack([squared, torch.ones_like(squared)], 1)

    def finish(self, sums: Float[Tensor, "b z"]) -> Outputs:
        """The mean over the image."""
        return sums[:, :1] / sums[:, 1:]

    def noisy(self, groups: slice) -> Patches:
        """The groups' patches under their noise."""
        pair = self.pictures.pair(groups)
        return noised(pair.clean, pair.noise, self.level(groups))

    def level(self, groups: slice) -> Float[Tensor, "g 1 1"]:
        """The share of signal of each group."""
        return spread(self.gamma, self.pictures.places.image[groups])
