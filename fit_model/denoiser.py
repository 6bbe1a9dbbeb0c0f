"""FIT as a diffusion decoder: noisy patches and their noise level in, a prediction out.

    time    = W2 silu(W1 standardised(code(1000 gamma)))
    context = [time ; class W]                  latents read it after the data, before global layers
    latents = position + LN_0(h + FFN(h)),      h = the latents of the step before, gradient stopped
    tokens  = LN(patches W + b) + position;     prediction = LN(tokens after the trunk) W + b

LN_0 starts with scale 0, so at first the step before has no effect.
Source: Chen & Li 2023, arXiv:2305.12689; google-research/pix2seq, class FITDenoiser.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from fit_model import checks
from fit_model.body import Trunk
from fit_model.course import Start
from fit_model.crew import ALONE, Crew
from fit_model.groups import Places
from fit_model.layers import FeedForwardLayer, dense, layer_norm
from fit_model.layout import ImageLayout
from fit_model.noise import PREDICTIONS, schedule
from fit_model.positions import (
    LATENT_POSITIONS,
    TOKEN_POSITIONS,
    check_positions,
    sin_cos,
)
from fit_model.reach import LatentMask, Reach, latents_place, square_place
from fit_model.shapes import Context, DataTokens, Latents, Patches
from fit_model.tokens import Stem
from fit_model.trunk_config import TrunkConfig

TIME_SCALE = 1000.0
TIME_SHARE = 4
"""The code of the noise level is so many times narrower than a latent."""


@dataclass(frozen=True, kw_only=True)
class DiffusionConfig:
    """The denoiser around a trunk, and how it is trained; the defaults are the official ones."""

    kind: Literal["diffusion"] = "diffusion"
    patch_px: int
    trunk: TrunkConfig
    token_position: Literal["learned", "sin_cos", "sin_cos_2d"] = "learned"
    latent_position: Literal["learned", "sin_cos_2d", "coordinate"] = "coordinate"
    """"learned" and "sin_cos_2d" are the official ones and know one number of groups only."""
    num_groups: int | None = None
    """Groups of every image's grid; only for what depends on it, None otherwise."""
    latent_mask: LatentMask = "none"
    """"causal": latents see no later group in global layers."""
    schedule: str = "cosine"
    """Noise levels of training, as "cosine", "sigmoid@-3,3,0.9", "simple_linear" ..."""
    prediction: Literal["eps", "x", "v"] = "eps"
    loss: Literal["eps", "x"] = "eps"
    """What the squared error is measured on, whatever is predicted."""
    input_scale: float = 1.0
    """Pixels lie in -input_scale to input_scale; less is noisier at the same gamma."""
    normalize_input: Literal["none", "deviation"] = "none"
    """"deviation" divides every noisy image by its standard deviation."""
    self_conditioning: Literal["none", "latent"] = "latent"
    self_conditioning_rate: float = 0.9
    """How often the latents of a first pass are shown in training."""
    label_dropout: float = 0.1
    """How often a label is withheld in training, so that guidance has something to compare with."""

    def __post_init__(self) -> None:
        checks.positive(patch_px=self.patch_px)
        checks.one_of(("diffusion",), kind=self.kind)
        check_positions(
            token_position=self.token_position,
            latent_position=self.latent_position,
            num_groups=self.num_groups,
            counted="groups",
        )
        checks.one_of(("none", "causal"), latent_mask=self.latent_mask)
        if self.latent_mask == "causal":
            self.trunk.require_causal_latents()
        checks.one_of(PREDICTIONS, prediction=self.prediction)
        checks.one_of(("eps", "x"), loss=self.loss)
        checks.one_of(("none", "deviation"), normalize_input=self.normalize_input)
        checks.one_of(("none", "latent"), self_conditioning=self.self_conditioning)
        checks.rate(label_dropout=self.label_dropout)
        schedule(self.schedule)
        if not 0.0 <= self.self_conditioning_rate <= 1.0:
            raise ValueError(
                f"self_conditioning_rate is {self.self_conditioning_rate}: it must lie in [0, 1]"
            )
        if not 0.0 < self.input_scale < float("inf"):
            raise ValueError(f"input_scale is {self.input_scale}: it must be above 0")
        if self.trunk.latent_width < 2 * TIME_SHARE:
            raise ValueError(
                f"latent_width {self.trunk.latent_width} is too narrow for the code of the noise "
                f"level: take at least {2 * TIME_SHARE}"
            )

    def reach(self, num_tokens: int) -> Reach:
        """Who sees whom, when a group has so many patches."""
        return Reach(
            flow="conditioned",
            local=square_place(num_tokens),
            across=latents_place(
                self.trunk, num_groups=self.num_groups, latent_mask=self.latent_mask
            ),
        )


