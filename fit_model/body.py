"""The interleaved trunk of FIT: local layers, read, global layers, write.

Chen & Li 2023, arXiv:2305.12689: local layers work on the data tokens of a group, global layers on
the latents of all groups of an image, and cross-attention goes between the two, inside a group.
For L tokens in groups of n with m latents each, attention costs L n + (L m / n)^2 pairs a layer
pair, 1.89 L^(4/3) m^(2/3) at the best n, instead of L^2.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from torch import nn

from fit_model.attention.bixt import BidirectionalLayer, BixtConfig
from fit_model.attention.chunks import InChunks
from fit_model.attention.mixers import build_mixer, is_softmax
from fit_model.attention.operators import CAUSAL_OPERATORS, OPERATORS
from fit_model.attention.place import Place
from fit_model.attention.rotary import Rotary, RotatedOperator, build_rotary, read_rotary
from fit_model.layers import CrossLayer, FeedForwardLayer, SelfHeads, SelfLayer
from fit_model.layout import ImageLayout
from fit_model.moves import (
    Across,
    Apart,
    Condition,
    Local,
    Read,
    ReadBack,
    ReadEachOther,
    Skip,
    Streams,
    Write,
)
from fit_model.recompute import CHECKPOINTING, GROUPWISE, Run
from fit_model.shapes import Context, DataTokens, Latents, ValidTokens
from fit_model.trunk_config import BlockPlan, Reading, TrunkConfig

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


class Block(nn.Module):
    """The moves of one block: local, read, condition, across, write."""

    def __init__(self, config: TrunkConfig, plan: BlockPlan, *, reach: Reach) -> None:
        super().__init__()
        run, groupwise = CHECKPOINTING[config.checkpointing], GROUPWISE[config.checkpointing]
        local = [local_layer(config, plan, reach=reach) for _ in range(plan.num_local)]
        across = [global_layer(config, plan, reach=reach) for _ in range(plan.num_across)]
        conditioned = across and reach.flow == "conditioned"
        self.local = Local(local, run=groupwise) if local else Skip()
        self.read = READINGS[plan.reading](config, run=groupwise)
        self.condition = Condition(condition_layer(config), run=run) if conditioned else Skip()
        self.across = Across(across, run=run) if across else Skip()
        self.write = Write(**tokens_ask(config), run=groupwise) if plan.writes else Skip()


def latents_ask(config: TrunkConfig) -> dict[str, Any]:
    """The layers of latents that read tokens."""
    return exchange_layers(config, query_width=config.latent_width, key_width=config.width)


def tokens_ask(config: TrunkConfig) -> dict[str, Any]:
    """The layers of tokens that read latents."""
    return exchange_layers(config, query_width=config.width, key_width=config.latent_width)


def exchange_layers(config: TrunkConfig, *, query_width: int, key_width: int) -> dict[str, Any]:
    """The attention between the streams, and the feed-forward that may follow it."""
    heads = min(config.heads, config.latent_heads)
    return {
        "layer": CrossLayer(
            query_width=query_width, key_width=key_width, heads=heads, key_norm=config.key_norm
        ),
        "after": feed_forward_after(config, width=query_width),
    }


def feed_forward_after(config: TrunkConfig, *, width: int) -> FeedForwardLayer | None:
    """What follows an exchange in the stream that has read."""
    if config.after_exchange == "nothing":
        return None
    return FeedForwardLayer(width=width, mlp_ratio=config.mlp_ratio, dropout=0.0, drop_path=0.0)


def read_each_other(config: TrunkConfig, *, run: Run) -> ReadEachOther:
    """Both streams by one matrix of scores."""
    width, latent_width = config.width, config.latent_width
    heads = min(config.heads, config.latent_heads)
    return ReadEachOther(
        BidirectionalLayer(BixtConfig(), token_width=width, latent_width=latent_width, heads=heads),
        after_tokens=feed_forward_after(config, width=width),
        after_latents=feed_forward_after(config, width=latent_width),
        run=run,
    )


READINGS: dict[Reading, Callable[..., nn.Module]] = {
    "none": lambda config, run: Apart(),
    "latents": lambda config, run: Read(**latents_ask(config), run=run),
    "tokens": lambda config, run: ReadBack(**tokens_ask(config), run=run),
    "both": read_each_other,
}


def condition_layer(config: TrunkConfig) -> CrossLayer:
    """The attention from latents to their image's context."""
    width, heads = config.latent_width, config.latent_heads
    return CrossLayer(query_width=width, key_width=width, heads=heads, key_norm=config.key_norm)


