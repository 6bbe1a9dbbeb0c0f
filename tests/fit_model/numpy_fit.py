"""FIT's three faces once more, in float64 NumPy straight from the fact sheet.

Written without a look at `fit_model`, slow and plain, to check it in configurations for which
there is no golden file. It is itself checked against the golden files that there are.
"""

import numpy as np

from tests.fit_model.numpy_layers import (
    blocks_of,
    chunk_mask,
    code,
    cross,
    dense,
    exact,
    feed_forward,
    layer,
    norm,
    positions,
    suffix,
)


def encode(config, weights, x, y=None):
    """Data tokens [b t n d] and latents [b t m e] of tokens [b t n c]."""
    w = exact(weights)
    outputs = [
        encode_one(config, w, x[i].astype(np.float64), None if y is None else y[i])
        for i in range(len(x))
    ]
    return {"x": np.stack([o[0] for o in outputs]), "latents": np.stack([o[1] for o in outputs])}


def encode_one(config, w, x, y):
    t = config["num_groups"]
    table, start = positions(w, config)
    x = norm(w, "stem_ln", dense(w, "stem", x)) + table
    tokens, latents = list(x), list(start)
    if y is not None:
        names = norm(w, "stem_y_ln", dense(w, "stem_y", y))
        tokens = [np.concatenate([names[g], tokens[g]]) for g in range(t)]
    tokens, latents = trunk(config, w, tokens, latents)
    return norm(w, "x_output_ln", tokens), norm(w, "l_output_ln", latents)


def trunk(config, w, tokens, latents, context=None):
    """Both streams of one image, lists of groups; the context is read after the data."""
    t, mask = config["num_groups"], None
    if config.get("mask", "none") == "causal":
        mask = chunk_mask(config)
    part = "mha" if config.get("x_self_attention", True) else None
    blocks = blocks_of(config["layers"])
    for i, (num_local, num_global) in enumerate(blocks):
        for j in range(num_local):
            name = f"x_network{suffix(i)}/transformer_encoder{suffix(j)}"
            tokens = [layer(w, name, group_tokens, part=part) for group_tokens in tokens]
        if not num_global:
            continue
        read, write = f"l2x_cross_attn{suffix(i)}", f"x2l_cross_attn{suffix(i)}"
        latents = [cross(w, read, latents[g], tokens[g], config) for g in range(t)]
        flat = np.concatenate(latents)
        if context is not None:
            norms = {"xattn_enc_ln": config.get("xattn_enc_ln", True)}
            flat = cross(w, f"l2c_cross_attn{suffix(i)}", flat, context, norms)
        for j in range(num_global):
            flat = layer(w, f"l_network{suffix(i)}/transformer_encoder{suffix(j)}", flat, mask)
        latents = np.split(flat, t)
        if i < len(blocks) - 1:
            tokens = [cross(w, write, tokens[g], latents[g], config) for g in range(t)]
    return np.stack(tokens), np.stack(latents)


def denoise(config, weights, x, time, cond=None, latents_prev=None):
    """Prediction [b t n c] and raw latents [b t m e] of noisy tokens at gammas [b]."""
    w = exact(weights)
    outputs = [
        denoise_one(
            config, w, x[i].astype(np.float64), time[i],
            None if cond is None else cond[i].astype(np.float64),
            None if latents_prev is None else latents_prev[i].astype(np.float64),
        )
        for i in range(len(x))
    ]  # fmt: skip
    return {"x": np.stack([o[0] for o in outputs]), "latents": np.stack([o[1] for o in outputs])}


def time_token(config, w, gamma):
    # the official code multiplies in float32, and a sine of hundreds feels it
    place = np.float32(gamma) * np.float32(1000)
    found = code(np.array([place], dtype=np.float64), config["latent_dim"] // 4)
    found = (found - found.mean()) / found.std()
    hidden = dense(w, "time_emb/dense0", found)
    return dense(w, "time_emb/dense1", hidden / (1 + np.exp(-hidden)))


def denoise_one(config, w, x, gamma, cond, before):
    table, start = positions(w, config)
    tokens = norm(w, "stem_ln", dense(w, "stem", x)) + table
    context = time_token(config, w, gamma)
    if cond is not None:
        context = np.concatenate([context, dense(w, "cond_proj", cond[None])])
    latents = start
    if config.get("self_cond", "none") == "latent":
        before = np.zeros_like(start) if before is None else before
        latents = start + norm(w, "latent_prev_ln", feed_forward(w, "latent_prev_proj", before))
    tokens, latents = trunk(config, w, list(tokens), list(latents), context)
    return dense(w, "x_output_linear", norm(w, "x_output_ln", tokens)), latents


def decode(config, weights, tokens):
    """Logits [b t n v] of levels [b t n] that are already shifted."""
    w = exact(weights)
    return {"logits": np.stack([decode_one(config, w, image) for image in tokens])}


def decode_one(config, w, levels):
    t, n = levels.shape
    shared = config.get("shared_embedding", True)
    table = w["token_embedding" if shared else "inp_token_embedding"]
    place, start = positions(w, config)
    tokens, latents = list(table[levels] + place), list(start)
    past, mask = np.tri(n, dtype=bool), chunk_mask(config)
    names = {"part": "self_mha"}
    blocks = blocks_of(config["layers"])
    for i, (num_local, num_global) in enumerate(blocks):
        for j in range(num_local):
            name = f"x_network{suffix(i)}/transformer_decoder_layer{suffix(j)}"
            tokens = [layer(w, name, group_tokens, past, **names) for group_tokens in tokens]
        if not num_global:
            continue
        read = f"l2x_cross_attn{suffix(i)}"
        flat = np.concatenate([cross(w, read, latents[g], tokens[g]) for g in range(t)])
        for j in range(num_global):
            name = f"l_network{suffix(i)}/transformer_decoder_layer{suffix(j)}"
            flat = layer(w, name, flat, mask, **names)
        latents = np.split(flat, t)
        if i < len(blocks) - 1:
            seen = [np.zeros_like(latents[0]), *latents[:-1]]
            write = f"x2l_cross_attn{suffix(i)}"
            tokens = [cross(w, write, tokens[g], seen[g]) for g in range(t)]
    logits = (
        norm(w, "x_output_ln", np.stack(tokens))
        @ (table if shared else w["outp_token_embedding"]).T
    )
    return logits + w["outp_bias"] if config.get("output_bias", True) else logits
