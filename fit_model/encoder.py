"""FIT as an encoder: patches of groups in, data tokens and latents out.

    tokens  = stem(patches) + position in the group         [+ a token that names the group]
    latents = position of the group
    tokens, latents = LN(trunk(tokens, latents))

Source: Chen & Li 2023, arXiv:2305.12689; google-research/pix2seq, class FIT.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from fit_model import checks
from fit_model.body import Trunk
from fit_model.crew import ALONE, Crew
from fit_model.groups import Places
from fit_model.layers import layer_norm
from fit_model.layout import ImageLayout
from fit_model.moves import Streams
from fit_model.positions import LATENT_POSITIONS, TOKEN_POSITIONS, check_grid
from fit_model.reach import LatentMask, Reach, latents_place, square_place
from fit_model.shapes import DataTokens, Latents, Patches, ValidTokens
from fit_model.stems import build_patch_stem, check_patch_stem
from fit_model.tokens import Stem
from fit_model.trunk_config import TrunkConfig


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """The encoder around a trunk: patches, positions and who may see whom."""

    kind: Literal["encoder"] = "encoder"
    patch_px: int
    trunk: TrunkConfig
    stem: str = "linear"
    """From pixels to tokens: see `stems`; each group alone."""
    token_position: Literal["learned", "sin_cos", "sin_cos_2d"] = "learned"
    latent_position: Literal["learned", "sin_cos_2d", "coordinate"] = "coordinate"
    """"learned" and "sin_cos_2d" are the official ones and know one number of groups only."""
    num_groups: int | None = None
    """Groups of every image's grid; only for what depends on it, None otherwise."""
    latent_mask: LatentMask = "none"
    """"causal": latents see those of their own group and of the groups before it."""
    group_token: Literal["none", "one_hot"] = "none"
    """"one_hot" puts a token that names the group before its data tokens."""

    def __post_init__(self) -> None:
        checks.positive(patch_px=self.patch_px)
        checks.one_of(("encoder",), kind=self.kind)
        check_patch_stem(self.stem, patch_px=self.patch_px, width=self.trunk.width, setting="stem")
        checks.one_of(TOKEN_POSITIONS, token_position=self.token_position)
        checks.one_of(LATENT_POSITIONS, latent_position=self.latent_position)
        checks.one_of(("none", "causal"), latent_mask=self.latent_mask)
        if self.latent_mask == "causal":
            self.trunk.require_causal_latents()
        checks.one_of(("none", "one_hot"), group_token=self.group_token)
        fixed = self.latent_position != "coordinate" or self.group_token != "none"
        if self.num_groups is not None:
            checks.positive(num_groups=self.num_groups)
        elif fixed:
            raise ValueError(
                f"latent_position {self.latent_position!r} with group_token {self.group_token!r} "
                "needs num_groups, the groups of every image; or take 'coordinate' and 'none'"
            )

    def reach(self, num_tokens: int) -> Reach:
        """Who sees whom, when a group has so many patches."""
        return Reach(
            local=square_place(num_tokens, prefix=int(self.group_token == "one_hot")),
            across=latents_place(
                self.trunk, num_groups=self.num_groups, latent_mask=self.latent_mask
            ),
        )


class GroupToken(nn.Module):
    """The token that names a group: LN(identity W + b), identity usually one-hot."""

    def __init__(self, *, num_groups: int, width: int) -> None:
        super().__init__()
        self.num_groups = num_groups
        self.stem = Stem(inputs=num_groups, width=width)

    def forward(
        self, tokens: DataTokens, identity: Float[Tensor, "g q t"]
    ) -> Float[Tensor, "g q+n d"]:
        """Tokens with those that name their group put before them."""
        return torch.cat([self.stem(identity), tokens], 1)

    def one_hot(self, places: Places) -> Float[Tensor, "g 1 t"]:
        """The identity of groups that keep their number in the image's grid."""
        check_grid(places, num_groups=self.num_groups)
        return functional.one_hot(places.number, self.num_groups)[:, None].to(torch.float32)


