"""The interleaved trunk of FIT: local layers, read, global layers, write.

Chen & Li 2023, arXiv:2305.12689: local layers work on the data tokens of a group, global layers on
the latents of all groups of an image, and cross-attention goes between the two, inside a group.
For L tokens in groups of n with m latents each, attention costs L n + (L m / n)^2 pairs a layer
pair, 1.89 L^(4/3) m^(2/3) at the best n, instead of L^2.

The layer string "(2)4(2)" says: 2 local, read, 4 global, write, 2 local. The last block never
writes; without global layers it does not read either.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from torch import nn

from fit_model import checks
from fit_model.attention.chunks import InChunks
from fit_model.attention.mixers import build_mixer, is_softmax, read_operator, require_softmax
from fit_model.attention.operators import CAUSAL_OPERATORS, OPERATORS
from fit_model.attention.place import Place
from fit_model.layers import KEY_NORMS, CrossLayer, FeedForwardLayer, SelfHeads, SelfLayer
from fit_model.layout import ImageLayout
from fit_model.moves import Across, Condition, Local, Read, Skip, Write, WriteFromBefore
from fit_model.recompute import CHECKPOINTING, GROUPWISE
from fit_model.shapes import Context, DataTokens, Latents, ValidTokens

LatentMask = Literal["none", "causal"]
"""Whether latents see all of their image, or their own group and the groups before it."""
Flow = Literal["open", "conditioned", "causal"]
"""Who sees whom. "open": the encoder. "conditioned": latents also read a context, after the data.
"causal": no token sees a later one, and groups read the latents of the group before them."""


ANYWHERE = Place()


@dataclass(frozen=True, kw_only=True)
class Reach:
    """Who sees whom, and how long the sequences are in which they do."""

    flow: Flow = "open"
    latent_mask: LatentMask = "none"
    local: Place = ANYWHERE
    """Of the data tokens of a group."""
    across: Place = ANYWHERE
    """Of the latents of an image."""


@dataclass(frozen=True, kw_only=True)
class BlockPlan:
    """How many local and global layers a block has."""

    num_local: int
    num_across: int


def parse_layers(layers: str) -> tuple[BlockPlan, ...]:
    """The blocks of an official layer string: "(2)4(2)" gives 2 and 4, then 2 and 0."""
    complete = layers + "0" if layers.endswith(")") else layers
    if not re.fullmatch(r"(\([0-9]{1,4}\)[0-9]{1,4})+", complete):
        raise ValueError(
            f"layers is {layers!r}: write local layers in brackets and global ones after them, "
            "for example '(2)4(2)'"
        )
    blocks = tuple(
        BlockPlan(num_local=int(local), num_across=int(across))
        for local, across in re.findall(r"\(([0-9]+)\)([0-9]+)", complete)
    )
    if any(block.num_across == 0 for block in blocks[:-1]):
        raise ValueError(f"layers is {layers!r}: only the last block may have no global layers")
    return blocks


@dataclass(frozen=True, kw_only=True)
class TrunkConfig:
    """The size of the trunk; names and defaults follow the official code where it has them."""

    layers: str
    """Blocks as "(local)global(local)...", for example "(2)4(2)"."""
    width: int
    """Of a data token."""
    latent_width: int
    latents_per_group: int
    heads: int
    """Of local layers; read and write have the smaller of the two numbers of heads."""
    latent_heads: int
    mlp_ratio: int = 4
    local_operator: str = "softmax"
    """How data tokens of a group are mixed: see `attention.mixers`; as "linformer@rank=16"."""
    global_operator: str = "softmax"
    """How the latents of an image are mixed."""
    dropout: float = 0.0
    """Inside the feed-forwards of local and global layers."""
    drop_path: float = 0.0
    """Of both residuals of a layer, the same in every layer."""
    local_mixing: Literal["attention", "none"] = "attention"
    """"none" leaves local layers their feed-forward only, as in RIN."""
    after_exchange: Literal["nothing", "feed_forward"] = "nothing"
    """What follows a read and a write."""
    key_norm: Literal["layer_norm", "none"] = "layer_norm"
    """Of what is read: in a read, a write and the reading of a context."""
    checkpointing: Literal["none", "layer"] = "none"
    """"layer" keeps only the inputs of layers for the backward pass and computes them again."""

    def __post_init__(self) -> None:
        parse_layers(self.layers)
        checks.positive(
            width=self.width,
            latent_width=self.latent_width,
            latents_per_group=self.latents_per_group,
            heads=self.heads,
            latent_heads=self.latent_heads,
            mlp_ratio=self.mlp_ratio,
        )
        for name, width, heads in (
            ("width", self.width, self.heads),
            ("latent_width", self.latent_width, self.latent_heads),
        ):
            if width % heads:
                raise ValueError(f"{name} {width} is no multiple of its {heads} heads")
        if min(self.width, self.latent_width) < min(self.heads, self.latent_heads):
            raise ValueError("read and write have more heads than channels: use fewer heads")
        checks.rate(dropout=self.dropout, drop_path=self.drop_path)
        read_operator(self.local_operator, setting="local_operator")
        read_operator(self.global_operator, setting="global_operator")
        checks.one_of(("attention", "none"), local_mixing=self.local_mixing)
        checks.one_of(("nothing", "feed_forward"), after_exchange=self.after_exchange)
        checks.one_of(KEY_NORMS, key_norm=self.key_norm)
        checks.one_of(CHECKPOINTING, checkpointing=self.checkpointing)

    @property
    def blocks(self) -> tuple[BlockPlan, ...]:
        """The layer string, taken apart."""
        return parse_layers(self.layers)


class Block(nn.Module):
    """The moves of one block: local, read, condition, across, write."""

    def __init__(
        self,
        config: TrunkConfig,
        plan: BlockPlan,
        *,
        reach: Reach,
        writes: bool,
    ) -> None:
        super().__init__()
        run, groupwise = CHECKPOINTING[config.checkpointing], GROUPWISE[config.checkpointing]
        local = [local_layer(config, reach=reach) for _ in range(plan.num_local)]
        across = [global_layer(config, reach=reach) for _ in range(plan.num_across)]
        make_write = WriteFromBefore if reach.flow == "causal" else Write
        conditioned = across and reach.flow == "conditioned"
        self.local = Local(local, run=groupwise) if local else Skip()
        self.read = Read(**reading(config), run=groupwise) if across else Skip()
        self.condition = Condition(condition_layer(config), run=run) if conditioned else Skip()
        self.across = Across(across, run=run) if across else Skip()
        self.write = make_write(**writing(config), run=groupwise) if writes else Skip()


def reading(config: TrunkConfig) -> dict[str, Any]:
    """The layers of a read."""
    return exchange_layers(config, query_width=config.latent_width, key_width=config.width)


def writing(config: TrunkConfig) -> dict[str, Any]:
    """The layers of a write."""
    return exchange_layers(config, query_width=config.width, key_width=config.latent_width)


def exchange_layers(config: TrunkConfig, *, query_width: int, key_width: int) -> dict[str, Any]:
    """The attention between the streams, and the feed-forward that may follow it."""
    heads = min(config.heads, config.latent_heads)
    followed = config.after_exchange == "feed_forward"
    return {
        "layer": CrossLayer(
            query_width=query_width, key_width=key_width, heads=heads, key_norm=config.key_norm
        ),
        "after": FeedForwardLayer(
            width=query_width, mlp_ratio=config.mlp_ratio, dropout=0.0, drop_path=0.0
        )
        if followed
        else None,
    }


def condition_layer(config: TrunkConfig) -> CrossLayer:
    """The attention from latents to their image's context."""
    width, heads = config.latent_width, config.latent_heads
    return CrossLayer(query_width=width, key_width=width, heads=heads, key_norm=config.key_norm)


