"""The layers of one block of FIT, made from the trunk's configuration: a module a move."""

from collections.abc import Callable
from typing import Any

from torch import nn

from fit_model.attention.bixt import BidirectionalLayer, BixtConfig
from fit_model.attention.mixers import build_mixer
from fit_model.attention.rotary import Rotary, build_rotary, read_rotary
from fit_model.layers import CrossLayer, FeedForwardLayer, SelfLayer
from fit_model.moves import (
    Across,
    Apart,
    Condition,
    Local,
    Read,
    ReadBack,
    ReadEachOther,
    Skip,
    Write,
)
from fit_model.reach import Reach
from fit_model.recompute import CHECKPOINTING, GROUPWISE, Run
from fit_model.trunk_config import BlockPlan, Reading, TrunkConfig


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
    rotary = local_rotary(config, reach=reach)
    mixer = build_mixer(**local_mixing(config, plan, reach=reach), rotary=rotary)
    return SelfLayer(mixer=mixer, **common)


def local_mixing(config: TrunkConfig, plan: BlockPlan, *, reach: Reach) -> dict[str, Any]:
    """What mixes the data tokens of a group, as `build_mixer` wants to know it."""
    return {
        "operator": plan.local_operator,
        "width": config.width,
        "heads": config.heads,
        "place": reach.local,
        "setting": "trunk.local_operator",
    }


def global_mixing(config: TrunkConfig, plan: BlockPlan, *, reach: Reach) -> dict[str, Any]:
    """What mixes the latents of an image, as `build_mixer` wants to know it."""
    return {
        "operator": plan.global_operator,
        "width": config.latent_width,
        "heads": config.latent_heads,
        "place": reach.across,
        "setting": "trunk.global_operator",
    }


def local_rotary(config: TrunkConfig, *, reach: Reach) -> Rotary | None:
    """The code that turns queries and keys of a local layer."""
    width, heads = config.width, config.heads
    chosen = read_rotary(config.local_rotary, width=width, heads=heads, setting="local_rotary")
    if chosen is None:
        return None
    return build_rotary(chosen, width=width, heads=heads, place=reach.local)


def global_layer(config: TrunkConfig, plan: BlockPlan, *, reach: Reach) -> SelfLayer:
    """A layer of the latent stream."""
    return SelfLayer(
        width=config.latent_width,
        mixer=build_mixer(**global_mixing(config, plan, reach=reach)),
        mlp_ratio=config.mlp_ratio,
        dropout=config.dropout,
        drop_path=config.drop_path,
    )
