"""How many numbers the layers of a model keep for the backward pass: closed forms.

With n rows of width d, r = mlp_ratio and a the width of all heads together, a layer keeps

    local, global layer   n (8 + 2r) d       x, norm x, query, key, value, mixed; x, norm x, 2 r
    feed-forward alone    n (2 + 2r) d
    read, write, condition  n (2 d + 2 a) of those who ask, k (c + 2 a) of those who are asked

and n (r + 2) d more at once while its gradient is computed. Operators other than softmax keep what
they keep on tensors without memory; AFT, which looks at values, `AFT_KEEPS`. Masks, statistics
of norms and sums of scores are left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

from fit_model.attention.chunks import QUERIES_AT_ONCE
from fit_model.attention.mixers import build_mixer, is_softmax
from fit_model.attention.operators import OPERATORS
from fit_model.attention.place import Place
from fit_model.layers import SelfHeads
from fit_model.reach import Reach
from fit_model.recompute import POSITIONS_A_PART
from fit_model.trunk_config import BlockPlan, TrunkConfig

AFT_KEEPS = {"aft_simple": 5, "aft_full": 6, "aft_local": 14, "aft_conv": 9}
"""Numbers a channel of a token; these operators look at values, so they are counted beforehand."""


@dataclass(frozen=True, kw_only=True)
class LayerNumbers:
    """Of one layer over some rows."""

    inputs: int
    inside: int
    """Kept besides the inputs."""
    at_once: int
    """Besides both, while the gradient is computed."""
    rows: int
    """Of the longest input."""


def kept_plainly(layers: Sequence[LayerNumbers]) -> int:
    """Numbers that are there at most when autograd keeps all it needs."""
    at_once = max((each.at_once for each in layers), default=0)
    return sum(each.inputs + each.inside for each in layers) + at_once


def kept_recomputed(layers: Sequence[LayerNumbers]) -> int:
    """The same when only inputs of layers are kept."""
    again = max((each.inside + each.at_once for each in layers), default=0)
    return sum(each.inputs for each in layers) + again


def kept_in_parts(layers: Sequence[LayerNumbers]) -> int:
    """The same when layers work on some rows at a time, see `recomputed_in_parts`."""
    parts = [
        (each.inside + each.at_once) * min(1.0, POSITIONS_A_PART / max(1, each.rows))
        for each in layers
    ]
    return sum(each.inputs for each in layers) + round(max(parts, default=0))


def stretch(
    trunk: TrunkConfig,
    number: int,
    *,
    groups: int,
    tokens_a_group: int,
    reach: Reach,
    dtype: torch.dtype,
) -> list[LayerNumbers]:
    """What a block does inside so many groups, and the write of the block before it."""
    d, e = trunk.width, trunk.latent_width
    tokens, latents = groups * tokens_a_group, groups * trunk.latents_per_group
    blocks, found = trunk.blocks, []
    if number > 0 and blocks[number - 1].writes:
        found += _asked(trunk, (tokens, d), (latents, e))
    block = blocks[number]
    if trunk.local_mixing == "none":
        found += [feed_forward(tokens, d, ratio=trunk.mlp_ratio)] * block.num_local
    elif block.num_local:
        mixed = groups * mixing(
            block.local_operator,
            tokens_a_group,
            d,
            heads=trunk.heads,
            place=reach.local,
            dtype=dtype,
        )
        found += [self_layer(tokens, d, ratio=trunk.mlp_ratio, mixing=mixed)] * block.num_local
    if block.reading in ("latents", "both"):
        found += _asked(trunk, (latents, e), (tokens, d))
    if block.reading in ("tokens", "both"):
        found += _asked(trunk, (tokens, d), (latents, e))
    return found


def meeting(
    trunk: TrunkConfig,
    block: BlockPlan,
    *,
    latents: int,
    of: int,
    images: int,
    reach: Reach,
    dtype: torch.dtype,
) -> list[LayerNumbers]:
    """What a block does with `latents` of each image's latents, which meet all `of` them."""
    e, rows = trunk.latent_width, images * latents
    if not block.num_across:
        return []
    if is_softmax(block.global_operator):
        # own queries and what comes of them, everybody's keys and values
        mixed = images * (3 * latents + 2 * of) * e
    else:
        heads, place = trunk.latent_heads, reach.across
        mixed = images * mixing(block.global_operator, of, e, heads=heads, place=place, dtype=dtype)
    if reach.across.causal == "chunks":
        # the mask of some queries, twice, in bytes
        mixed += 2 * min(QUERIES_AT_ONCE, latents) * of // dtype.itemsize
    layers = [self_layer(rows, e, ratio=trunk.mlp_ratio, mixing=mixed)] * block.num_across
    if reach.flow == "conditioned":
        layers = [cross_layer((rows, e), (2, e), inner=e), *layers]
    return layers