@dataclass(frozen=True, kw_only=True)
class EncoderOutput:
    """Both streams after their output norms, and what is needed to sum over an image."""

    tokens: DataTokens
    latents: Latents
    images: ImageLayout
    valid: ValidTokens | None
    """Tokens that hold something of the image; None for all."""


class Encoder(nn.Module):
    """Stem, positions, trunk and output norms.

    Args:
        config: the encoder's settings.
        num_tokens: patches of a group.
        inputs: channels of a patch, patch_px^2 bands.
    """

    def __init__(self, config: EncoderConfig, *, num_tokens: int, inputs: int) -> None:
        super().__init__()
        trunk = config.trunk
        self.latents_per_group = trunk.latents_per_group
        self.stem = build_patch_stem(
            config.stem, patch_px=config.patch_px, inputs=inputs, width=trunk.width
        )
        self.token_position = TOKEN_POSITIONS[config.token_position](
            num_tokens=num_tokens, width=trunk.width
        )
        self.group_token = (
            GroupToken(num_groups=config.num_groups or 0, width=trunk.width)
            if config.group_token == "one_hot"
            else None
        )
        self.latent_position = LATENT_POSITIONS[config.latent_position](
            num_groups=config.num_groups,
            latents_per_group=trunk.latents_per_group,
            width=trunk.latent_width,
        )
        self.trunk = Trunk(trunk, reach=config.reach(num_tokens))
        self.token_norm = layer_norm(trunk.width)
        self.latent_norm = layer_norm(trunk.latent_width)

    def forward(
        self,
        patches: Patches,
        places: Places,
        *,
        valid: ValidTokens | None = None,
        identity: Float[Tensor, "g q t"] | None = None,
    ) -> EncoderOutput:
        """Encode groups of any number of images.

        Args:
            patches: values of every patch, in any floating dtype.
            places: which image each group belongs to, and where in it.
            valid: which patches show something of their image; None for all.
            identity: replaces the one-hot names of the groups.
        """
        images = self.layout(places)
        tokens = self.tokens(patches, places, identity=identity)
        if valid is not None:
            valid = functional.pad(valid, (tokens.shape[1] - valid.shape[1], 0), value=True)
        streams: Streams = self.trunk(tokens, self.latents(places), images=images, valid=valid)
        return EncoderOutput(
            tokens=self.token_norm(streams.tokens),
            latents=self.latent_norm(streams.latents),
            images=images,
            valid=valid,
        )

    def layout(self, places: Places, *, crew: Crew = ALONE) -> ImageLayout:
        """How groups line up in their images."""
        return crew.layout(
            places.image,
            num_images=places.num_images,
            latents_per_group=self.latents_per_group,
        )

    def tokens(
        self,
        patches: Patches,
        places: Places,
        *,
        identity: Float[Tensor, "g q t"] | None = None,
    ) -> Float[Tensor, "g _ d"]:
        """Data tokens before the trunk, of any groups; those that name a group come first."""
        tokens = self.token_position(self.stem(patches))
        if self.group_token is None:
            return tokens
        named = self.group_token.one_hot(places) if identity is None else identity
        return self.group_token(tokens, named)

    def latents(self, places: Places) -> Latents:
        """Latents before the trunk."""
        return self.latent_position(places, self.latent_norm.weight)


def encode_images(
    encoder: Encoder,
    x: Float[Tensor, "b t n c"],
    *,
    identity: Float[Tensor, "b t q i"] | None = None,
) -> EncoderOutput:
    """The official entry: images of equally many groups, tokens already cut; results are flat."""
    places = Places.in_one_row(num_images=x.shape[0], num_groups=x.shape[1], device=x.device)
    named = None if identity is None else identity.flatten(0, 1)
    return encoder(x.flatten(0, 1), places, identity=named)
