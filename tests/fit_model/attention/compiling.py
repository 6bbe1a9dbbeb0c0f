"""Compile operators and FIT, and print how far their numbers are from those of the plain layers.

Run      python -m tests.fit_model.attention.compiling BACKEND NAME [NAME ...]
Prints   a line of JSON with, for every name, the largest relative error or what went wrong

A process of its own, because torch.compile cannot follow the checks of shapes that pytest turns on.
"""

import copy
import json
import sys

import torch

from fit_model.groups import collate
from fit_model.models import build
from tests.fit_model.attention.every_operator import WIDTH, apart, build_operator, padded, step
from tests.fit_model.examples import image, model_config, randomize, trunk_config


def operator_apart(name: str, backend: str) -> float:
    """Over two sequences, the longer one with a mask: output and all gradients."""
    layer = build_operator(name, num_tokens=60)
    compiled = copy.deepcopy(layer)
    compiled.compile(fullgraph=True, backend=backend)
    errors = []
    for num_tokens, may_attend in ((60, padded(60)), (35, None)):
        x = torch.randn(2, num_tokens, WIDTH)
        errors.append(apart(step(compiled, x, may_attend), step(layer, x, may_attend)))
    return max(errors)


def fit_apart(name: str, backend: str) -> float:
    """Of "encoder OPERATOR", in pieces, or "trunk OPERATOR", as one graph: losses and gradients."""
    whole, operator = name.split()
    trunk = trunk_config(layers="(1)1(1)1", local_operator=operator, global_operator=operator)
    model = randomize(build(model_config(trunk=trunk, num_groups=9)))
    compiled = copy.deepcopy(model)
    if whole == "trunk":
        compiled.encoder.trunk.compile(fullgraph=True, backend=backend)
    else:
        compiled.encoder.compile(backend=backend)
    batch = collate([image(2, 2, seed=1), image(3, 3, stored=[0, 4, 5], width_px=20, seed=2)])
    found, wanted = (fit_step(each, batch) for each in (compiled, model))
    return apart(found, wanted)


def fit_step(model, batch) -> dict[str, torch.Tensor]:
    """Losses and gradients of a batch of two images."""
    losses = model.losses(batch, torch.tensor([0, 2]), seeds=torch.arange(2))
    losses.sum().backward()
    found = {name: each.grad for name, each in model.named_parameters() if each.grad is not None}
    return {"y": losses.detach(), **found}


def main(backend: str, names: list[str]) -> None:
    """Try every name; a failure of one is no failure of the others."""
    found: dict[str, float | str] = {}
    for name in names:
        torch.manual_seed(0)
        torch.compiler.reset()
        measure = fit_apart if name.startswith(("encoder ", "trunk ")) else operator_apart
        try:
            found[name] = measure(name, backend)
        except Exception as error:
            found[name] = f"{type(error).__name__}: {error}"
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
