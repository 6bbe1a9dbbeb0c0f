"""The interleaved trunk of FIT: local layers, read, global layers, write.

Chen & Li 2023, arXiv:2305.12689: local layers work on the data tokens of a group, global layers on
the latents of all groups of an image, and cross-attention goes between the two, inside a group.
For L tokens in groups of n with m latents each, attention costs L n + (L m / n)^2 pairs a layer
pair, 1.89 L^(4/3) m^(2/3) at the best n, instead of L^2.

The layer string "(2)4(2)" says: 2 local, read, 4 global, write, 2 local. The last block never
writes; without global layers it does not read either.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

from jaxtyping import Bool, Float
from torch import Tensor, nn

from fit_model import checks
from fit_model.attention.operators import OPERATORS
from fit_model.layers import CrossLayer, Positions, SelfLayer
from fit_model.layout import ImageLayout
from fit_model.recompute import CHECKPOINTING, Run
from fit_model.shapes import DataTokens, Latents, ValidTokens


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
    global_operator: str = "softmax"
    dropout: float = 0.0
    """Inside feed-forwards."""
    drop_path: float = 0.0
    """Of both residuals of a layer, the same in every layer."""
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
        checks.one_of(OPERATORS, local_operator=self.local_operator)
        checks.one_of(OPERATORS, global_operator=self.global_operator)
        checks.one_of(CHECKPOINTING, checkpointing=self.checkpointing)

    @property
    def blocks(self) -> tuple[BlockPlan, ...]:
        """The layer string, taken apart."""
        return parse_layers(self.layers)


class Stack(nn.Module):
    """Self layers one after another."""

    def __init__(self, layers: list[SelfLayer], *, run: Run) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.run = run

    def through(
        self, x: Positions, may_attend: Bool[Tensor, "#b 1 #n n"] | None = None
    ) -> Positions:
        """The positions after all layers."""
        for layer in self.layers:
            x = self.run(layer, x, may_attend)
        return x


class Local(Stack):
    """Local layers: the data tokens of each group see each other, and nobody else."""

    def forward(self, tokens: DataTokens, valid: ValidTokens | None = None) -> DataTokens:
        """Tokens after all layers; tokens that are not valid are seen by nobody."""
        return self.through(tokens, keys_alone(valid))


class Across(Stack):
    """Global layers: all latents of an image see each other."""

    def forward(self, latents: Latents, images: ImageLayout) -> Latents:
        """Latents after all layers, with the reach that `images.may_attend` grants."""
        return images.split(self.through(images.join(latents), images.may_attend))


class Exchange(nn.Module):
    """Read or write: one stream of each group asks the other stream of the same group."""

    def __init__(self, layer: CrossLayer, *, run: Run) -> None:
        super().__init__()
        self.layer = layer
        self.run = run

    def forward(
        self,
        asking: Positions,
        offering: Float[Tensor, "b k c"],
        valid: Bool[Tensor, "b k"] | None = None,
    ) -> Positions:
        """`asking` after it has read those of `offering` that are valid."""
        return self.run(self.layer, asking, offering, keys_alone(valid))


class Skip(nn.Module):
    """A move that the layer string leaves out: the first input comes back as it is."""

    def forward(self, kept: Positions, *unused: object) -> Positions:
        """`kept`."""
        return kept


def keys_alone(valid: ValidTokens | None) -> Bool[Tensor, "g 1 1 n"] | None:
    """The attention mask that hides what is not valid from every query."""
    return None if valid is None else valid[:, None, None, :]


class Block(nn.Module):
    """The four moves of one block: local, read, across, write."""

    def __init__(self, config: TrunkConfig, plan: BlockPlan, *, writes: bool) -> None:
        super().__init__()
        run = CHECKPOINTING[config.checkpointing]
        local = [self_layer(config, stream="local") for _ in range(plan.num_local)]
        across = [self_layer(config, stream="global") for _ in range(plan.num_across)]
        reading = {"query_width": config.latent_width, "key_width": config.width}
        writing = {"query_width": config.width, "key_width": config.latent_width}
        heads = min(config.heads, config.latent_heads)
        self.local = Local(local, run=run) if local else Skip()
        self.read = Exchange(CrossLayer(**reading, heads=heads), run=run) if across else Skip()
        self.across = Across(across, run=run) if across else Skip()
        self.write = Exchange(CrossLayer(**writing, heads=heads), run=run) if writes else Skip()


def self_layer(config: TrunkConfig, *, stream: Literal["local", "global"]) -> SelfLayer:
    """A layer of the data stream or of the latent stream."""
    local = stream == "local"
    return SelfLayer(
        width=config.width if local else config.latent_width,
        heads=config.heads if local else config.latent_heads,
        operator=config.local_operator if local else config.global_operator,
        mlp_ratio=config.mlp_ratio,
        dropout=config.dropout,
        drop_path=config.drop_path,
    )


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

    def __init__(self, config: TrunkConfig) -> None:
        super().__init__()
        plans = config.blocks
        blocks = [Block(config, plan, writes=plan is not plans[-1]) for plan in plans]
        self.blocks = cast(Sequence[Block], nn.ModuleList(blocks))

    def forward(
        self,
        tokens: DataTokens,
        latents: Latents,
        *,
        images: ImageLayout,
        valid: ValidTokens | None = None,
    ) -> Streams:
        """Both streams after all blocks; what is not valid changes nothing but itself."""
        for block in self.blocks:
            tokens = block.local(tokens, valid)  # [g n d] each group on its own
            latents = block.read(latents, tokens, valid)  # [g m e] each reads its group
            latents = block.across(latents, images)  # [g m e] all latents of an image meet
            tokens = block.write(tokens, latents)  # [g n d] each reads its group
        return Streams(tokens=tokens, latents=latents)
