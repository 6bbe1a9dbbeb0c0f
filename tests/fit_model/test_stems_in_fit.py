"""Stems of convolutions in FIT: groups and what lies outside them stay apart."""

import json
from dataclasses import replace

import pytest
import torch

from fit_model import weights
from fit_model.flops import forward_macs, num_parameters
from fit_model.groups import collate
from fit_model.model import ModelConfig
from fit_model.models import build, config_from_dict, config_to_dict
from fit_model.stems import build_stem
from fit_model.tokens import normalized, patches_of
from jobs import settings
from tests.fit_model.examples import BANDS, PATCH_PX, image, model_config, randomize
from tests.fit_model.generators import seeds_of
from tests.fit_model.test_operators_by_block import YAML
from tests.fit_model.test_parameters import count, counted

STEMS = ["linear@norm=none", "convolutions", "xcit"]
IMAGES = [
    image(2, 2, seed=1, height_px=13, width_px=10, nodata=7.0),
    image(3, 5, stored=[0, 3, 11], seed=2),
    image(1, 1, seed=3),
]


def model_of(stem):
    return randomize(build(model_config(stem=stem))).double()


@pytest.mark.parametrize("stem", STEMS)
@torch.no_grad()
def test_patches_get_the_tokens_that_their_squares_get(stem):
    model = model_of(stem)
    squares = normalized(collate(IMAGES), config=model.config.input)
    alone = build_stem(stem, patch_px=PATCH_PX, bands=BANDS, width=12).double()
    own = [each.clone() for each in model.encoder.stem.parameters()]
    for parameter, value in zip(alone.parameters(), own, strict=True):
        parameter.copy_(value)
    tokens = model.encoder.stem(patches_of(squares, patch_px=PATCH_PX))
    torch.testing.assert_close(tokens, alone(squares), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("stem", STEMS)
@torch.no_grad()
def test_no_batch_mate_changes_an_image_even_while_the_model_learns(stem):
    model = model_of(stem).train()
    together = model(collate(IMAGES))
    for number, alone in enumerate(IMAGES):
        torch.testing.assert_close(model(alone)[0], together[number], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("stem", STEMS)
@torch.no_grad()
def test_what_lies_outside_an_image_and_what_is_missing_in_it_changes_nothing(stem):
    model = model_of(stem)
    batch = IMAGES[0]
    before = model(batch)
    pixels = batch.pixels.clone()
    pixels[1, :, 2:] += 50  # of 10 columns the second group has two
    pixels[2, 5:] += 50  # of 13 rows the third has five
    assert torch.equal(model(replace(batch, pixels=pixels)), before)
    pixels[0, 3:5, 3:6] = 7
    missing = model(replace(batch, pixels=pixels))
    other = replace(batch, nodata=torch.full((1,), 251.0, dtype=torch.float64))
    pixels = pixels.masked_fill(pixels == 7, 251)
    torch.testing.assert_close(model(replace(other, pixels=pixels)), missing)
    assert not torch.allclose(missing, before)


@pytest.mark.parametrize("stem", STEMS)
def test_a_stem_learns_and_costs_what_is_said(stem, tmp_path):
    config = model_config(stem=stem)
    model = randomize(build(config)).eval()
    assert num_parameters(config) == count(model)
    pooled = model.head.project.in_features * model.head.project.out_features
    assert counted(lambda: model(image(2, 2))) - pooled == forward_macs(config, [4])
    model.losses(collate(IMAGES), torch.tensor([0, 1, 2]), seeds=seeds_of(3)).sum().backward()
    assert all(each.grad.abs().max() > 1e-9 for each in model.encoder.stem.parameters())
    weights.save(model, tmp_path)
    with torch.no_grad():
        assert torch.equal(weights.load(tmp_path)(image(2, 2)), model(image(2, 2)))


def test_a_stem_survives_json_and_is_read_from_yaml(tmp_path):
    config = model_config(stem="xcit")
    assert config_from_dict(json.loads(json.dumps(config_to_dict(config)))) == config
    path = tmp_path / "model.yaml"
    path.write_text(YAML)
    assert settings.load(ModelConfig, path).face.stem == "linear"
    assert settings.load(ModelConfig, path, ["face.stem=convolutions"]).face.stem == "convolutions"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"stem": "xcit@norm=batch"}, "stem 'xcit@norm=batch' would let the groups of a batch"),
        ({"stem": "convolution"}, "stem is 'convolution': did you mean 'convolutions'"),
        ({"stem": "convolutions", "patch_px": 16}, "'convolutions' makes patches of 1, 2, 4, 8 px"),
        ({"stem": "xcit", "patch_px": 16}, "width 12 is no multiple of 8"),
    ],
)
def test_a_stem_that_does_not_fit_is_refused_with_the_configuration(changes, says):
    face = model_config().face
    with pytest.raises(ValueError, match=says):
        replace(face, **changes)
