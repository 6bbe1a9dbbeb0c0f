"""What the trunk costs, block by block: see `flops` for the letters and the closed forms."""

from typing import Any, cast

import torch

from fit_model.attention.mixers import build_mixer, is_softmax
from fit_model.attention.token_mixer import TokenMixer
from fit_model.block import global_mixing, local_mixing
from fit_model.reach import Reach
from fit_model.trunk_config import BlockPlan, TrunkConfig


def trunk_macs(
    trunk: TrunkConfig, num_tokens: int, groups: int, *, reach: Reach, context: int = 0
) -> int:
    """Multiply-adds of one image of so many groups, told what it shall be by `context` tokens."""
    d, e, ratio = trunk.width, trunk.latent_width, trunk.mlp_ratio
    tokens, latents = groups * num_tokens, groups * trunk.latents_per_group
    condition = 2 * (latents + context) * e * e + 2 * latents * context * e if context else 0
    exchange = _inner(trunk) * (latents * e + tokens * d + tokens * trunk.latents_per_group)
    total = 0
    for block in trunk.blocks:
        if block.num_local:
            local = tokens * 2 * ratio * d * d
            if trunk.local_mixing == "attention":
                local += groups * _mixing_macs(
                    num_tokens, **local_mixing(trunk, block, reach=reach)
                )
            total += block.num_local * local
        if block.num_across:
            across = latents * 2 * ratio * e * e
            across += _mixing_macs(latents, **global_mixing(trunk, block, reach=reach))
            total += condition + block.num_across * across
        total += (PRODUCTS[block.reading] + 2 * block.writes) * exchange
        if trunk.after_exchange == "feed_forward":
            latents_read, tokens_read = _readers(block)
            total += 2 * ratio * (latents_read * latents * e * e + tokens_read * tokens * d * d)
    return total


PRODUCTS = {"none": 0, "latents": 2, "tokens": 2, "both": 3}
"""Products of an exchange: each side has two projections, or three where both streams take."""


def _inner(trunk: TrunkConfig) -> int:
    """Channels of all heads of an exchange together."""
    heads = min(trunk.heads, trunk.latent_heads)
    return heads * (min(trunk.width, trunk.latent_width) // heads)


def _readers(block: BlockPlan) -> tuple[int, int]:
    """How often latents and tokens read the other stream."""
    latents = block.reading in ("latents", "both")
    tokens = block.reading in ("tokens", "both")
    return int(latents), int(tokens) + int(block.writes)


def _mixing_macs(length: int, *, operator: str, width: int, **mixing: Any) -> int:
    """Of a layer without its feed-forward, over one sequence."""
    if is_softmax(operator):
        return length * (4 * width * width + 2 * length * width)
    return _on_meta(operator, width=width, **mixing).macs(length)


def _on_meta(operator: str, **mixing: Any) -> TokenMixer:
    """A mixer without memory for its weights; not for softmax."""
    with torch.device("meta"):
        return cast(TokenMixer, build_mixer(operator, **mixing))


def feed_forward_parameters(width: int, ratio: int) -> int:
    """Parameters of a feed-forward and its norm."""
    return 2 * ratio * width**2 + (3 + ratio) * width


def trunk_parameters(trunk: TrunkConfig, *, reach: Reach) -> int:
    """How many parameters a trunk has."""
    d, e, ratio = trunk.width, trunk.latent_width, trunk.mlp_ratio
    total = 0
    for block in trunk.blocks:
        if block.num_local:
            local = feed_forward_parameters(d, ratio)
            if trunk.local_mixing == "attention":
                local += _mixing_parameters(**local_mixing(trunk, block, reach=reach))
                # two frequencies for every pair of channels
                local += d if trunk.local_rotary.startswith("rotary_mixed") else 0
            total += block.num_local * local
        if block.num_across:
            across = _mixing_parameters(**global_mixing(trunk, block, reach=reach))
            total += block.num_across * (feed_forward_parameters(e, ratio) + across)
            if reach.flow == "conditioned":
                total += _exchange_parameters(trunk, e, e, inner=e)
        latents_read, tokens_read = _readers(block)
        if block.reading == "both":
            total += 3 * _inner(trunk) * (d + e) + 4 * _inner(trunk) + 3 * (d + e)
        else:
            total += latents_read * _exchange_parameters(trunk, e, d, inner=_inner(trunk))
            total += tokens_read * _exchange_parameters(trunk, d, e, inner=_inner(trunk))
        if trunk.after_exchange == "feed_forward":
            total += latents_read * feed_forward_parameters(e, ratio)
            total += tokens_read * feed_forward_parameters(d, ratio)
    return total


def _mixing_parameters(*, operator: str, width: int, **mixing: Any) -> int:
    if is_softmax(operator):
        return 4 * width**2 + 6 * width
    mixer = _on_meta(operator, width=width, **mixing)
    return 2 * width + sum(each.numel() for each in mixer.parameters())


def _exchange_parameters(trunk: TrunkConfig, asking: int, offering: int, *, inner: int) -> int:
    total = 2 * inner * (asking + offering) + 3 * inner + 3 * asking + 2 * offering
    return total - (2 * offering if trunk.key_norm == "none" else 0)
