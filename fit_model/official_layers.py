"""Official variables taken one by one, layer by layer, as tensors under our names."""

import re
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import nn

from fit_model.trunk_config import TrunkConfig

State = dict[str, torch.Tensor]


class Variables:
    """The variables of one model, without its name before them; each is taken once."""

    def __init__(self, weights: Mapping[str, np.ndarray]) -> None:
        self.left = {name.split("/", 1)[1]: torch.from_numpy(weights[name]) for name in weights}

    def take(self, name: str) -> torch.Tensor:
        """One variable; ValueError where there is none."""
        if name not in self.left:
            raise ValueError(f"weights: {name} is missing")
        return self.left.pop(name)

    def nothing_else(self, state: State) -> State:
        """The state; ValueError where variables are left over."""
        if self.left:
            raise ValueError(f"weights: nothing here takes {', '.join(sorted(self.left)[:3])}")
        return state

    def norm(self, official: str, ours: str) -> State:
        """A LayerNorm."""
        return {
            f"{ours}.weight": self.take(f"{official}/gamma"),
            f"{ours}.bias": self.take(f"{official}/beta"),
        }

    def dense(self, official: str, ours: str) -> State:
        """A linear layer."""
        return {
            f"{ours}.weight": self.take(f"{official}/kernel").T.contiguous(),
            f"{ours}.bias": self.take(f"{official}/bias"),
        }

    def heads(self, official: str, ours: str) -> State:
        """Kernels (in, heads, head) as rows of linear layers; keys and values share one."""
        weight, bias = {}, {}
        for name in ("query", "key", "value"):
            weight[name] = self.take(f"{official}/{name}/kernel").flatten(1).T
            bias[name] = self.take(f"{official}/{name}/bias").flatten()
        out = self.take(f"{official}/attention_output/kernel")
        return {
            f"{ours}.query.weight": weight["query"].contiguous(),
            f"{ours}.query.bias": bias["query"],
            f"{ours}.key_value.weight": torch.cat([weight["key"], weight["value"]]),
            f"{ours}.key_value.bias": torch.cat([bias["key"], bias["value"]]),
            f"{ours}.out.weight": out.flatten(0, 1).T.contiguous(),
            f"{ours}.out.bias": self.take(f"{official}/attention_output/bias"),
        }

    def feed_forward(self, official: str, ours: str) -> State:
        """A feed-forward with its norm."""
        return (
            self.norm(f"{official}/ln", f"{ours}.norm")
            | self.dense(f"{official}/dense1", f"{ours}.expand")
            | self.dense(f"{official}/dense2", f"{ours}.contract")
        )

    def layer(self, official: str, ours: str, *, attention: str | None) -> State:
        """A self layer, or a feed-forward layer if there is no attention."""
        state = self.feed_forward(f"{official}/mlp/ffn", f"{ours}.feed_forward")
        if attention is not None:
            state |= self.norm(f"{official}/{attention}/ln", f"{ours}.norm")
            state |= self.heads(f"{official}/{attention}", f"{ours}.attention")
        return state

    def exchange(self, official: str, ours: str, config: TrunkConfig) -> State:
        """A read or a write."""
        state = self.cross(official, f"{ours}.layer", key_norm=config.key_norm)
        if config.after_exchange == "feed_forward":
            state |= self.feed_forward(f"{official}/mlp/ffn", f"{ours}.after.feed_forward")
        return state

    def cross(self, official: str, ours: str, *, key_norm: str) -> State:
        """One attention from one stream to another."""
        state = self.norm(f"{official}/cross_mha/ln", f"{ours}.query_norm")
        if key_norm == "layer_norm":
            state |= self.norm(f"{official}/cross_mha/enc_ln", f"{ours}.key_norm")
        return state | self.heads(f"{official}/cross_mha", f"{ours}.attention")

    def trunk(
        self,
        config: TrunkConfig,
        *,
        layer: str,
        attention: str = "mha",
        conditioned: Sequence[str] = (),
    ) -> State:
        """All blocks; `conditioned` names the official reads of a context, if there are any."""
        state: State = {}
        blocks = config.blocks
        for place, block in enumerate(blocks):
            ours, number = f"trunk.blocks.{place}", suffix(place)
            mixed = attention if config.local_mixing == "attention" else None
            for local in range(block.num_local):
                official = f"x_network{number}/{layer}{suffix(local)}"
                state |= self.layer(official, f"{ours}.local.layers.{local}", attention=mixed)
            for across in range(block.num_across):
                official = f"l_network{number}/{layer}{suffix(across)}"
                state |= self.layer(official, f"{ours}.across.layers.{across}", attention=attention)
            if block.num_across:
                state |= self.exchange(f"l2x_cross_attn{number}", f"{ours}.read", config)
                for name in conditioned:
                    state |= self.cross(
                        f"{name}{number}", f"{ours}.condition.layer", key_norm=config.key_norm
                    )
            if place < len(blocks) - 1:
                state |= self.exchange(f"x2l_cross_attn{number}", f"{ours}.write", config)
        return state


def suffix(place: int) -> str:
    """What official names end in: nothing, _1, _2, ..."""
    return f"_{place}" if place else ""


def fill(module: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """Load all of the state into the module; ValueError where the two differ."""
    try:
        module.load_state_dict(dict(state))
    except RuntimeError as error:
        raise ValueError("weights: " + re.sub(r"\s+", " ", str(error))) from error
