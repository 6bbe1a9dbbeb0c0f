"""Configurations survive JSON, and refuse what is unknown or of another type."""

import json
from copy import copy
from dataclasses import replace

import pytest

from fit_model.encoder import EncoderConfig
from fit_model.heads import ClassifyConfig, RegressConfig
from fit_model.models import config_from_dict, config_to_dict
from fit_model.tokens import InputConfig
from fit_model.trunk_config import parse_layers
from tests.fit_model.examples import model_config, trunk_config
from tests.fit_model.generators import generator_config, head

CONFIGS = [
    model_config(),
    model_config(latent_position="learned", num_groups=6, latent_mask="causal"),
    model_config(head=RegressConfig(targets=("a",), target_mean=(1.5,), target_std=(2.0,))),
    generator_config("diffusion"),
    generator_config(
        "diffusion",
        classes=(),
        schedule="sigmoid@-3,3,0.9",
        prediction="v",
        loss="x",
        input_scale=0.5,
        normalize_input="deviation",
        self_conditioning="none",
        self_conditioning_rate=1.0,
        label_dropout=0.0,
        latent_position="learned",
        num_groups=4,
        latent_mask="causal",
    ),
    generator_config("autoregressive"),
    generator_config(
        "autoregressive",
        classes=(),
        order="raster",
        num_levels=17,
        embedding="separate",
        output_bias="none",
        label_dropout=0.25,
        token_position="sin_cos",
        trunk=trunk_config(layers="(2)1(1)", key_norm="none", after_exchange="feed_forward"),
        makes=head(classes=(), pixel_dtype="float32", pixel_low=-0.5, pixel_high=2.0),
    ),
]


@pytest.mark.parametrize("config", CONFIGS)
def test_a_configuration_survives_json(config):
    again = config_from_dict(json.loads(json.dumps(config_to_dict(config))))
    assert again == config
    assert type(again.face) is type(config.face)
    assert type(again.head) is type(config.head)


@pytest.mark.parametrize(
    ("where", "name", "value", "said"),
    [
        ("face", "kind", "gan", "face.kind is 'gan': choose one of encoder, diffusion"),
        ("face", "shedule", "cosine", "no setting 'face.shedule'; did you mean 'face.schedule'"),
        ("face", "prediction", "noise", "face.prediction is 'noise': one of 'eps', 'x', 'v'"),
        ("face", "input_scale", "1", "face.input_scale is '1': a number is wanted"),
        ("face", "input_scale", 10**400, r"face.input_scale is 10{400}: a number is wanted"),
        ("face", "num_levels", 17, "no setting 'face.num_levels'"),
        ("head", "kind", "dream", "head.kind is 'dream': choose one of classify, regress, gen"),
        ("head", "pixel_low", None, "head.pixel_low is None: a number is wanted"),
        ("head", "classes", "night", "head.classes is 'night': a list is wanted"),
    ],
)
def test_what_is_unknown_or_of_another_type_is_refused_by_name(where, name, value, said):
    values = config_to_dict(generator_config("diffusion"))
    values[where][name] = value
    with pytest.raises(ValueError, match=said):
        config_from_dict(values)


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


def diffusion(**changes):
    return lambda: generator_config("diffusion", **changes)


def decoder(**changes):
    return lambda: generator_config("autoregressive", **changes)


GENERATOR_REFUSALS = [
    (diffusion(schedule="cosin"), "did you mean 'cosine"),
    (diffusion(schedule="sigmoid@-3,3"), "sigmoid@-3,3"),
    (diffusion(self_conditioning_rate=2.0), "self_conditioning_rate is 2.0: it must lie in"),
    (diffusion(label_dropout=1.0), "label_dropout is 1.0: it must lie in"),
    (diffusion(input_scale=0.0), "input_scale is 0.0: it must be above 0"),
    (diffusion(latent_position="learned"), "'learned' needs num_groups, the groups of every"),
    (diffusion(num_groups=0), "num_groups is 0"),
    (diffusion(trunk=trunk_config(layers="(1)1(1)", latent_width=4)), "latent_width 4 is too narr"),
    (diffusion(trunk=trunk_config(layers="(1)2(1)1")), "last global layers of '\\(1\\)2\\(1\\)1'"),
    (diffusion(source=pixels(group_side_px=10)), "10 is no multiple of patch_px 4: choose"),
    (decoder(num_levels=1), "num_levels is 1: take 2 to 65536"),
    (decoder(num_levels=65537), "num_levels is 65537"),
    (decoder(label_dropout=-0.1), "label_dropout is -0.1"),
    (decoder(latent_position="sin_cos_2d"), "needs num_groups, the patches of every image"),
    (decoder(trunk=trunk_config(layers="(2)1")), "end in local layers, for example"),
    (decoder(patch_px=3), "8 is no multiple of patch_px 3"),
    (diffusion(makes=ClassifyConfig(classes=CLASSES)), "'diffusion' cannot classify: .* generate"),
    (decoder(makes=ClassifyConfig(classes=CLASSES)), "'autoregressive' cannot classify"),
    (lambda: model_config(head=head()), "'encoder' cannot generate: .*classify or regress"),
]
REFUSALS += GENERATOR_REFUSALS


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        ("diffusion", "prediction", "y"),
        ("diffusion", "loss", "v"),
        ("diffusion", "normalize_input", "maybe"),
        ("diffusion", "self_conditioning", "pixel"),
        ("diffusion", "latent_mask", "spiral"),
        ("autoregressive", "order", "spiral"),
        ("autoregressive", "embedding", "none"),
        ("autoregressive", "output_bias", "fixed"),
        ("autoregressive", "token_position", "spiral"),
    ],
)
def test_names_that_are_not_known_are_refused_with_those_that_are(kind, name, value):
    """Asked of a copy whose checks alone run: the types would say so first."""
    face = copy(generator_config(kind).face)
    object.__setattr__(face, name, value)
    with pytest.raises(ValueError, match=f"{name} is '{value}': choose one of "):
        face.__post_init__()


@pytest.mark.parametrize(("make", "said"), REFUSALS, ids=[said for _, said in REFUSALS])
def test_impossible_settings_are_refused_with_their_value(make, said):
    with pytest.raises(ValueError, match=said):
        make()


def test_configurations_can_be_keys_and_changed_copies():
    config = CONFIGS[0]
    copy = replace(config, input=pixels(bands=2))
    assert len({config, copy, replace(copy, input=config.input)}) == 2
