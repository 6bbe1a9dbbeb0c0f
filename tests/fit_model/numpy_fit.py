"""FIT once more, in float64 NumPy straight from the fact sheet and under the official names.

Written without a look at `fit_model`, slow and plain, to check it in configurations for which
there is no golden file. It is itself checked against the golden file that there is.
"""

import math
import re

import numpy as np


def suffix(number):
    return f"_{number}" if number else ""


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


def layer(w, name, x, mask=None):
    normed = norm(w, f"{name}/mha/ln", x)
    x = x + attention(w, f"{name}/mha", normed, normed, mask)
    hidden = norm(w, f"{name}/mlp/ffn/ln", x) @ w[f"{name}/mlp/ffn/dense1/kernel"]
    hidden = hidden + w[f"{name}/mlp/ffn/dense1/bias"]
    hidden = hidden * 0.5 * (1 + np.vectorize(math.erf)(hidden / math.sqrt(2)))
    return x + hidden @ w[f"{name}/mlp/ffn/dense2/kernel"] + w[f"{name}/mlp/ffn/dense2/bias"]


def cross(w, name, asking, offering):
    name = f"{name}/cross_mha"
    return asking + attention(
        w, name, norm(w, f"{name}/ln", asking), norm(w, f"{name}/enc_ln", offering)
    )


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
    t, m, n = config["num_groups"], config["latents_per_group"], None
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


def encode(config, weights, x, y=None):
    """Data tokens [b t n d] and latents [b t m e] of tokens [b t n c]."""
    w = {name.split("/", 1)[1]: array.astype(np.float64) for name, array in weights.items()}
    outputs = [
        encode_one(config, w, x[i].astype(np.float64), None if y is None else y[i])
        for i in range(len(x))
    ]
    return {"x": np.stack([o[0] for o in outputs]), "latents": np.stack([o[1] for o in outputs])}


def encode_one(config, w, x, y):
    t, m = config["num_groups"], config["latents_per_group"]
    table, start = positions(w, config)
    x = norm(w, "stem_ln", x @ w["stem/kernel"] + w["stem/bias"]) + table
    tokens, latents = list(x), list(start)
    if y is not None:
        names = norm(w, "stem_y_ln", y @ w["stem_y/kernel"] + w["stem_y/bias"])
        tokens = [np.concatenate([names[g], tokens[g]]) for g in range(t)]
    group = np.arange(t * m) // m
    mask = group[None, :] <= group[:, None] if config.get("mask") == "causal" else None
    blocks = re.findall(r"\((\d+)\)(\d*)", config["layers"])
    for i, (num_local, num_global) in enumerate(blocks):
        for j in range(int(num_local)):
            name = f"x_network{suffix(i)}/transformer_encoder{suffix(j)}"
            tokens = [layer(w, name, group_tokens) for group_tokens in tokens]
        if not int(num_global or 0):
            continue
        latents = [cross(w, f"l2x_cross_attn{suffix(i)}", latents[g], tokens[g]) for g in range(t)]
        flat = np.concatenate(latents)
        for j in range(int(num_global)):
            flat = layer(w, f"l_network{suffix(i)}/transformer_encoder{suffix(j)}", flat, mask)
        latents = np.split(flat, t)
        if i < len(blocks) - 1:
            name = f"x2l_cross_attn{suffix(i)}"
            tokens = [cross(w, name, tokens[g], latents[g]) for g in range(t)]
    return norm(w, "x_output_ln", np.stack(tokens)), norm(w, "l_output_ln", np.stack(latents))


def random_weights(config, *, channels, identities, seed):
    """Weights under the official names and shapes, of a scale that keeps outputs of order 1."""
    draw = np.random.default_rng(seed)
    d, e, r = config["x_dim"], config["latent_dim"], config.get("mlp_ratio", 4)
    hd, he = config["x_num_heads"], config["latent_num_heads"]
    shapes = {}

    def dense(name, inputs, outputs):
        shapes[f"{name}/kernel"], shapes[f"{name}/bias"] = (inputs, outputs), (outputs,)

    def normed(name, width):
        shapes[f"{name}/gamma"], shapes[f"{name}/beta"] = (width,), (width,)

    def heads(name, asking, offering, count, head):
        for part, width in (("query", asking), ("key", offering), ("value", offering)):
            shapes[f"{name}/{part}/kernel"] = (width, count, head)
            shapes[f"{name}/{part}/bias"] = (count, head)
        shapes[f"{name}/attention_output/kernel"] = (count, head, asking)
        shapes[f"{name}/attention_output/bias"] = (asking,)

    def stack(name, width, count, layers):
        for j in range(layers):
            start = f"{name}/transformer_encoder{suffix(j)}"
            normed(f"{start}/mha/ln", width), normed(f"{start}/mlp/ffn/ln", width)
            heads(f"{start}/mha", width, width, count, width // count)
            dense(f"{start}/mlp/ffn/dense1", width, r * width)
            dense(f"{start}/mlp/ffn/dense2", r * width, width)

    def crossing(name, asking, offering):
        name = f"{name}/cross_mha"
        normed(f"{name}/ln", asking), normed(f"{name}/enc_ln", offering)
        heads(name, asking, offering, min(hd, he), min(d, e) // min(hd, he))

    dense("stem", channels, d), normed("stem_ln", d)
    normed("x_output_ln", d), normed("l_output_ln", e)
    if identities:
        dense("stem_y", identities, d), normed("stem_y_ln", d)
    if config.get("x_pos_encoding", "learned") == "learned":
        shapes["x_pos_emb/kernel/vis_pos_embedding"] = (config["x_size"] // config["num_groups"], d)
    if config.get("latent_pos_encoding", "learned") == "learned":
        rows = config["num_groups"] * config["latents_per_group"]
        shapes["latent_pos_emb/kernel/vis_pos_embedding"] = (rows, e)
    blocks = re.findall(r"\((\d+)\)(\d*)", config["layers"])
    for i, (num_local, num_global) in enumerate(blocks):
        stack(f"x_network{suffix(i)}", d, hd, int(num_local))
        stack(f"l_network{suffix(i)}", e, he, int(num_global or 0))
        if int(num_global or 0):
            crossing(f"l2x_cross_attn{suffix(i)}", e, d)
        if i < len(blocks) - 1:
            crossing(f"x2l_cross_attn{suffix(i)}", d, e)
    return {
        f"fit/{name}": draw.normal(float(name.endswith("gamma")), 0.3, shape).astype(np.float32)
        for name, shape in shapes.items()
    }
