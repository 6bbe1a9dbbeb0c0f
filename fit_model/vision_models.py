"""Vision transformers of the literature as settings of ViX, by name.

    VISION_MODELS["tost_small_12"]()            for 224 px images in patches of 16 px
    VISION_MODELS["vit_hybrid"](drop_path=0.1)  with a setting changed
    python -m fit_model.vision_models                  prints all names
    python -m fit_model.vision_models tost_small_12    prints the settings, to be put under `model`

Each is for images of one group of the size it was published for. What the published code holds and
never uses is left out, such as the position table beside a rotary code.

Source: Vision X-formers, arXiv:2107.02239, and its code (vit, vip, vil, vin, fnet, mixer); DeiT,
arXiv:2012.12877; XCiT, arXiv:2106.09681; ToST, arXiv:2412.17810; AFT, arXiv:2105.14103.
"""

import difflib
import json
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from fit_model import configuration
from fit_model.vix import VixConfig

XFORMERS = {
    "vit": "softmax",
    "vip": "performer",
    "vil": "linformer@rank=64,sharing=key_value,key_heads=one",
    "vin": "nystromformer@landmarks=64,qkv_bias=false",
    "fnet": "fnet",
}
"""For CIFAR's 32 x 32 pixels, each a token. Linformer has one key head in "vil" alone, not with
convolutions nor with a rotary code."""
SIZES: dict[str, dict[str, Any]] = {
    "tiny_12": {"width": 192, "heads": 4, "depth": 12, "layer_scale": 1.0},
    "small_12": {"width": 384, "heads": 8, "depth": 12, "layer_scale": 1.0},
    "tiny_24": {"width": 192, "heads": 4, "depth": 24, "layer_scale": 1e-5},
    "small_24": {"width": 384, "heads": 8, "depth": 24, "layer_scale": 1e-5},
    "medium_24": {"width": 512, "heads": 8, "depth": 24, "layer_scale": 1e-5},
    "large_24": {"width": 768, "heads": 16, "depth": 24, "layer_scale": 1e-5},
}
"""Of XCiT and of ToST."""
DEIT_SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"width": 192, "heads": 3},
    "small": {"width": 384, "heads": 6},
    "base": {"width": 768, "heads": 12},
}


def x_former(operator: str, **changes: Any) -> VixConfig:
    """A model of Vision X-formers; its positions and class token start with deviation 1."""
    settings: dict[str, Any] = {
        "patch_px": 1,
        "width": 128,
        "depth": 4,
        "heads": 4,
        "mlp_ratio": 2,
        "qkv_bias": False,
        "position_std": 1.0,
    }
    return VixConfig(**settings | {"operator": operator} | changes)


def mixer(**changes: Any) -> VixConfig:
    """Vision X-formers' MLP-Mixer for Tiny ImageNet: 64 px, 1,024 tokens, no positions."""
    settings: dict[str, Any] = {
        "patch_px": 2,
        "mlp_ratio": 1,
        "position": "none",
        "pooling": "mean",
    }
    return x_former("mlp_mixer@hidden=1024", **settings | changes)


def deit(**changes: Any) -> VixConfig:
    """A DeiT: the vision transformer as ImageNet models have it."""
    return VixConfig(**{"patch_px": 16, "depth": 12} | changes)


def aft_conv(*, kernel: int, filters: int, **changes: Any) -> VixConfig:
    """AFT-conv in DeiT's place: no class token, no positions, the mean of all tokens."""
    operator = f"aft_conv@kernel={kernel},heads={filters}"
    return deit(**{"operator": operator, "position": "none", "pooling": "mean"} | changes)


def xcit(**changes: Any) -> VixConfig:
    """An XCiT; its batch norms are the paper's, see `VixConfig`."""
    settings: dict[str, Any] = {
        "patch_px": 16,
        "operator": "xca",
        "stem": "xcit@norm=batch",
        "position": "fourier",
        "pooling": "class_attention",
        "local_patch_interaction": "convolutions",
    }
    return VixConfig(**settings | changes)


def tost(**changes: Any) -> VixConfig:
    """A ToST: XCiT with TSSA and without local patches."""
    return xcit(**{"operator": "tssa", "local_patch_interaction": "none"} | changes)


def x_formers() -> dict[str, Callable[..., VixConfig]]:
    """The family of Vision X-formers: with convolutions (hybrid) and with rotary codes."""
    rotary = {"rotary": "rotary_1d", "position": "none"}
    made: dict[str, Callable[..., VixConfig]] = {}
    for name, operator in XFORMERS.items():
        every = operator.replace(",key_heads=one", "")
        made[name] = partial(x_former, operator)
        made[f"{name}_hybrid"] = partial(x_former, every, stem="convolutions")
        if operator != "fnet":
            made[f"{name}_rotary"] = partial(x_former, every, **rotary)
            made[f"{name}_hybrid_rotary"] = partial(x_former, every, stem="convolutions", **rotary)
    return made | {"mixer": mixer, "mixer_hybrid": partial(mixer, stem="convolutions")}


VISION_MODELS: dict[str, Callable[..., VixConfig]] = {
    **x_formers(),
    **{f"deit_{name}": partial(deit, **size) for name, size in DEIT_SIZES.items()},
    **{f"xcit_{name}": partial(xcit, **size) for name, size in SIZES.items()},
    **{f"tost_{name}": partial(tost, **size) for name, size in SIZES.items()},
    "xcit_small_12_without_local": partial(tost, operator="xca", **SIZES["small_12"]),
    "aft_full_tiny": partial(deit, operator="aft_full", **DEIT_SIZES["tiny"]),
    "aft_full_small": partial(deit, operator="aft_full", **DEIT_SIZES["small"]),
    "aft_conv_tiny_32": partial(aft_conv, kernel=11, filters=32, **DEIT_SIZES["tiny"]),
    "aft_conv_tiny_192": partial(aft_conv, kernel=11, filters=192, **DEIT_SIZES["tiny"]),
    "aft_conv_small_16": partial(aft_conv, kernel=11, filters=16, **DEIT_SIZES["small"]),
    "aft_conv_small_384": partial(aft_conv, kernel=11, filters=384, **DEIT_SIZES["small"]),
    "aft_conv_small_384_15": partial(aft_conv, kernel=15, filters=384, **DEIT_SIZES["small"]),
    "aft_conv_base": partial(aft_conv, kernel=25, filters=32, **DEIT_SIZES["base"]),
}


def settings_of(name: str) -> str:
    """All settings of a named model as JSON, which a YAML file may hold as it is."""
    if name not in VISION_MODELS:
        close = difflib.get_close_matches(name, VISION_MODELS, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ValueError(f"no model {name!r}: {hint}there are {', '.join(VISION_MODELS)}")
    return json.dumps(configuration.to_dict(VISION_MODELS[name]()))


def main(names: list[str]) -> int:
    """Print the settings of these models, or all names; the exit code."""
    try:
        print("\n".join(map(settings_of, names) if names else VISION_MODELS))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
