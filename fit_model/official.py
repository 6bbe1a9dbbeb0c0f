"""Settings and weights of the official TensorFlow code under our names.

Official variables are named after layers, with _1, _2, ... for the second, third, ... of a kind;
kernels are (in, out), attention kernels (in, heads, head) and (heads, head, out). Optional settings
have the official defaults; a setting unknown here that changes the outputs shows as a difference.
Source: google-research/pix2seq, architectures/transformers.py.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from fit_model.autoregressive import AutoregressiveConfig
from fit_model.denoiser import DiffusionConfig
from fit_model.encoder import EncoderConfig
from fit_model.official_layers import Variables
from fit_model.trunk_config import TrunkConfig

TOKEN_POSITION = {"learned": "learned", "sin_cos": "sin_cos", "sin_cos2d": "sin_cos_2d"}
LATENT_POSITION = {"learned": "learned", "sin_cos": "sin_cos_2d"}
SELF_CONDITIONING = {"none": "none", "latent": "latent"}
PREDICTION = {"eps": "eps", "x": "x", "v": "v"}
MASK = {"none": "none", "causal": "causal"}
NEEDED = (
    "layers", "x_size", "num_groups", "latents_per_group", "x_dim", "latent_dim", "x_num_heads",
    "latent_num_heads",
)  # fmt: skip

Arrays = Mapping[str, np.ndarray]
Settings = Mapping[str, Any]
State = dict[str, torch.Tensor]


def require(official: Settings, *names: str) -> None:
    """Refuse a config that leaves out what cannot be guessed."""
    for name in (*NEEDED, *names):
        if name not in official:
            raise ValueError(f"config: the setting {name!r} is missing")
    if official["x_size"] % official["num_groups"]:
        raise ValueError(
            f"x_size={official['x_size']} is not divisible by num_groups={official['num_groups']}"
        )


def trunk_config(official: Settings) -> TrunkConfig:
    """The settings of the trunk, the same for all three faces."""
    mlp = official.get("xattn_with_mlp", False)
    return TrunkConfig(
        layers=official["layers"],
        width=official["x_dim"],
        latent_width=official["latent_dim"],
        latents_per_group=official["latents_per_group"],
        heads=official["x_num_heads"],
        latent_heads=official["latent_num_heads"],
        mlp_ratio=official.get("mlp_ratio", 4),
        dropout=official.get("drop_units", 0.0),
        drop_path=official.get("drop_path", 0.0),
        local_mixing="attention" if official.get("x_self_attention", True) else "none",
        after_exchange="feed_forward" if mlp else "nothing",
        key_norm="layer_norm" if official.get("xattn_enc_ln", True) else "none",
    )


def positions(official: Settings) -> dict[str, Any]:
    """The settings of both streams' positions."""
    return {
        "token_position": named(TOKEN_POSITION, official, "x_pos_encoding", "learned"),
        "latent_position": named(LATENT_POSITION, official, "latent_pos_encoding", "learned"),
        "num_groups": official["num_groups"],
    }


def named(ours: Mapping[str, str], official: Settings, key: str, default: str) -> Any:
    """Our name for an official choice."""
    value = official.get(key, default)
    if value not in ours:
        raise ValueError(f"config: {key} is {value!r}; choose one of {', '.join(ours)}")
    return ours[value]


def encoder_config(official: Settings, *, identities: int | None) -> EncoderConfig:
    """An official FIT; `identities` is the width of its group names, if any."""
    require(official)
    if identities not in (None, official["num_groups"]):
        raise ValueError(f"y names {identities} groups, the config {official['num_groups']}")
    return EncoderConfig(
        patch_px=1,
        trunk=trunk_config(official),
        latent_mask=named(MASK, official, "mask", "none"),
        group_token="none" if identities is None else "one_hot",
        **positions(official),
    )


def denoiser_config(official: Settings) -> DiffusionConfig:
    """An official FITDenoiser, with what a sampler's file says of the diffusion around it."""
    require(official)
    scaled = official.get("normalize_noisy_input", False)
    return DiffusionConfig(
        patch_px=1,
        trunk=trunk_config(official),
        latent_mask=named(MASK, official, "mask", "none"),
        self_conditioning=named(SELF_CONDITIONING, official, "self_cond", "none"),
        prediction=named(PREDICTION, official, "pred_type", "eps"),
        input_scale=official.get("b_scale", 1.0),
        normalize_input="deviation" if scaled else "none",
        **positions(official),
    )


def decoder_config(official: Settings) -> AutoregressiveConfig:
    """An official FITAR."""
    require(official, "vocab_size")
    return AutoregressiveConfig(
        patch_px=1,
        trunk=trunk_config(official),
        num_levels=official["vocab_size"],
        embedding="shared" if official.get("shared_embedding", True) else "separate",
        output_bias="learned" if official.get("output_bias", True) else "none",
        **positions(official),
    )


def encoder_weights(weights: Arrays, config: EncoderConfig) -> State:
    """Official variables as a state dict of Encoder; every variable must find its place."""
    left = Variables(weights)
    state = left.dense("stem", "stem.project") | left.norm("stem_ln", "stem.norm")
    if config.group_token != "none":
        state |= left.dense("stem_y", "group_token.stem.project")
        state |= left.norm("stem_y_ln", "group_token.stem.norm")
    state |= _positions(left, config) | left.trunk(config.trunk, layer="transformer_encoder")
    state |= left.norm("x_output_ln", "token_norm") | left.norm("l_output_ln", "latent_norm")
    return left.nothing_else(state)


def denoiser_weights(weights: Arrays, config: DiffusionConfig, *, num_classes: int) -> State:
    """Official variables as a state dict of Denoiser; every variable must find its place."""
    left = Variables(weights)
    state = left.dense("stem", "stem.project") | left.norm("stem_ln", "stem.norm")
    state |= left.dense("time_emb/dense0", "time.expand")
    state |= left.dense("time_emb/dense1", "time.contract")
    if num_classes:
        state |= left.dense("cond_proj", "classes")
    if config.self_conditioning == "latent":
        state |= left.feed_forward("latent_prev_proj/ffn", "before.think.feed_forward")
        state |= left.norm("latent_prev_ln", "before.norm")
    state |= _positions(left, config)
    state |= left.trunk(config.trunk, layer="transformer_encoder", conditioned=("l2c_cross_attn",))
    state |= left.norm("x_output_ln", "token_norm") | left.dense("x_output_linear", "project")
    return left.nothing_else(state)


def decoder_weights(weights: Arrays, config: AutoregressiveConfig) -> State:
    """Official variables as a state dict of Decoder; every variable must find its place."""
    left = Variables(weights)
    if config.embedding == "shared":
        state = {"embed.table": left.take("token_embedding")}
    else:
        state = {"embed.table": left.take("inp_token_embedding")}
        state["read_out.table"] = left.take("outp_token_embedding")
    if config.output_bias == "learned":
        state["output_bias"] = left.take("outp_bias")
    state |= _positions(left, config)
    state |= left.trunk(config.trunk, layer="transformer_decoder_layer", attention="self_mha")
    state |= left.norm("x_output_ln", "token_norm")
    return left.nothing_else(state)


def _positions(
    left: Variables, config: EncoderConfig | DiffusionConfig | AutoregressiveConfig
) -> State:
    state: State = {}
    if config.token_position == "learned":
        state["token_position.table"] = left.take("x_pos_emb/kernel/vis_pos_embedding")
    if config.latent_position == "learned":
        state["latent_position.table"] = left.take("latent_pos_emb/kernel/vis_pos_embedding")
    return state