def self_layer(rows: int, width: int, *, ratio: int, mixing: int) -> LayerNumbers:
    """A mixer, which keeps `mixing` numbers, and a feed-forward."""
    return LayerNumbers(
        inputs=rows * width,
        inside=mixing + rows * (2 + 2 * ratio) * width,
        at_once=rows * (ratio + 2) * width,
        rows=rows,
    )


def feed_forward(rows: int, width: int, *, ratio: int) -> LayerNumbers:
    """Norm, expand, contract."""
    return LayerNumbers(
        inputs=rows * width,
        inside=rows * (1 + 2 * ratio) * width,
        at_once=rows * (ratio + 2) * width,
        rows=rows,
    )


def cross_layer(asking: tuple[int, int], offering: tuple[int, int], *, inner: int) -> LayerNumbers:
    """Rows and width of those who ask and of those who are asked, who are kept elsewhere."""
    (rows, width), (offered, offered_width) = asking, offering
    inside = rows * (width + 2 * inner) + offered * (offered_width + 2 * inner)
    at_once = rows * (width + inner) + offered * (offered_width + 2 * inner)
    return LayerNumbers(
        inputs=rows * width, inside=inside, at_once=at_once, rows=max(rows, offered)
    )


def _asked(
    trunk: TrunkConfig, asking: tuple[int, int], offering: tuple[int, int]
) -> list[LayerNumbers]:
    heads = min(trunk.heads, trunk.latent_heads)
    inner = heads * (min(trunk.width, trunk.latent_width) // heads)
    layers = [cross_layer(asking, offering, inner=inner)]
    if trunk.after_exchange == "feed_forward":
        layers.append(feed_forward(*asking, ratio=trunk.mlp_ratio))
    return layers


@cache
def mixing(
    operator: str, length: int, width: int, *, heads: int, place: Place, dtype: torch.dtype
) -> int:
    """What one sequence keeps between a layer's norm, included, and its residual."""
    if operator == "softmax":
        return 5 * length * width
    kind = operator.partition("@")[0]
    if kind in AFT_KEEPS:
        return AFT_KEEPS[kind] * length * width * 4 // dtype.itemsize
    with torch.device("meta"):
        if is_softmax(operator):
            mixer: nn.Module = SelfHeads(width=width, heads=heads, attend=OPERATORS[operator])
        else:
            mixer = build_mixer(operator, width=width, heads=heads, place=place)
        normed = torch.empty(1, length, width, requires_grad=True, dtype=dtype)
    return saved_bytes(mixer.to(dtype), normed) // dtype.itemsize


def saved_bytes(layer: nn.Module, inputs: Tensor) -> int:
    """What autograd saves of a call, without the layer's parameters."""
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        # held here, so that no two storages have one address
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        layer(inputs)
    weights = {each.untyped_storage()._cdata for each in layer.parameters()}
    return sum(each.untyped_storage().nbytes() for k, each in kept.items() if k not in weights)
