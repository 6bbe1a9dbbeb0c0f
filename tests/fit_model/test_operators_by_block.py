"""A block of FIT may have operators of its own."""

import json

import pytest
import torch

from fit_model.flops import forward_macs, num_parameters
from fit_model.model import ModelConfig
from fit_model.models import build, config_from_dict, config_to_dict
from jobs import settings
from jobs.errors import UserError
from tests.fit_model.examples import image, model_config, randomize, trunk_config
from tests.fit_model.generators import generator_config
from tests.fit_model.test_parameters import count, counted

LOCAL = ("aft_simple", "softmax", "linformer@rank=3")
GLOBAL = ("tssa", "xca", "softmax")
YAML = """
face:
  kind: encoder
  patch_px: 4
  trunk:
    {layers: "(1)2(1)1", width: 12, latent_width: 8, latents_per_group: 3, heads: 2,
     latent_heads: 4, local_operator: [tssa, "linformer@rank=3"], exchange: bixt}
input: {bands: 1, group_side_px: 8, band_mean: [0], band_std: [1]}
head: {kind: classify, classes: [day, night]}
"""


def trunk(**changes):
    listed = {"local_operator": LOCAL, "global_operator": GLOBAL}
    return trunk_config(**{"layers": "(1)2(2)1(1)1"} | listed | changes)


def mixers(layers):
    return [type(layer.attention).__name__ for layer in layers]


def test_every_block_has_the_operators_of_its_place_in_the_lists():
    config = model_config(trunk=trunk())
    model = build(config)
    blocks = model.encoder.trunk.blocks
    local = [mixers(block.local.layers) for block in blocks]
    across = [mixers(block.across.layers) for block in blocks]
    assert local == [["AftSimple"], ["SelfHeads"] * 2, ["Linformer"]]
    assert across == [["Tssa"] * 2, ["Xca"], ["SelfHeads"]]
    assert num_parameters(config) == count(model)


@torch.no_grad()
def test_a_list_of_one_operator_is_that_operator_for_all():
    once, listed = (
        build(model_config(trunk=trunk(local_operator=each, global_operator="softmax")))
        for each in ("tssa", ("tssa",) * 3)
    )
    listed.load_state_dict(randomize(once).state_dict())
    assert torch.equal(once(image(2, 2)), listed(image(2, 2)))


def test_multiply_adds_are_those_that_pytorch_counts():
    # of operators whose work is matrix products alone
    config = model_config(
        trunk=trunk(
            local_operator=("softmax", "linformer@rank=3", "softmax"), global_operator="xca"
        )
    )
    model = build(config)
    pooled = model.head.project.in_features * model.head.project.out_features
    assert counted(lambda: model(image(2, 2))) - pooled == forward_macs(config, [4])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"local_operator": ("tssa", "xca")},
            r"local_operator has 2 entries, but layers '\(1\)2\(2\)1\(1\)1' make 3 blocks: give",
        ),
        ({"global_operator": ("xca",) * 4}, "global_operator has 4 entries.* make 3 blocks"),
        ({"local_operator": ("tssa", "xcaa", "tssa")}, "local_operator is 'xcaa': did you mean"),
    ],
)
def test_a_list_that_does_not_fit_is_refused_with_both_numbers(changes, says):
    with pytest.raises(ValueError, match=says):
        trunk(**changes)


def test_a_causal_model_looks_at_every_entry():
    chosen = trunk(layers="(1)1(1)", local_operator=("tssa", "xca"), global_operator="softmax")
    with pytest.raises(ValueError, match=r"trunk.local_operator 'xca' has no causal form"):
        generator_config("autoregressive", trunk=chosen)


def test_lists_survive_json():
    config = model_config(trunk=trunk())
    assert config_from_dict(json.loads(json.dumps(config_to_dict(config)))) == config


def test_a_wrong_entry_in_json_is_refused():
    values = config_to_dict(model_config(trunk=trunk()))
    values["face"]["trunk"]["local_operator"] = ["tssa", 3, "tssa"]
    with pytest.raises(ValueError, match=r"local_operator is .*: text or a list is wanted"):
        config_from_dict(values)


def test_yaml_and_the_command_line_take_a_list_or_one_operator(tmp_path):
    path = tmp_path / "model.yaml"
    path.write_text(YAML)
    found = settings.load(ModelConfig, path).face.trunk
    assert found.local_operator == ("tssa", "linformer@rank=3")
    assert found.exchange == "bixt"
    override = "face.trunk.global_operator=[softmax, xca]"
    assert settings.load(ModelConfig, path, [override]).face.trunk.global_operator == (
        "softmax",
        "xca",
    )
    override = "face.trunk.local_operator=xca"
    assert settings.load(ModelConfig, path, [override]).face.trunk.local_operator == "xca"
    with pytest.raises(
        UserError, match=r"model.yaml: local_operator has 3 entries.* make 2 blocks"
    ):
        settings.load(ModelConfig, path, ["face.trunk.local_operator=[tssa, tssa, xca]"])
    with pytest.raises(UserError, match=r"model.yaml: 'face.trunk.local_operator'.*in quotes"):
        settings.load(ModelConfig, path, ["face.trunk.local_operator=[tssa, 3]"])
