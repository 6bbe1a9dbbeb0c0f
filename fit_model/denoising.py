"""The denoiser in use: input scaled, latents carried from step to step, labels guided."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from fit_model.denoiser import Denoised, Denoiser, DiffusionConfig
from fit_model.groups import Places
from fit_model.layout import ImageLayout
from fit_model.noise import Gamma
from fit_model.samplers import guided
from fit_model.shapes import Latents, Patches, PerGroup


def denoised(
    denoiser: Denoiser,
    config: DiffusionConfig,
    noisy: Patches,
    places: Places,
    *,
    gamma: Float[Tensor, " b"],
    classes: Float[Tensor, "b k"] | None,
    before: Latents | None,
) -> Denoised:
    """The network on noisy patches, which it may see divided by each image's deviation."""
    shown = noisy
    if config.normalize_input == "deviation":
        shown = noisy / spread(deviations(noisy, places), places.image)
    found = denoiser(shown, places, gamma=gamma, classes=classes, before=before)
    return Denoised(patches=found.patches.to(noisy.dtype), latents=found.latents)


class Steps:
    """The network as a sampler calls it: it keeps the latents of the step before."""

    def __init__(
        self,
        denoiser: Denoiser,
        config: DiffusionConfig,
        places: Places,
        *,
        classes: Float[Tensor, "b k"] | None,
        guidance: float,
    ) -> None:
        self.denoiser, self.config = denoiser, config
        self.places, self.classes = places, classes
        self.guidance = guidance
        self.before: Latents | None = None

    def __call__(self, noisy: Patches, gamma: Float[Tensor, ""]) -> Patches:
        """The prediction, guided; the latents shown next come from the pass with the label."""
        found = self._run(noisy, gamma, self.classes)
        prediction = found.patches
        if self.guidance != 0.0 and self.classes is not None:
            without = self._run(noisy, gamma, torch.zeros_like(self.classes))
            prediction = guided(prediction, without.patches, guidance=self.guidance)
        if self.config.self_conditioning == "latent":
            self.before = found.latents
        return prediction

    def _run(
        self, noisy: Patches, gamma: Float[Tensor, ""], classes: Float[Tensor, "b k"] | None
    ) -> Denoised:
        return denoised(
            self.denoiser,
            self.config,
            noisy,
            self.places,
            gamma=gamma.expand(self.places.num_images),
            classes=classes,
            before=self.before,
        )


def per_image(
    places: Places, seeds: Int64[Tensor, " b"], *, shape: tuple[int, int]
) -> Callable[[], Patches]:
    """Noise for all groups, again and again, each image's from a generator of its own."""
    counts = torch.bincount(places.image, minlength=places.num_images).tolist()
    generators = [torch.Generator().manual_seed(seed) for seed in seeds.tolist()]

    def draw() -> Patches:
        pairs = zip(counts, generators, strict=True)
        return torch.cat(
            [torch.randn(count, *shape, generator=generator) for count, generator in pairs]
        ).to(places.image.device)

    return draw


def spread(per_image_value: Float[Tensor, " b"], image: PerGroup) -> Gamma:
    """A number an image as one that multiplies the patches of its groups."""
    return per_image_value[image][:, None, None]


def image_means(per_group: Float[Tensor, " g"], images: ImageLayout) -> Float[Tensor, " b"]:
    """The mean over the groups of each image."""
    sums, counts = images.total(torch.stack([per_group, torch.ones_like(per_group)], 1)).unbind(1)
    return sums / counts


def deviations(values: Patches, places: Places) -> Float[Tensor, " b"]:
    """The standard deviation over all values of each image."""
    variances, means = torch.var_mean(values.flatten(1), 1, correction=0)
    images = ImageLayout.of(places.image, num_images=places.num_images, latents_per_group=1)
    return deviations_of(means, variances, places.image, images)


def deviations_of(
    means: Float[Tensor, " g"],
    variances: Float[Tensor, " g"],
    image: PerGroup,
    images: ImageLayout,
) -> Float[Tensor, " b"]:
    """The standard deviation of each image, of its groups' means and variances.

    variance of an image = mean over its groups of (variance + (mean - mean of the image)^2)
    """
    apart = means - image_means(means, images)[image]
    return image_means(variances + apart.square(), images).sqrt()
