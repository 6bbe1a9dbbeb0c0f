"""What a forward pass costs, and how many parameters a configuration declares: closed forms.

With L data tokens and M latents of an image, n tokens and m latents of a group, a = min(d, e)
and r = mlp_ratio, multiply-adds are

    stem           L c d
    local layer    L ((4 + 2r) d^2 + 2 n d)
    global layer   M (4 + 2r) e^2 + 2 M^2 e
    read, write    2a (M e + L d + L m)

A multiply-add is two floating point operations. Norms, activations and heads are left out.
"""

from collections.abc import Sequence

from fit_model.body import TrunkConfig
from fit_model.models import ModelConfig


def forward_macs(config: ModelConfig, groups_per_image: Sequence[int]) -> int:
    """Multiply-adds of one forward pass over images with that many stored groups each."""
    trunk = config.encoder.trunk
    named = config.encoder.group_token != "none"
    num_tokens = config.num_tokens + named
    groups = sum(groups_per_image)
    stem = groups * config.num_tokens * config.patch_channels * trunk.width
    if named:
        stem += groups * (config.encoder.num_groups or 0) * trunk.width
    return stem + sum(_trunk_macs(trunk, num_tokens, groups) for groups in groups_per_image)


def _trunk_macs(trunk: TrunkConfig, num_tokens: int, groups: int) -> int:
    d, e = trunk.width, trunk.latent_width
    tokens, latents = groups * num_tokens, groups * trunk.latents_per_group
    dense = 4 + 2 * trunk.mlp_ratio
    local = tokens * (dense * d * d + 2 * num_tokens * d)
    across = latents * dense * e * e + 2 * latents * latents * e
    exchange = 2 * min(d, e) * (latents * e + tokens * d + tokens * trunk.latents_per_group)
    blocks = trunk.blocks
    reads = sum(block.num_across > 0 for block in blocks)
    return (
        sum(block.num_local * local + block.num_across * across for block in blocks)
        + (reads + len(blocks) - 1) * exchange
    )


def num_parameters(config: ModelConfig) -> int:
    """How many parameters the model has, without building it."""
    encoder, trunk, head = config.encoder, config.encoder.trunk, config.head
    d, e = trunk.width, trunk.latent_width
    total = config.patch_channels * d + 3 * d + 2 * d + 2 * e
    if encoder.token_position == "learned":
        total += config.num_tokens * d
    if encoder.latent_position == "learned":
        total += (encoder.num_groups or 0) * trunk.latents_per_group * e
    elif encoder.latent_position == "coordinate":
        total += (trunk.latents_per_group + 1) * e
    if encoder.group_token != "none":
        total += (encoder.num_groups or 0) * d + 3 * d
    pooled = e if head.pool == "latents" else d
    return total + _trunk_parameters(trunk) + 2 * pooled + (pooled + 1) * head.num_outputs


def _trunk_parameters(trunk: TrunkConfig) -> int:
    d, e, ratio = trunk.width, trunk.latent_width, trunk.mlp_ratio
    heads = min(trunk.heads, trunk.latent_heads)
    inner = heads * (min(d, e) // heads)
    blocks = trunk.blocks

    def layer(width: int) -> int:
        return (4 + 2 * ratio) * width**2 + (9 + ratio) * width

    def exchange(asking: int, offering: int) -> int:
        return 2 * inner * (asking + offering) + 3 * inner + 3 * asking + 2 * offering

    return (
        sum(block.num_local * layer(d) + block.num_across * layer(e) for block in blocks)
        + sum(block.num_across > 0 for block in blocks) * exchange(e, d)
        + (len(blocks) - 1) * exchange(d, e)
    )