def local_layer(
    config: TrunkConfig, plan: BlockPlan, *, reach: Reach
) -> SelfLayer | FeedForwardLayer:
    """A layer of the data stream."""
    common: dict[str, Any] = {
        "width": config.width,
        "mlp_ratio": config.mlp_ratio,
        "dropout": config.dropout,
        "drop_path": config.drop_path,
    }
    if config.local_mixing == "none":
        return FeedForwardLayer(**common)
    operator, width, heads = plan.local_operator, config.width, config.heads
    rotary = local_rotary(config, reach=reach)
    if is_softmax(operator):
        attend = (CAUSAL_OPERATORS if reach.flow == "causal" else OPERATORS)[operator]
        if rotary is not None:
            attend = RotatedOperator(attend, rotary)
        mixer: nn.Module = SelfHeads(width=width, heads=heads, attend=attend)
    else:
        mixer = build_mixer(operator, width=width, heads=heads, place=reach.local, rotary=rotary)
    return SelfLayer(mixer=mixer, **common)


def local_rotary(config: TrunkConfig, *, reach: Reach) -> Rotary | None:
    """The code that turns queries and keys of a local layer."""
    width, heads = config.width, config.heads
    chosen = read_rotary(config.local_rotary, width=width, heads=heads, setting="local_rotary")
    if chosen is None:
        return None
    return build_rotary(chosen, width=width, heads=heads, place=reach.local)


def global_layer(config: TrunkConfig, plan: BlockPlan, *, reach: Reach) -> SelfLayer:
    """A layer of the latent stream."""
    operator, width, heads = plan.global_operator, config.latent_width, config.latent_heads
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


def latents_place(config: TrunkConfig, *, num_groups: int | None, latent_mask: LatentMask) -> Place:
    """Of the latents of an image, for models that know how many groups an image has at most."""
    group = config.latents_per_group
    known = None if num_groups is None else num_groups * group
    if latent_mask == "causal":
        return Place(num_tokens=known, causal="chunks", chunk=group)
    return Place(num_tokens=known)


class Trunk(nn.Module):
    """The body of every FIT: stretches inside the groups, and meetings of an image's latents.

    Cost, multiply-adds for L tokens and M latents of an image, a = min(d, e), r the mlp_ratio:
        a local layer L ((4 + 2r) d^2 + 2 n d), a global one M (4 + 2r) e^2 + 2 M^2 e,
        a read or a write 2a (M e + L d + L m), both at once by one matrix of scores
        3a (M e + L d + L m).
    """

    def __init__(self, config: TrunkConfig, *, reach: Reach) -> None:
        super().__init__()
        blocks = [Block(config, plan, reach=reach) for plan in config.blocks]
        self.blocks = cast(Sequence[Block], nn.ModuleList(blocks))
        self.flow = reach.flow

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
        offered = None
        for number in range(len(self.blocks)):
            streams = self.inside(number, tokens, latents, offered=offered, valid=valid)
            tokens = streams.tokens
            latents = self.meet(number, streams.latents, images=images, context=context)
            offered = self.offered(latents, images=images)
        return Streams(tokens=tokens, latents=latents)

    def inside(
        self,
        number: int,
        tokens: DataTokens,
        latents: Latents,
        *,
        offered: Latents | None = None,
        valid: ValidTokens | None = None,
    ) -> Streams:
        """A stretch between two meetings: any groups, each on its own, whoever else is there.

        Args:
            number: of the block whose local layers and read these are; the write of the block
                before it comes first.
            tokens: of the groups, as the stretch before left them.
            latents: of the groups, as they came from the last meeting.
            offered: what the write reads, see `offered`; None for block 0.
            valid: which tokens show something of their image; None for all.
        """
        block = self.blocks[number]
        if number > 0:
            tokens = self.blocks[number - 1].write(tokens, offered)  # [g n d] read their group
        tokens = block.local(tokens, valid)  # [g n d] see each other
        return block.read(tokens, latents, valid)  # [g m e] read their group

    def meet(
        self,
        number: int,
        latents: Latents,
        *,
        images: ImageLayout,
        context: Context | None = None,
        run: Run | None = None,
    ) -> Latents:
        """Latents of whole images after block `number`: told what is asked for, and of each other.

        Args:
            number: of the block.
            latents: of all groups, as the stretch left them.
            images: which groups make an image.
            context: what each image is asked to be, for a model that is told.
            run: how global layers are called, where not as configured.
        """
        block = self.blocks[number]
        latents = block.condition(latents, images, context)  # [g m e] read what is asked for
        return block.across(latents, images, run)  # [g m e] see all latents of their image

    def offered(self, latents: Latents, *, images: ImageLayout) -> Latents:
        """What a write lets the tokens of each group read of the latents that have just met.

        Their own group's; where nobody may look ahead those of the group before, zeros first.
        """
        return images.before(latents) if self.flow == "causal" else latents
