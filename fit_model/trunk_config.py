"""The size of FIT's trunk, and the layer string that says which moves it has.

The layer string "(2)4(2)" says: 2 local, read, 4 global, write, 2 local. The last block never
writes; without global layers it does not read either.

With exchange "bixt" it says: 2 local, both read each other, 4 global, 2 local, tokens read. The
last block reads one way only: latents when it ends in global layers, tokens when it does not.
"""

import re
from dataclasses import dataclass, replace
from typing import Literal

from fit_model import checks
from fit_model.attention.mixers import (
    read_operator,
    require_causal,
    require_rotary,
)
from fit_model.attention.rotary import read_rotary
from fit_model.layers import KEY_NORMS
from fit_model.recompute import CHECKPOINTING

Reading = Literal["none", "latents", "tokens", "both"]
"""Which stream of a group reads the other, after the local layers of a block."""


@dataclass(frozen=True, kw_only=True)
class BlockPlan:
    """What a block is made of."""

    num_local: int
    num_across: int
    local_operator: str = "softmax"
    global_operator: str = "softmax"
    reading: Reading = "none"
    writes: bool = False
    """Whether tokens read the latents after the global layers."""


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


EXCHANGES: dict[str, tuple[Reading, Reading, Reading]] = {
    "read_write": ("latents", "latents", "none"),
    "bixt": ("both", "latents", "tokens"),
}
"""In a block with another one after it; in the last, where it has global layers and where not."""


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
    local_operator: str | tuple[str, ...] = "softmax"
    """How data tokens of a group are mixed: see `attention.mixers`; as "linformer@rank=16". A list
    has one entry a block."""
    global_operator: str | tuple[str, ...] = "softmax"
    """How the latents of an image are mixed; one for all blocks or a list."""
    exchange: Literal["read_write", "bixt"] = "read_write"
    """"bixt" has both streams read each other by one matrix of scores, and no write."""
    local_rotary: str = "none"
    """Turns queries and keys of local layers by their places: see `attention.rotary`; as
    "rotary_axial@theta=100"."""
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
        checks.one_of(EXCHANGES, exchange=self.exchange)
        checks.one_of(("attention", "none"), local_mixing=self.local_mixing)
        checks.one_of(("nothing", "feed_forward"), after_exchange=self.after_exchange)
        checks.one_of(KEY_NORMS, key_norm=self.key_norm)
        checks.one_of(CHECKPOINTING, checkpointing=self.checkpointing)
        self._check_operators()
        self._check_exchange()

    def _check_operators(self) -> None:
        local, across = self.per_block("local_operator"), self.per_block("global_operator")
        for setting, operators in (("local_operator", local), ("global_operator", across)):
            for operator in operators:
                read_operator(operator, setting=setting)
        width, heads = self.width, self.heads
        if read_rotary(self.local_rotary, width=width, heads=heads, setting="local_rotary"):
            if self.local_mixing == "none":
                raise ValueError(
                    f"local_rotary {self.local_rotary!r} has nothing to turn where local_mixing is "
                    "'none': take local_rotary 'none' or local_mixing 'attention'"
                )
            for operator in local:
                require_rotary(operator, setting="local_operator")
        if self.local_mixing == "none" and set(local) != {"softmax"}:
            raise ValueError(
                f"local_operator {self.local_operator!r} has nothing to mix where local_mixing is "
                "'none': leave it out or take local_mixing 'attention'"
            )

    def _check_exchange(self) -> None:
        if self.exchange == "read_write":
            return
        if not any(block.num_across for block in self.blocks):
            raise ValueError(
                f"exchange {self.exchange!r} has nothing to exchange without global layers, and "
                f"layers {self.layers!r} have none: take for example '(2)4' or 'read_write'"
            )
        if self.key_norm == "none":
            raise ValueError(
                f"exchange {self.exchange!r} has one norm a stream, whether it asks or is asked: "
                "take key_norm 'layer_norm'"
            )

    def per_block(self, setting: Literal["local_operator", "global_operator"]) -> tuple[str, ...]:
        """The operator of every block."""
        given, num_blocks = getattr(self, setting), len(parse_layers(self.layers))
        if isinstance(given, str):
            return (given,) * num_blocks
        if len(given) != num_blocks:
            raise ValueError(
                f"{setting} has {len(given)} entries, but layers {self.layers!r} make {num_blocks} "
                "blocks: give one a block, or a single one for all"
            )
        return tuple(given)

    @property
    def blocks(self) -> tuple[BlockPlan, ...]:
        """The layer string, taken apart, and what else differs between blocks."""
        plans = parse_layers(self.layers)
        local, across = self.per_block("local_operator"), self.per_block("global_operator")
        inner, ending_globally, ending_locally = EXCHANGES[self.exchange]
        ending = ending_globally if plans[-1].num_across else ending_locally
        readings = [inner] * (len(plans) - 1) + [ending]
        return tuple(
            replace(
                plan,
                local_operator=local[number],
                global_operator=across[number],
                reading=readings[number],
                writes=self.exchange == "read_write" and plan is not plans[-1],
            )
            for number, plan in enumerate(plans)
        )

    def require_causal_tokens(self) -> None:
        """Refuse what cannot keep later tokens of a group unseen, or needs them in a grid."""
        for operator in self.per_block("local_operator"):
            require_causal(operator, setting="trunk.local_operator")
        if self.local_rotary.partition("@")[0] not in ("none", "rotary_1d"):
            raise ValueError(
                f"trunk.local_rotary {self.local_rotary!r} turns by rows and columns, but the "
                "sub-pixels of an autoregressive model lie in no grid: take 'rotary_1d'"
            )

    def require_causal_latents(self) -> None:
        """Refuse what cannot keep the latents of later groups unseen."""
        for operator in self.per_block("global_operator"):
            require_causal(operator, setting="trunk.global_operator")
        if self.exchange != "read_write":
            raise ValueError(
                f"trunk.exchange {self.exchange!r} has no causal form, which an autoregressive "
                "model or a causal latent_mask needs: take 'read_write'"
            )
