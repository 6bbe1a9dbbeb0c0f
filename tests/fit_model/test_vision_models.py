"""The named vision models have the sizes that their papers and their public code have."""

import json

import pytest
import torch

from fit_model import configuration
from fit_model.attention.mixers import build_mixer
from fit_model.attention.place import Place
from fit_model.flops import num_parameters
from fit_model.heads import ClassifyConfig
from fit_model.model import ModelConfig
from fit_model.models import build
from fit_model.tokens import InputConfig
from fit_model.vision_models import VISION_MODELS, main, xcit
from fit_model.vix import VixConfig

TABLE = 1025 * 128
"""Learned positions, which the rotary models of the public code keep and never add."""
CIFAR = {
    "vit": 661_770,
    "vit_rotary": 661_770 - TABLE,
    "vit_hybrid": 754_506,
    "vit_hybrid_rotary": 754_506 - TABLE,
    "vip": 663_306,
    "vip_rotary": 532_106,
    "vip_hybrid_rotary": 624_714 + 128,  # torchsummary leaves the class token out
    "vil": 809_482,
    "vil_rotary": 858_634 - TABLE,
    "vil_hybrid": 951_370,
    "vil_hybrid_rotary": 951_370 - TABLE,
    "vin": 662_298,
    "vin_rotary": 531_098,
    "vin_hybrid": 755_034,
    "vin_hybrid_rotary": 623_834,
    "fnet": 399_114,
    "fnet_hybrid": 491_850,
}
IMAGENET = {
    "deit_tiny": 5.717,
    "deit_small": 22.051,
    "deit_base": 86.568,
    "tost_tiny_12": 5.769,
    "tost_small_12": 22.590,
    "tost_medium_24": 71.48,
    "xcit_small_12_without_local": 26.14,
    "xcit_tiny_12": 6.72,
    "xcit_small_12": 26.25,
    "xcit_small_24": 47.67,
    "xcit_medium_24": 84.40,
    "xcit_large_24": 189.10,
    "aft_full_tiny": 6.323,
    "aft_full_small": 22.656,
    "aft_conv_tiny_32": 5.356,
    "aft_conv_tiny_192": 5.963,
    "aft_conv_small_16": 20.298,
    "aft_conv_small_384": 22.541,
    "aft_conv_small_384_15": 23.021,
}
"""In millions, with as many digits as are known."""


def config_of(face: VixConfig, *, side_px: int, classes: int) -> ModelConfig:
    return ModelConfig(
        face=face,
        input=InputConfig(
            bands=3, group_side_px=side_px, band_mean=(0.5,) * 3, band_std=(0.5,) * 3
        ),
        head=ClassifyConfig(classes=tuple(map(str, range(classes)))),
    )


def size(face: VixConfig, *, side_px: int, classes: int) -> int:
    """Parameters of the model as it is built, and as they are foretold."""
    config = config_of(face, side_px=side_px, classes=classes)
    with torch.device("meta"):
        built = sum(each.numel() for each in build(config).parameters())
    assert num_parameters(config) == built
    return built


def millions(count: int, like: float) -> float:
    digits = len(str(like).partition(".")[2])
    return round(count / 1e6, max(digits, 2))


@pytest.mark.parametrize("name", CIFAR)
def test_vision_x_formers_are_as_large_as_the_public_code_makes_them(name):
    assert size(VISION_MODELS[name](), side_px=32, classes=10) == CIFAR[name]


@pytest.mark.parametrize("name", IMAGENET)
def test_imagenet_models_are_as_large_as_published(name):
    found = size(VISION_MODELS[name](), side_px=224, classes=1000)
    assert millions(found, IMAGENET[name]) == IMAGENET[name]


def test_aft_conv_base_is_as_large_as_counted_at_384_px():
    found = size(VISION_MODELS["aft_conv_base"](), side_px=384, classes=1000)
    assert millions(found, 79.86) == 79.86


def test_the_smallest_xcit_is_as_large_as_published():
    found = size(xcit(width=128, heads=4, depth=12), side_px=224, classes=1000)
    assert millions(found, 3.05) == 3.05


@pytest.mark.parametrize("name", ["mixer", "mixer_hybrid"])
def test_the_mixer_of_tiny_imagenet_is_as_large_as_its_script_makes_it(name):
    found = size(VISION_MODELS[name](), side_px=64, classes=200)
    stem = 3 * 32 * 9 + 32 + 32 * 64 * 9 + 64 + 64 * 128 * 9 + 128
    plain = found if name == "mixer" else found - stem + 12 * 128 + 128
    assert plain == 4 * (2 * 128 * 2 + 2 * (1024**2 + 1024) + 2 * (128**2 + 128)) + 1664 + 26_056
    assert millions(plain, 8.56) == 8.56


@pytest.mark.parametrize(
    "name", sorted(VISION_MODELS.keys() - CIFAR.keys() - IMAGENET.keys() - {"aft_conv_base"})
)
def test_every_other_named_model_can_be_built(name):
    side_px = {1: 32, 2: 64, 16: 224}[VISION_MODELS[name]().patch_px]
    assert size(VISION_MODELS[name](), side_px=side_px, classes=10) > 300_000


def test_the_settings_of_a_named_model_are_printed_as_a_file_may_hold_them(capsys):
    assert main(["tost_tiny_12"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert configuration.from_dict(VixConfig, values) == VISION_MODELS["tost_tiny_12"]()


def test_without_a_name_all_are_listed_and_a_wrong_one_costs_one_line(capsys):
    assert main([]) == 0
    assert capsys.readouterr().out.split() == list(VISION_MODELS)
    assert main(["tost_tiny_13"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("no model 'tost_tiny_13': did you mean 'tost_tiny_12'? there are vit, ")
    assert said.count("\n") == 1


def mixer_size(operator: str, *, width: int, heads: int, place: Place) -> dict[str, int]:
    with torch.device("meta"):
        mixer = build_mixer(operator, width=width, heads=heads, place=place)
    return {name: each.numel() for name, each in mixer.named_parameters()}


def test_tssa_has_half_of_the_parameters_of_xca():
    grid = Place(grid=(14, 14))
    assert sum(mixer_size("tssa", width=192, heads=4, place=grid).values()) == 74_116
    assert sum(mixer_size("xca", width=192, heads=4, place=grid).values()) == 148_228


@pytest.mark.parametrize(
    ("layers", "width", "heads", "wanted"),
    [(12, 768, 12, 109.60), (24, 1024, 16, 303.66), (36, 1280, 20, 655.14)],
)
def test_causal_tssa_makes_tosts_language_models_as_large_as_published(
    layers, width, heads, wanted
):
    causal = Place(num_tokens=1024, causal="tokens")
    layer = mixer_size("tssa@qkv_bias=false,out_bias=false", width=width, heads=heads, place=causal)
    mixing = sum(layer.values())
    assert mixing == 2 * width**2 + heads + 1024 * heads
    rest = 8 * width**2 + 4 * width  # feed-forward, two norms, two layer scales, no biases
    assert millions(layers * (mixing + rest) + width + 50304 * width, wanted) == wanted


@pytest.mark.parametrize(("rank", "wanted"), [("none", 9.6), ("64", 0.6)])
def test_aft_local_counts_what_the_paper_counts(rank, wanted):
    place = Place(num_tokens=3072)
    layer = mixer_size(f"aft_local@window=256,rank={rank}", width=256, heads=1, place=place)
    counted = [
        count
        for name, count in layer.items()
        if not name.endswith("bias") and not name.startswith("out.")
    ]
    assert round(sum(counted) / 1e6, 1) == wanted
