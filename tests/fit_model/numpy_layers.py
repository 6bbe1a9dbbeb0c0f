"""The layers of FIT in float64 NumPy, straight from the fact sheet and under the official names."""

import math
import re

import numpy as np


def suffix(number):
    return f"_{number}" if number else ""


def blocks_of(layers):
    """(local, global) of every block of a layer string."""
    return [(int(x), int(g or 0)) for x, g in re.findall(r"\((\d+)\)(\d*)", layers)]


def exact(weights):
    """The weights in float64, without the model's name before theirs."""
    return {name.split("/", 1)[1]: array.astype(np.float64) for name, array in weights.items()}


def dense(w, name, x):
    return x @ w[f"{name}/kernel"] + w[f"{name}/bias"]


def norm(w, name, x):
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
    return scaled * w[f"{name}/gamma"] + w[f"{name}/beta"]


def attention(w, name, asking, offering, mask=None):
    """Sequences [n d] and [k d']; mask [n k] is 1 where a query may look."""
    query, key, value = (
        np.einsum("nd,dhc->hnc", stream, w[f"{name}/{part}/kernel"])
        + w[f"{name}/{part}/bias"][:, None]
        for part, stream in (("query", asking), ("key", offering), ("value", offering))
    )
    scores = np.einsum("hnc,hkc->hnk", query, key) / math.sqrt(query.shape[-1])
    if mask is not None:
        scores = np.where(mask, scores, -1e30)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights = weights / weights.sum(-1, keepdims=True)
    mixed = np.einsum("hnk,hkc->hnc", weights, value)
    return (
        np.einsum("hnc,hcd->nd", mixed, w[f"{name}/attention_output/kernel"])
        + w[f"{name}/attention_output/bias"]
    )


def feed_forward(w, name, x):
    """x + FFN(LN(x))"""
    hidden = dense(w, f"{name}/ffn/dense1", norm(w, f"{name}/ffn/ln", x))
    hidden = hidden * 0.5 * (1 + np.vectorize(math.erf)(hidden / math.sqrt(2)))
    return x + dense(w, f"{name}/ffn/dense2", hidden)


def layer(w, name, x, mask=None, part="mha"):
    """A self layer; without a part it is a feed-forward alone."""
    if part:
        normed = norm(w, f"{name}/{part}/ln", x)
        x = x + attention(w, f"{name}/{part}", normed, normed, mask)
    return feed_forward(w, f"{name}/mlp", x)


def cross(w, name, asking, offering, config=None):
    """A read, a write, or the reading of a context; optional parts as the config says."""
    config = config or {}
    part = f"{name}/cross_mha"
    if config.get("xattn_enc_ln", True):
        offering = norm(w, f"{part}/enc_ln", offering)
    asking = asking + attention(w, part, norm(w, f"{part}/ln", asking), offering)
    if config.get("xattn_with_mlp", False):
        asking = feed_forward(w, f"{name}/mlp", asking)
    return asking


def code(coordinates, width):
    even = [coordinates / 10000 ** (2 * i / width) for i in range((width + 1) // 2)]
    sines, cosines = [np.sin(a) for a in even], [np.cos(a) for a in even[: width // 2]]
    return np.stack(sines + cosines, -1)


def grid(rows, columns, width):
    """The official 2-D code over [0, 1000]; 1-D when a side is 1."""
    if rows == 1 or columns == 1:
        count = rows * columns
        return code(np.arange(count) / max(count - 1, 1) * 1000.0, width)
    y, x = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
    y, x = y.ravel() / (rows - 1) * 1000.0, x.ravel() / (columns - 1) * 1000.0
    return np.concatenate([code(y, width // 2), code(x, width // 2)], -1)


def positions(w, config):
    t, m = config["num_groups"], config["latents_per_group"]
    n = config["x_size"] // t
    side = math.isqrt(n)
    tokens = {
        "learned": lambda: w["x_pos_emb/kernel/vis_pos_embedding"],
        "sin_cos": lambda: grid(n, 1, config["x_dim"]),
        "sin_cos2d": lambda: grid(side, side, config["x_dim"]),
    }[config.get("x_pos_encoding", "learned")]()
    latents = {
        "learned": lambda: w["latent_pos_emb/kernel/vis_pos_embedding"],
        "sin_cos": lambda: grid(t, m, config["latent_dim"]),
    }[config.get("latent_pos_encoding", "learned")]()
    return tokens, latents.reshape(t, m, -1)


def chunk_mask(config):
    """Latents of a group see those of their group and of those before it."""
    group = np.arange(config["num_groups"] * config["latents_per_group"])
    group = group // config["latents_per_group"]
    return group[None, :] <= group[:, None]
