"""Golden files of attention operators in other shapes, from loops that read only arrays."""

import json
from types import SimpleNamespace

import numpy as np
import torch


def write(path, *, config, weights, inputs, outputs_of):
    """A file with outputs and gradients of `outputs_of(weights, inputs)`, a dict of tensors.

    Gradients are central differences of the loss, a number at a time.
    """
    rng = np.random.default_rng(0)
    outputs = call(outputs_of, weights, inputs)
    cotangents = {
        "cotangent" if name == "y" else f"cotangent_{name}": rng.normal(size=value.shape)
        for name, value in outputs.items()
    }

    def loss(folder, name, array):
        given = {"weights": dict(weights), "inputs": dict(inputs)}
        given[folder][name] = array
        found = call(outputs_of, given["weights"], given["inputs"])
        return sum((found[n] * c).sum() for n, c in zip(found, cotangents.values(), strict=True))

    arrays = {f"weights/{name}": array for name, array in weights.items()}
    arrays |= {f"inputs/{name}": array for name, array in (inputs | cotangents).items()}
    arrays |= {f"outputs/{name}": array for name, array in outputs.items()}
    for folder, start, given in [("inputs", "grads", inputs), ("weights", "weight_grads", weights)]:
        for name, array in given.items():
            arrays[f"{start}/{name}"] = slopes(lambda a, f=folder, n=name: loss(f, n, a), array)
    if config.get("dtype") == "float32":
        arrays = {name: array.astype(np.float32) for name, array in arrays.items()}
    np.savez(path, config=json.dumps(config), **arrays)
    return path


def call(outputs_of, weights, inputs):
    """Arrays in, arrays out; the loops themselves work on tensors."""
    tensors = ({n: torch.from_numpy(a) for n, a in given.items()} for given in (weights, inputs))
    return {name: value.numpy() for name, value in outputs_of(*tensors).items()}


def slopes(function, array, *, step=1e-3):
    """Derivative by every number, by central differences of the fourth order."""
    found = np.zeros_like(array)
    for place in np.ndindex(array.shape):
        moved = []
        for steps in (-2, -1, 1, 2):
            near = array.copy()
            near[place] += steps * step
            moved.append(function(near))
        found[place] = (moved[0] - 8 * moved[1] + 8 * moved[2] - moved[3]) / (12 * step)
    return found


def named(weights):
    """Weights as attributes, `out.weight` as .out.weight; a layer without a bias gets zeros."""
    root = SimpleNamespace()
    for name, value in weights.items():
        *folders, last = name.split(".")
        place = root
        for folder in folders:
            place.__dict__.setdefault(folder, SimpleNamespace(bias=torch.zeros(()).double()))
            place = getattr(place, folder)
        setattr(place, last, value)
    return root


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape) * 0.7
