"""What a forward pass costs, and how many parameters a configuration declares: closed forms.

With L data tokens and M latents of an image, n tokens and m latents of a group, s tokens of
context, a = min(d, e), rounded down to whole heads, and r = mlp_ratio, multiply-adds are

    stem               L c d, or that of its convolutions
    local layer        L ((4 + 2r) d^2 + 2 n d)          feed-forward only: L 2r d^2
    global layer       M (4 + 2r) e^2 + 2 M^2 e
    read, write        2a (M e + L d + L m)              both at once, bixt: 3a
    condition          2 M e^2 + 2 s e^2 + 2 M s e
    pixels or levels   L d c, or L d v

where operators other than softmax have their own `macs` in place of n (4 d^2 + 2 n d) a sequence. A
multiply-add is two floating point operations. Norms, activations and other element-wise work,
embeddings and heads for whole images are left out.
"""

from collections.abc import Sequence
from typing import cast

import torch

from fit_model.autoregressive import AutoregressiveConfig
from fit_model.denoiser import TIME_SHARE, DiffusionConfig
from fit_model.encoder import EncoderConfig
from fit_model.heads import PredictConfig
from fit_model.model import ModelConfig
from fit_model.pixels import GenerateConfig
from fit_model.stems import PixelStem, build_stem
from fit_model.trunk_costs import feed_forward_parameters, trunk_macs, trunk_parameters
from fit_model.vix import VixConfig
from fit_model.vix_costs import vix_macs, vix_parameters


def forward_macs(config: ModelConfig, groups_per_image: Sequence[int]) -> int:
    """Multiply-adds of one forward pass over images with that many stored groups each.

    For a diffusion model with self-conditioning this is one of the two passes of a training step.
    """
    face = config.face
    if isinstance(face, VixConfig):
        return len(groups_per_image) * vix_macs(face, config.input)
    trunk, groups = face.trunk, sum(groups_per_image)
    tokens = groups * config.num_tokens
    patches = (config.input.group_side_px // face.patch_px) ** 2
    if isinstance(face, AutoregressiveConfig):
        n, chunks = config.patch_channels, [count * patches for count in groups_per_image]
        ends = tokens * trunk.width * face.num_levels
        return ends + sum(trunk_macs(trunk, n, count, reach=face.reach(n)) for count in chunks)
    ends = tokens * config.patch_channels * trunk.width
    if isinstance(face, DiffusionConfig):
        context = 1 + (_num_classes(config) > 0)
        return 2 * ends + sum(
            trunk_macs(trunk, patches, count, reach=face.reach(patches), context=context)
            for count in groups_per_image
        )
    ends = _stem(face, bands=config.input.bands).macs(tokens)
    named = face.group_token != "none"
    if named:
        ends += groups * (face.num_groups or 0) * trunk.width
    reach = face.reach(patches)
    return ends + sum(
        trunk_macs(trunk, patches + named, count, reach=reach) for count in groups_per_image
    )


def training_macs(config: ModelConfig, groups_per_image: Sequence[int]) -> int:
    """Multiply-adds of one training step: backward costs two forwards, recomputing is no use.

    The first pass of self-conditioning is one forward more, without its prediction.
    """
    face, forward = config.face, forward_macs(config, groups_per_image)
    if not isinstance(face, DiffusionConfig) or face.self_conditioning == "none":
        return 3 * forward
    tokens = sum(groups_per_image) * config.num_tokens
    return 4 * forward - tokens * config.patch_channels * face.trunk.width


def _stem(face: EncoderConfig, *, bands: int) -> PixelStem:
    """The stem without memory for its weights."""
    with torch.device("meta"):
        return build_stem(face.stem, patch_px=face.patch_px, bands=bands, width=face.trunk.width)


def _num_classes(config: ModelConfig) -> int:
    """What a generative model may be asked for; 0 if nothing."""
    return len(cast(GenerateConfig, config.head).classes)


def num_parameters(config: ModelConfig) -> int:
    """How many parameters the model has, without building it."""
    face, inputs = config.face, config.patch_channels
    if isinstance(face, AutoregressiveConfig):
        return decoder_parameters(face, num_tokens=inputs, num_classes=_num_classes(config))
    if isinstance(face, DiffusionConfig):
        return denoiser_parameters(
            face,
            num_tokens=config.num_tokens,
            inputs=inputs,
            num_classes=_num_classes(config),
        )
    head = cast(PredictConfig, config.head)
    if isinstance(face, VixConfig):
        pooled, body = face.width, vix_parameters(face, config.input)
    else:
        pooled = face.trunk.latent_width if head.pool == "latents" else face.trunk.width
        body = encoder_parameters(face, num_tokens=config.num_tokens, inputs=inputs)
    return body + 2 * pooled + (pooled + 1) * head.num_outputs


def encoder_parameters(face: EncoderConfig, *, num_tokens: int, inputs: int) -> int:
    """Of the encoder without a head."""
    d, e = face.trunk.width, face.trunk.latent_width
    total = 2 * d + 2 * e + _positions(face, num_tokens)
    total += sum(
        each.numel() for each in _stem(face, bands=inputs // face.patch_px**2).parameters()
    )
    if face.group_token != "none":
        total += (face.num_groups or 0) * d + 3 * d
    return total + trunk_parameters(face.trunk, reach=face.reach(num_tokens))


def denoiser_parameters(
    face: DiffusionConfig, *, num_tokens: int, inputs: int, num_classes: int
) -> int:
    """Of the denoiser: stem, positions, time, class, self-conditioning, trunk and projection."""
    d, e, ratio = face.trunk.width, face.trunk.latent_width, face.trunk.mlp_ratio
    total = inputs * d + 3 * d + _positions(face, num_tokens) + 2 * d + d * inputs + inputs
    total += (e // TIME_SHARE) * e + e + e * e + e
    total += num_classes * e + e if num_classes else 0
    if face.self_conditioning == "latent":
        total += feed_forward_parameters(e, ratio) + 2 * e
    return total + trunk_parameters(face.trunk, reach=face.reach(num_tokens))


def decoder_parameters(face: AutoregressiveConfig, *, num_tokens: int, num_classes: int) -> int:
    """Of the autoregressive decoder: tables, positions, trunk, output norm and bias."""
    d, levels = face.trunk.width, face.num_levels
    total = levels * d * (2 if face.embedding == "separate" else 1) + 2 * d + num_classes * d
    total += levels if face.output_bias == "learned" else 0
    total += _positions(face, num_tokens)
    return total + trunk_parameters(face.trunk, reach=face.reach(num_tokens))


def _positions(
    face: EncoderConfig | DiffusionConfig | AutoregressiveConfig, num_tokens: int
) -> int:
    latents, e = face.trunk.latents_per_group, face.trunk.latent_width
    total = num_tokens * face.trunk.width if face.token_position == "learned" else 0
    if face.latent_position == "learned":
        total += (face.num_groups or 0) * latents * e
    elif face.latent_position == "coordinate":
        total += (latents + 1) * e
    return total
