"""Answers to golden files of softmax attention, rotary codes and codes of grids."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fit_model.attention.operators import CAUSAL_OPERATORS, OPERATORS
from fit_model.attention.place import Place
from fit_model.attention.rotary import (
    Rotary,
    Rotary1d,
    Rotary1dConfig,
    RotaryAxial,
    RotaryAxialConfig,
    RotaryMixed,
    RotaryMixedConfig,
    RotatedOperator,
)
from fit_model.golden import Arrays, Golden
from fit_model.golden_modules import answer, input_leaves, load, weight_leaves
from fit_model.grid_codes import FourierPositions, sin_cos_code
from fit_model.layers import Heads


def softmax(golden: Golden) -> Arrays:
    """Self-attention, causal if the file says so."""
    return attend(golden, None)


def rotary_1d(golden: Golden) -> Arrays:
    """Self-attention with the 1-D code."""
    if golden.config.get("first_position", 0) != 0:
        raise ValueError("config: first_position is not 0, where positions start here")
    return attend(
        golden,
        Rotary1d(Rotary1dConfig(theta=golden.setting("theta")), **shape_of(golden, grid=False)),
    )


def rotary_axial(golden: Golden) -> Arrays:
    """Self-attention with the axial code."""
    config = RotaryAxialConfig(theta=golden.setting("theta"))
    return attend(golden, RotaryAxial(config, **shape_of(golden, grid=True)))


def rotary_mixed(golden: Golden) -> Arrays:
    """Self-attention with the frequencies of the file."""
    return attend(golden, RotaryMixed(RotaryMixedConfig(), **shape_of(golden, grid=True)))


def shape_of(golden: Golden, *, grid: bool) -> dict[str, Any]:
    """Width, heads and place of a file's attention."""
    prefix = 1 if golden.config.get("class_token") else 0
    place = Place(num_tokens=golden.setting("tokens"), prefix=prefix)
    if grid:
        rows, columns = golden.setting("grid_height"), golden.setting("grid_width")
        place = Place(num_tokens=golden.setting("tokens"), grid=(rows, columns), prefix=prefix)
    return {"width": golden.setting("dim"), "heads": golden.setting("heads"), "place": place}


def attend(golden: Golden, rotary: Rotary | None) -> Arrays:
    """Outputs and gradients of the layers' own attention, with its keys and values side by side."""
    operators = CAUSAL_OPERATORS if golden.config.get("causal", False) else OPERATORS
    operator = operators["softmax"]
    width, heads = golden.setting("dim"), golden.setting("heads")
    module = Heads(
        query_width=width,
        key_width=width,
        heads=heads,
        attend=operator if rotary is None else RotatedOperator(operator, rotary),
    ).double()
    inputs, weights = input_leaves(golden), weight_leaves(golden)
    if "x" not in inputs:
        raise ValueError(f"inputs: x is missing; there are: {', '.join(golden.inputs)}")
    filled = dict(weights)
    if not golden.config.get("qkv_bias", True):
        filled.setdefault("qkv.bias", torch.zeros(3 * width, dtype=torch.float64))
    own = as_heads(filled, module)
    outputs = {"y": functional_call(module, own, (inputs["x"], inputs["x"]), strict=True)}
    outputs |= turned(inputs["x"], filled, rotary=rotary, heads=heads)
    return answer(golden, outputs, inputs=inputs, weights=weights)


def as_heads(weights: dict[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """The file's weights under our names; ValueError where one is missing or left over."""
    rest = dict(weights)
    own: dict[str, Tensor] = {}
    for part in ("weight", "bias"):
        if f"qkv.{part}" in rest:
            query, key, value = rest.pop(f"qkv.{part}").chunk(3)
            own |= {f"query.{part}": query, f"key_value.{part}": torch.cat([key, value])}
    if "freqs" in rest:
        own["attend.rotary.frequencies"] = rest.pop("freqs")
    own |= rest
    wanted = {name: tuple(value.shape) for name, value in module.named_parameters()}
    found = {name: tuple(value.shape) for name, value in own.items()}
    if wanted != found:
        off = sorted(dict(wanted.items() ^ found.items()))
        raise ValueError(f"weights: {', '.join(off)} is missing, left over or of another shape")
    return own


def turned(
    x: Tensor, weights: dict[str, Tensor], *, rotary: Rotary | None, heads: int
) -> dict[str, Tensor]:
    """Queries and keys before and after they are turned, where they are."""
    if rotary is None:
        return {}
    projected = x @ weights["qkv.weight"].T + weights["qkv.bias"]
    query, key, _ = projected.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    own = {"frequencies": weights["freqs"]} if "freqs" in weights else {}
    after = functional_call(rotary, own, (query, key))
    return {"q": query, "k": key, "q_rotated": after[0], "k_rotated": after[1]}


def sin_cos_positions(golden: Golden) -> Arrays:
    """The sin-cos code in two orders of its blocks."""
    rows, columns = golden.setting("grid_height"), golden.setting("grid_width")
    if golden.config.get("reverse_coord", False):
        raise ValueError("config: reverse_coord is true, an order that there is none of here")
    width, theta = golden.setting("dim"), golden.setting("temperature")
    y = sin_cos_code(rows, columns, width=width, theta=theta)
    blocks = sin_cos_code(rows, columns, width=width, theta=theta, order="rows_first")
    return {"y": y.numpy(), "y_interleave": blocks.numpy()}


def fourier_positions(golden: Golden) -> Arrays:
    """The Fourier code and its linear map."""
    module = FourierPositions(
        width=golden.setting("dim"),
        features=golden.setting("features"),
        theta=golden.setting("temperature"),
        epsilon=golden.setting("eps"),
    )
    weights = load(module, golden)
    grid = golden.setting("grid_height"), golden.setting("grid_width")
    outputs = {"y": module(*grid), "features": module.code(*grid)}
    return answer(golden, outputs, inputs={}, weights=weights)


SOFTMAX_KINDS: dict[str, Callable[[Golden], Arrays]] = {
    "softmax_attention": softmax,
    "softmax_attention_causal": softmax,
    "rope_1d": rotary_1d,
    "rope_axial_2d": rotary_axial,
    "rope_axial_2d_cls": rotary_axial,
    "rope_mixed_2d_cls": rotary_mixed,
    "position_sincos_2d": sin_cos_positions,
    "position_fourier_2d": fourier_positions,
}
