"""Configurations survive JSON, and refuse what is unknown or of another type."""

import json
from dataclasses import replace

import pytest

from fit_model.body import parse_layers
from fit_model.encoder import EncoderConfig
from fit_model.heads import ClassifyConfig, RegressConfig
from fit_model.models import config_from_dict, config_to_dict
from fit_model.tokens import InputConfig
from tests.fit_model.examples import model_config, trunk_config

CONFIGS = [
    model_config(),
    model_config(latent_position="learned", num_groups=6, latent_mask="causal"),
    model_config(head=RegressConfig(targets=("a",), target_mean=(1.5,), target_std=(2.0,))),
]


@pytest.mark.parametrize("config", CONFIGS)
def test_a_configuration_survives_json(config):
    assert config_from_dict(json.loads(json.dumps(config_to_dict(config)))) == config


def test_whole_numbers_are_numbers():
    values = config_to_dict(CONFIGS[0])
    values["input"]["band_mean"] = [90, 110]
    assert config_from_dict(values) == CONFIGS[0]


@pytest.mark.parametrize(
    ("layers", "blocks"),
    [
        ("(2)4(2)", [(2, 4), (2, 0)]),
        ("(4)4(4)4(4)", [(4, 4), (4, 4), (4, 0)]),
        ("(0)8", [(0, 8)]),
        ("(10)2(3)1", [(10, 2), (3, 1)]),
    ],
)
def test_layer_strings_mean_what_the_official_ones_mean(layers, blocks):
    assert [(block.num_local, block.num_across) for block in parse_layers(layers)] == blocks


@pytest.mark.parametrize(
    "layers", ["", "4", "(2)4(2", "(2)0(2)", "(2)(2)", "(-1)2", "(2) 4", "(a)1"]
)
def test_other_layer_strings_are_refused(layers):
    with pytest.raises(ValueError, match="layers is"):
        parse_layers(layers)


def pixels(**changes):
    base = {"bands": 2, "group_side_px": 8, "band_mean": (1.0, 2.0), "band_std": (1.0, 1.0)}
    return InputConfig(**(base | changes))


CLASSES = ("a", "b")

REFUSALS = [
    (lambda: trunk_config(width=13), "width 13 is no multiple of its 2 heads"),
    (lambda: trunk_config(latent_width=9), "latent_width 9 is no multiple of its 4 heads"),
    (lambda: trunk_config(width=0), "width is 0"),
    (lambda: trunk_config(dropout=1.0), "dropout is 1.0"),
    (lambda: trunk_config(local_operator="telepathy"), "choose one of softmax_reference, softmax"),
    (lambda: pixels(bands=3), "band_mean has 2 values for 3 bands"),
    (lambda: pixels(band_std=(1.0, 0.0)), "band_std holds 0.0"),
    (lambda: pixels(band_mean=(1.0, float("nan"))), "finite"),
    (lambda: ClassifyConfig(classes=("a",)), "at least two"),
    (lambda: ClassifyConfig(classes=("a", "a")), "each once"),
    (lambda: RegressConfig(targets=("a",), target_mean=(), target_std=(1.0,)), "0 values"),
    (lambda: RegressConfig(targets=("a",), target_mean=(0.0,), target_std=(0.0,)), "above 0"),
    (
        lambda: EncoderConfig(patch_px=4, trunk=trunk_config(), latent_position="learned"),
        "needs num_groups",
    ),
    (
        lambda: EncoderConfig(patch_px=4, trunk=trunk_config(), group_token="one_hot"),
        "needs num_groups",
    ),
    (
        lambda: model_config(pixels=pixels(group_side_px=10)),
        "group_side_px 10 is no multiple of patch_px 4",
    ),
    (
        lambda: model_config(trunk=trunk_config(layers="(2)4(2)")),
        "end in global layers, or pool tokens",
    ),
    (
        lambda: model_config(head=ClassifyConfig(classes=CLASSES, pool="tokens")),
        "end in local layers, or pool latents",
    ),
]


@pytest.mark.parametrize(("make", "said"), REFUSALS, ids=[said for _, said in REFUSALS])
def test_impossible_settings_are_refused_with_their_value(make, said):
    with pytest.raises(ValueError, match=said):
        make()


def test_configurations_can_be_keys_and_changed_copies():
    config = CONFIGS[0]
    copy = replace(config, input=pixels(bands=2))
    assert len({config, copy, replace(copy, input=config.input)}) == 2