def local_layer(config: TrunkConfig, *, reach: Reach) -> SelfLayer | FeedForwardLayer:
    """A layer of the data stream."""
    common: dict[str, Any] = {
        "width": config.width,
        "mlp_ratio": config.mlp_ratio,
        "dropout": config.dropout,
        "drop_path": config.drop_path,
    }
    if config.local_mixing == "none":
        return FeedForwardLayer(**common)
    operator, width, heads = config.local_operator, config.width, config.heads
    if is_softmax(operator):
        operators = CAUSAL_OPERATORS if reach.flow == "causal" else OPERATORS
        mixer: nn.Module = SelfHeads(width=width, heads=heads, attend=operators[operator])
    else:
        mixer = build_mixer(operator, width=width, heads=heads, place=reach.local)
    return SelfLayer(mixer=mixer, **common)


def global_layer(config: TrunkConfig, *, reach: Reach) -> SelfLayer:
    """A layer of the latent stream."""
    operator, width, heads = config.global_operator, config.latent_width, config.latent_heads
    if is_softmax(operator):
        attend = OPERATORS[operator]
        if reach.latent_mask == "causal":
            attend = InChunks(attend=attend, chunk=config.latents_per_group)
        mixer: nn.Module = SelfHeads(width=width, heads=heads, attend=attend)
    else:
        mixer = build_mixer(operator, width=width, heads=heads, place=reach.across)
    return SelfLayer(
        width=width,
        mixer=mixer,
        mlp_ratio=config.mlp_ratio,
        dropout=config.dropout,
        drop_path=config.drop_path,
    )


