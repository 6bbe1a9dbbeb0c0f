"""Golden files of every kind whose outputs come from NumPy."""

import json

import numpy as np

from tests.fit_model import numpy_fit, numpy_sampling, numpy_weights

ENCODER = {
    "kind": "encoder",
    "layers": "(1)2(1)1",
    "x_size": 36,
    "num_groups": 4,
    "latents_per_group": 3,
    "x_dim": 16,
    "latent_dim": 12,
    "x_num_heads": 4,
    "latent_num_heads": 3,
}
DENOISER = ENCODER | {"kind": "denoiser", "layers": "(1)2(1)1(1)", "out_dim": 6}
DECODER = ENCODER | {"kind": "autoregressive", "layers": "(1)2(1)1(1)", "vocab_size": 11}
SAMPLER = DENOISER | {
    "kind": "sampler",
    "layers": "(1)1(1)",
    "self_cond": "latent",
    "iterations": 4,
    "schedule": "simple_linear",
    "sampler": "ddim",
    "guidance": 0.0,
    "pred_type": "eps",
    "b_scale": 1.0,
    "normalize_noisy_input": False,
    "td": 0.0,
}
CLASSES = 5


def write(path, parts, config):
    """The file of `weights`, `inputs` and `outputs`."""
    arrays = {f"{part}/{name}": a for part, named in parts.items() for name, a in named.items()}
    np.savez(path, config=json.dumps(config), **arrays)
    return path


def edit(path, *, config=None, drop=(), change=None):
    """The same file with other settings, without some arrays, or with one output moved."""
    arrays = dict(np.load(path))
    if config:
        arrays["config"] = json.dumps(json.loads(str(arrays["config"])) | config)
    for name in drop:
        del arrays[name]
    for name, by in (change or {}).items():
        arrays[name] = arrays[name] + by
    np.savez(path, **arrays)
    return path


def tokens_of(config, draw, channels):
    t = config["num_groups"]
    return draw.normal(size=(2, t, config["x_size"] // t, channels)).astype(np.float32)


def encoder(path, config, *, channels=5, identities=None):
    draw, t = np.random.default_rng(3), config["num_groups"]
    weights = numpy_weights.of_encoder(config, channels=channels, identities=identities)
    inputs = {"x": tokens_of(config, draw, channels)}
    if identities:
        names = np.eye(identities, dtype=np.float32)
        inputs["y"] = np.stack([names[draw.permutation(t)][:, None] for _ in range(2)])
    outputs = numpy_fit.encode(config, weights, inputs["x"], inputs.get("y"))
    return write(path, {"weights": weights, "inputs": inputs, "outputs": outputs}, config)


def denoiser(path, config, *, classes=CLASSES, before=True):
    draw = np.random.default_rng(4)
    weights = numpy_weights.of_denoiser(config, classes=classes)
    inputs = {"x": tokens_of(config, draw, config["out_dim"])}
    inputs["time"] = np.array([0.3, 0.95], dtype=np.float32)
    if classes:
        inputs["cond"] = np.eye(classes, dtype=np.float32)[[classes // 2, classes - 1]]
    if before and config.get("self_cond", "none") == "latent":
        shape = (2, config["num_groups"], config["latents_per_group"], config["latent_dim"])
        inputs["latents_prev"] = draw.normal(size=shape).astype(np.float32)
    outputs = numpy_fit.denoise(
        config, weights, inputs["x"], inputs["time"], inputs.get("cond"),
        inputs.get("latents_prev"),
    )  # fmt: skip
    return write(path, {"weights": weights, "inputs": inputs, "outputs": outputs}, config)


def decoder(path, config):
    draw, t = np.random.default_rng(5), config["num_groups"]
    weights = numpy_weights.of_decoder(config)
    shape = (2, t, config["x_size"] // t)
    levels = draw.integers(config["vocab_size"], size=shape).astype(np.int32)
    outputs = numpy_fit.decode(config, weights, levels)
    return write(
        path, {"weights": weights, "inputs": {"tokens": levels}, "outputs": outputs}, config
    )


def sampler(path, config, *, classes=CLASSES, dtype=np.float32):
    draw = np.random.default_rng(6)
    weights = numpy_weights.of_denoiser(config, classes=classes)
    noises = [tokens_of(config, draw, config["out_dim"]) for _ in range(config["iterations"] + 1)]
    inputs = {"noises": np.stack(noises).astype(dtype)}
    if classes:
        inputs["labels"] = np.eye(classes, dtype=np.float32)[[classes // 2, classes - 1]]
    outputs = numpy_sampling.draw_samples(config, weights, inputs["noises"], inputs.get("labels"))
    return write(path, {"weights": weights, "inputs": inputs, "outputs": outputs}, config)
