"""Answers to golden files of the AFT family."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from fit_model.attention.aft import Aft, AftFull, AftFullConfig, AftSimple, AftSimpleConfig
from fit_model.attention.aft_conv import AftConv, AftConvConfig
from fit_model.attention.aft_local import AftLocal, AftLocalConfig
from fit_model.attention.place import Place
from fit_model.golden import Arrays, Golden
from fit_model.golden_modules import answer, input_leaves, load, run

BIAS = "position_bias"
NAMES = {
    f"{theirs}.{part}": f"{ours}.{part}"
    for theirs, ours in {"q": "query", "k": "key", "v": "value"}.items()
    for part in ("weight", "bias")
}


def aft_simple(golden: Golden) -> Arrays:
    """Outputs and gradients of AFT without position biases."""
    width, hidden = widths(golden)
    config = AftSimpleConfig(hidden=hidden, qkv_bias="q.bias" in golden.weights)
    mixer = AftSimple(config, width=width, heads=1, place=Place(causal=causal(golden)))
    return run(golden, mixer, names=NAMES)


def aft_biased(golden: Golden) -> Arrays:
    """Outputs and gradients of AFT with a bias for every pair of places, or for near ones.

    A file with factors may hold their product too, whose gradient a mixer with a table gives.
    """
    factors, table = (f"{BIAS}.u", f"{BIAS}.v"), f"{BIAS}.w"
    found: Arrays = {}
    if table in golden.weights:
        without = NAMES | dict.fromkeys(factors, "")
        found = run(golden, biased(golden, bias=table), names=without)
    if factors[0] in golden.weights:
        without = NAMES | {table: ""}
        found |= run(golden, biased(golden, bias=factors[0]), names=without)
    return found


def biased(golden: Golden, *, bias: str) -> Aft:
    """The mixer whose bias starts from this weight: a table of pairs, or the first factor."""
    width, hidden = widths(golden)
    longest, rank = weight(golden, bias).shape
    factors = None if bias.endswith(".w") else rank
    place = Place(num_tokens=longest, causal=causal(golden))
    window = golden.config.get("window", longest)
    qkv_bias = "q.bias" in golden.weights
    if window >= longest:
        full = AftFullConfig(rank=factors, hidden=hidden, qkv_bias=qkv_bias)
        return AftFull(full, width=width, heads=1, place=place)
    local = AftLocalConfig(rank=factors, hidden=hidden, window=window, qkv_bias=qkv_bias)
    return AftLocal(local, width=width, heads=1, place=place)


def aft_conv(golden: Golden) -> Arrays:
    """Outputs and gradients of AFT with a filter of biases a head, on a grid or a line."""
    raw = weight(golden, f"{BIAS}.raw")
    grid = raw.ndim == 3
    config = AftConvConfig(
        kernel=raw.shape[-1],
        axes="grid" if grid else "line",
        std="population" if golden.config.get("std", "population")[:3] == "pop" else "sample",
        qkv_bias="q.bias" in golden.weights,
    )
    rows_columns = (golden.setting("grid_height"), golden.setting("grid_width")) if grid else None
    place = Place(grid=rows_columns, causal=causal(golden))
    mixer = AftConv(config, width=widths(golden)[0], heads=len(raw), place=place)
    copies = {f"{BIAS}.w": "", f"{BIAS}.gamma_unbiased_std": ""}
    weights = load(mixer, golden, names=NAMES | copies)

    def keep(module: nn.Module, inputs: tuple[torch.dtype], filters: Tensor) -> None:
        weights[f"{BIAS}.w"] = filters

    mixer.position_bias.register_forward_hook(keep)
    inputs = input_leaves(golden)
    return answer(golden, {"y": mixer(inputs["x"])}, inputs=inputs, weights=weights)


def weight(golden: Golden, name: str) -> Tensor:
    """A weight; ValueError where there is none."""
    if name not in golden.weights:
        raise ValueError(f"weights: {name} is missing; there are: {', '.join(golden.weights)}")
    return torch.from_numpy(golden.weights[name])


def widths(golden: Golden) -> tuple[int, int]:
    """Width of the tokens, and of the channels that are mixed."""
    hidden, width = weight(golden, "v.weight").shape
    return width, hidden


def causal(golden: Golden) -> Literal["none", "tokens"]:
    """What Place says of it; ValueError for a gate that is none of the paper's."""
    gate = golden.config.get("query_activation", "sigmoid")
    if gate != "sigmoid":
        raise ValueError(f"query_activation {gate!r} is not known here; AFT's gate is the sigmoid")
    return "tokens" if golden.config.get("causal", False) else "none"


AFT_KINDS: dict[str, Callable[[Golden], Arrays]] = {
    "aft_simple": aft_simple,
    "aft_full": aft_biased,
    "aft_full_causal": aft_biased,
    "aft_local": aft_biased,
    "aft_local_causal": aft_biased,
    "aft_conv": aft_conv,
}