def square_place(num_tokens: int, *, prefix: int = 0) -> Place:
    """Of the patches of a group, which lie in a square, after so many other tokens."""
    side = math.isqrt(num_tokens)
    grid = (side, side) if side * side == num_tokens else None
    return Place(num_tokens=prefix + num_tokens, grid=grid, prefix=prefix)


def latents_place(config: TrunkConfig, *, num_groups: int | None) -> Place:
    """Of the latents of an image, for models that know how many groups an image has at most."""
    known = None if num_groups is None else num_groups * config.latents_per_group
    return Place(num_tokens=known)


@dataclass(frozen=True, kw_only=True)
class Streams:
    """The two streams of the trunk."""

    tokens: DataTokens
    latents: Latents


class Trunk(nn.Module):
    """The body of every FIT.

    Cost, multiply-adds for L tokens and M latents of an image, a = min(d, e), r the mlp_ratio:
        a local layer L ((4 + 2r) d^2 + 2 n d), a global one M (4 + 2r) e^2 + 2 M^2 e,
        a read or a write 2a (M e + L d + L m).
    """

    def __init__(self, config: TrunkConfig, *, reach: Reach) -> None:
        super().__init__()
        plans = config.blocks
        if reach.latent_mask == "causal":
            require_softmax(config.global_operator, setting="global_operator")
        blocks = [Block(config, plan, reach=reach, writes=plan is not plans[-1]) for plan in plans]
        self.blocks = cast(Sequence[Block], nn.ModuleList(blocks))

    def forward(
        self,
        tokens: DataTokens,
        latents: Latents,
        *,
        images: ImageLayout,
        valid: ValidTokens | None = None,
        context: Context | None = None,
    ) -> Streams:
        """Both streams after all blocks; what is not valid changes nothing but itself."""
        for block in self.blocks:
            tokens = block.local(tokens, valid)  # [g n d] each group on its own
            latents = block.read(latents, tokens, valid)  # [g m e] each reads its group
            latents = block.condition(latents, images, context)  # [g m e] and what is asked for
            latents = block.across(latents, images)  # [g m e] all latents of an image meet
            tokens = block.write(tokens, latents, images)  # [g n d] each reads its group
        return Streams(tokens=tokens, latents=latents)
