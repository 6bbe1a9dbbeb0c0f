"""What ViX costs: multiply-adds and parameters, from layers that take no memory.

With n tokens of an image, the class token included, width d and r = mlp_ratio, multiply-adds are

    stem               its convolutions, or n d patch values
    layer              the operator's, 2 r n d^2, and 18 n d for local patches
    class attention    2 (n + 1) (d^2 + d) + (2 + 2 r) d^2 a layer of the two

Norms, activations, positions and heads for whole images are left out.
"""

from collections import Counter

import torch
from torch import nn

from fit_model.attention.token_mixer import TokenMixer
from fit_model.stems import build_stem
from fit_model.tokens import InputConfig
from fit_model.vix import POOLINGS, VixConfig, layer_of
from fit_model.vix_ends import CLASS_ATTENTION_LAYERS, POSITIONS, ClassToken
from fit_model.vix_layers import VixLayer


def vix_macs(face: VixConfig, pixels: InputConfig) -> int:
    """Multiply-adds of one image, whose every group counts whether it is stored or not."""
    place = face.place(group_side_px=pixels.group_side_px)
    num_tokens = place.length(operator="vix")
    d, ratio = face.width, face.mlp_ratio
    with torch.device("meta"):
        stem = build_stem(face.stem, patch_px=face.patch_px, bands=pixels.bands, width=d)
    total = stem.macs(num_tokens - place.prefix)
    for operator, count in Counter(face.operators).items():
        layer = _layer(face, operator, pixels)
        mixer = layer.attention
        mixing = num_tokens * (4 * d * d + 2 * num_tokens * d)  # of softmax
        if isinstance(mixer, TokenMixer):
            mixing = mixer.macs(num_tokens)
        local = 0 if layer.local is None else 18 * num_tokens * d
        total += count * (mixing + local + 2 * ratio * num_tokens * d * d)
    if face.pooling == "class_attention":
        read = 2 * (num_tokens + 1) * (d * d + d) + (2 + 2 * ratio) * d * d
        total += CLASS_ATTENTION_LAYERS * read
    return total


def vix_parameters(face: VixConfig, pixels: InputConfig) -> int:
    """Of the backbone without a head; the time this takes does not grow with the depth."""
    try:
        ends = sum(map(_size, _ends(face, pixels)))
        layers = [
            count * _size(_layer(face, operator, pixels))
            for operator, count in Counter(face.operators).items()
        ]
    except RuntimeError as error:  # numbers of 64 bits do not count them
        raise ValueError(
            f"width {face.width} and a grid of {face.grid_rows} x {face.grid_columns} groups "
            f"declare tensors larger than any can be: {error}"
        ) from error
    return ends + sum(layers)


def _ends(face: VixConfig, pixels: InputConfig) -> list[nn.Module]:
    place, width = face.place(group_side_px=pixels.group_side_px), face.width
    with torch.device("meta"):
        return [
            build_stem(face.stem, patch_px=face.patch_px, bands=pixels.bands, width=width),
            POSITIONS[face.position](place=place, width=width, std=0.0),
            POOLINGS[face.pooling](face),
            *[ClassToken(width, std=0.0)] * place.prefix,
        ]


def _layer(face: VixConfig, operator: str, pixels: InputConfig) -> VixLayer:
    place = face.place(group_side_px=pixels.group_side_px)
    with torch.device("meta"):
        return layer_of(face, operator, place=place)


def _size(module: nn.Module) -> int:
    return sum(each.numel() for each in module.parameters())
