"""The size of FIT's trunk, and the layer string that says which moves it has.

The layer string "(2)4(2)" says: 2 local, read, 4 global, write, 2 local. The last block never
writes; without global layers it does not read either.
"""

import re
from dataclasses import dataclass
from typing import Literal

from fit_model import checks
from fit_model.attention.mixers import read_operator
from fit_model.layers import KEY_NORMS
from fit_model.recompute import CHECKPOINTING


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
