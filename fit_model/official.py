"""Settings and weights of the official TensorFlow code under our names.

Official variables are named after layers, with _1, _2, ... for the second, third, ... of a kind;
kernels are (in, out), attention kernels (in, heads, head) and (heads, head, out).
Source: google-research/pix2seq, architectures/transformers.py.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from fit_model.body import TrunkConfig
from fit_model.encoder import EncoderConfig

TOKEN_POSITION = {"learned": "learned", "sin_cos": "sin_cos", "sin_cos2d": "sin_cos_2d"}
LATENT_POSITION = {"learned": "learned", "sin_cos": "sin_cos_2d"}
MASK = {"none": "none", "causal": "causal"}
NEEDED = (
    "layers", "x_size", "num_groups", "latents_per_group", "x_dim", "latent_dim", "x_num_heads",
    "latent_num_heads",
)  # fmt: skip

Arrays = Mapping[str, np.ndarray]


def encoder_config(official: Mapping[str, Any], *, identities: int | None) -> EncoderConfig:
    """An official FIT as an EncoderConfig; `identities` is the width of its group names, if any.

    Optional settings have the official defaults; a setting unknown here that changes the outputs
    shows as a difference.
    """
    for name in NEEDED:
        if name not in official:
            raise ValueError(f"config: the setting {name!r} is missing")
    if official["x_size"] % official["num_groups"]:
        raise ValueError(
            f"x_size={official['x_size']} is not divisible by num_groups={official['num_groups']}"
        )
    if identities not in (None, official["num_groups"]):
        raise ValueError(f"y names {identities} groups, the config {official['num_groups']}")
    return EncoderConfig(
        patch_px=1,
        trunk=TrunkConfig(
            layers=official["layers"],
            width=official["x_dim"],
            latent_width=official["latent_dim"],
            latents_per_group=official["latents_per_group"],
            heads=official["x_num_heads"],
            latent_heads=official["latent_num_heads"],
            mlp_ratio=official.get("mlp_ratio", 4),
            dropout=official.get("drop_units", 0.0),
            drop_path=official.get("drop_path", 0.0),
        ),
        token_position=_named(TOKEN_POSITION, official, "x_pos_encoding", "learned"),
        latent_position=_named(LATENT_POSITION, official, "latent_pos_encoding", "learned"),
        num_groups=official["num_groups"],
        latent_mask=_named(MASK, official, "mask", "none"),
        group_token="none" if identities is None else "one_hot",
    )


def _named(ours: Mapping[str, str], official: Mapping[str, Any], key: str, default: str) -> Any:
    value = official.get(key, default)
    if value not in ours:
        raise ValueError(f"config: {key} is {value!r}; choose one of {', '.join(ours)}")
    return ours[value]


def encoder_weights(weights: Arrays, config: EncoderConfig) -> dict[str, torch.Tensor]:
    """Official variables as a state dict of Encoder; every variable must find its place."""
    left = {name.split("/", 1)[1]: torch.from_numpy(weights[name]) for name in weights}
    state: dict[str, torch.Tensor] = {}
    state |= _dense(left, "stem", "stem.project") | _norm(left, "stem_ln", "stem.norm")
    if config.group_token != "none":
        state |= _dense(left, "stem_y", "group_token.stem.project")
        state |= _norm(left, "stem_y_ln", "group_token.stem.norm")
    if config.token_position == "learned":
        state["token_position.table"] = _take(left, "x_pos_emb/kernel/vis_pos_embedding")
    if config.latent_position == "learned":
        state["latent_position.table"] = _take(left, "latent_pos_emb/kernel/vis_pos_embedding")
    for place, block in enumerate(config.trunk.blocks):
        ours, number = f"trunk.blocks.{place}", _suffix(place)
        for layer in range(block.num_local):
            official = f"x_network{number}/transformer_encoder{_suffix(layer)}"
            state |= _layer(left, official, f"{ours}.local.layers.{layer}")
        for layer in range(block.num_across):
            official = f"l_network{number}/transformer_encoder{_suffix(layer)}"
            state |= _layer(left, official, f"{ours}.across.layers.{layer}")
        if block.num_across:
            state |= _exchange(left, f"l2x_cross_attn{number}/cross_mha", f"{ours}.read.layer")
        if place < len(config.trunk.blocks) - 1:
            state |= _exchange(left, f"x2l_cross_attn{number}/cross_mha", f"{ours}.write.layer")
    state |= _norm(left, "x_output_ln", "token_norm") | _norm(left, "l_output_ln", "latent_norm")
    if left:
        raise ValueError(f"weights: nothing here takes {', '.join(sorted(left)[:3])}")
    return state


def fill(module: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """Load all of the state into the module; ValueError where the two differ."""
    try:
        module.load_state_dict(dict(state))
    except RuntimeError as error:
        raise ValueError("weights: " + re.sub(r"\s+", " ", str(error))) from error


def _suffix(place: int) -> str:
    return f"_{place}" if place else ""


def _take(left: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    if name not in left:
        raise ValueError(f"weights: {name} is missing")
    return left.pop(name)


def _norm(left: dict[str, torch.Tensor], official: str, ours: str) -> dict[str, torch.Tensor]:
    return {
        f"{ours}.weight": _take(left, f"{official}/gamma"),
        f"{ours}.bias": _take(left, f"{official}/beta"),
    }


def _dense(left: dict[str, torch.Tensor], official: str, ours: str) -> dict[str, torch.Tensor]:
    return {
        f"{ours}.weight": _take(left, f"{official}/kernel").T.contiguous(),
        f"{ours}.bias": _take(left, f"{official}/bias"),
    }


def _heads(left: dict[str, torch.Tensor], official: str, ours: str) -> dict[str, torch.Tensor]:
    """Kernels (in, heads, head) as rows of linear layers; keys and values share one."""
    weight, bias = {}, {}
    for name in ("query", "key", "value"):
        weight[name] = _take(left, f"{official}/{name}/kernel").flatten(1).T
        bias[name] = _take(left, f"{official}/{name}/bias").flatten()
    out = _take(left, f"{official}/attention_output/kernel")
    return {
        f"{ours}.query.weight": weight["query"].contiguous(),
        f"{ours}.query.bias": bias["query"],
        f"{ours}.key_value.weight": torch.cat([weight["key"], weight["value"]]),
        f"{ours}.key_value.bias": torch.cat([bias["key"], bias["value"]]),
        f"{ours}.out.weight": out.flatten(0, 1).T.contiguous(),
        f"{ours}.out.bias": _take(left, f"{official}/attention_output/bias"),
    }


def _layer(left: dict[str, torch.Tensor], official: str, ours: str) -> dict[str, torch.Tensor]:
    return (
        _norm(left, f"{official}/mha/ln", f"{ours}.norm")
        | _heads(left, f"{official}/mha", f"{ours}.attention")
        | _norm(left, f"{official}/mlp/ffn/ln", f"{ours}.feed_forward.norm")
        | _dense(left, f"{official}/mlp/ffn/dense1", f"{ours}.feed_forward.expand")
        | _dense(left, f"{official}/mlp/ffn/dense2", f"{ours}.feed_forward.contract")
    )


def _exchange(left: dict[str, torch.Tensor], official: str, ours: str) -> dict[str, torch.Tensor]:
    return (
        _norm(left, f"{official}/ln", f"{ours}.query_norm")
        | _norm(left, f"{official}/enc_ln", f"{ours}.key_norm")
        | _heads(left, official, f"{ours}.attention")
    )