class TimeToken(nn.Module):
    """One token an image that says how much signal it has."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.expand = dense(width // TIME_SHARE, width)
        self.contract = dense(width, width)

    def forward(self, gamma: Float[Tensor, " b"]) -> Context:
        """The token of every image."""
        code = sin_cos(TIME_SCALE * gamma.to(torch.float32), width=self.expand.in_features)
        centred = code - code.mean(-1, keepdim=True)
        standardised = centred / centred.square().mean(-1, keepdim=True).sqrt()
        hidden = functional.silu(self.expand(standardised.to(self.expand.weight.dtype)))
        return self.contract(hidden)[:, None]


class LatentsBefore(nn.Module):
    """What the latents of the step before add to the starting value: LN_0(h + FFN(LN(h)))."""

    def __init__(self, config: TrunkConfig) -> None:
        super().__init__()
        width = config.latent_width
        self.think = FeedForwardLayer(
            width=width, mlp_ratio=config.mlp_ratio, dropout=0.0, drop_path=0.0
        )
        self.norm = layer_norm(width)
        nn.init.zeros_(self.norm.weight)

    def forward(self, latents: Latents) -> Latents:
        """To be added; no gradient flows back into `latents`."""
        return self.norm(self.think(latents.detach()))


@dataclass(frozen=True, kw_only=True)
class Denoised:
    """The prediction, and the raw latents that the next step is shown."""

    patches: Patches
    latents: Latents


class Denoiser(nn.Module):
    """Stem, positions, a trunk that reads a context, output norm and projection.

    Args:
        config: the denoiser's settings.
        num_tokens: patches of a group.
        inputs: channels of a patch, patch_px^2 bands.
        num_classes: 0 for a model that takes no label.
    """

    def __init__(
        self, config: DiffusionConfig, *, num_tokens: int, inputs: int, num_classes: int = 0
    ) -> None:
        super().__init__()
        trunk = config.trunk
        self.latents_per_group = trunk.latents_per_group
        self.stem = Stem(inputs=inputs, width=trunk.width)
        self.token_position = TOKEN_POSITIONS[config.token_position](
            num_tokens=num_tokens, width=trunk.width
        )
        self.latent_position = LATENT_POSITIONS[config.latent_position](
            num_groups=config.num_groups,
            latents_per_group=trunk.latents_per_group,
            width=trunk.latent_width,
        )
        self.time = TimeToken(trunk.latent_width)
        self.classes = dense(num_classes, trunk.latent_width) if num_classes else None
        self.before = LatentsBefore(trunk) if config.self_conditioning == "latent" else None
        self.trunk = Trunk(trunk, reach=config.reach(num_tokens))
        self.token_norm = layer_norm(trunk.width)
        self.project = dense(trunk.width, inputs)

    def forward(
        self,
        patches: Patches,
        places: Places,
        *,
        gamma: Float[Tensor, " b"],
        classes: Float[Tensor, "b k"] | None = None,
        before: Latents | None = None,
    ) -> Denoised:
        """Predict what the noisy patches hide.

        Args:
            patches: noisy values of every patch.
            places: which image each group belongs to, and where in it.
            gamma: share of signal of every image.
            classes: one-hot rows, zeros for no class; needed by a model that has classes.
            before: raw latents of the step before; None for zeros.
        """
        start = self.start(places, gamma=gamma, classes=classes, before=before)
        streams = self.trunk(
            self.tokens(patches),
            start.latents,
            images=self.layout(places),
            context=start.context,
        )
        return Denoised(patches=self.patches(streams.tokens), latents=streams.latents)

    def layout(self, places: Places, *, crew: Crew = ALONE) -> ImageLayout:
        """How groups line up in their images."""
        return crew.layout(
            places.image,
            num_images=places.num_images,
            latents_per_group=self.latents_per_group,
        )

    def tokens(self, patches: Patches) -> DataTokens:
        """Data tokens before the trunk, of noisy patches of any groups."""
        return self.token_position(self.stem(patches))

    def start(
        self,
        places: Places,
        *,
        gamma: Float[Tensor, " b"],
        classes: Float[Tensor, "b k"] | None,
        before: Latents | None,
    ) -> Start:
        """Latents before the trunk, and what they will be told."""
        latents = self.latent_position(places, self.token_norm.weight)
        if self.before is not None:
            shown = torch.zeros_like(latents) if before is None else before.to(latents.dtype)
            latents = latents + self.before(shown)
        context = self.time(gamma)
        if self.classes is not None:
            if classes is None:
                raise ValueError("this model was trained with labels: give one an image")
            asked = self.classes(classes.to(context.dtype))
            context = torch.cat([context, asked[:, None]], 1)
        return Start(latents=latents, context=context)

    def patches(self, tokens: DataTokens) -> Patches:
        """The prediction, of tokens after the trunk."""
        return self.project(self.token_norm(tokens))
