"""Parameter counts of facts/fit.md section 8.1, verified there against the official classes."""

import pytest
import torch

from fit_model.body import TrunkConfig
from fit_model.encoder import Encoder, EncoderConfig
from fit_model.flops import forward_macs, num_parameters
from fit_model.heads import RegressConfig
from fit_model.models import build
from fit_model.tokens import InputConfig
from tests.fit_model.examples import model_config, trunk_config

ROWS = [
    # layers, tokens, groups, latents, width, latent width, channels, heads, named, parameters
    ("(2)2(1)", 64, 4, 3, 32, 48, 12, 4, False, 107_216),
    ("(1)2(1)3", 64, 4, 3, 32, 48, 12, 4, False, 184_752),
    ("(1)1(1)", 16, 4, 2, 16, 16, 3, 2, False, 12_496),
    ("(1)1(1)1(1)", 32, 4, 2, 48, 32, 5, 4, False, 133_072),
    ("(1)1(1)", 32, 4, 2, 16, 24, 5, 2, True, 17_280),
    ("(2)4(2)4(2)", 256, 4, 16, 384, 384, 768, 6, False, 27_560_832),
    ("(2)4(2)4(2)", 1600, 16, 16, 768, 768, 768, 12, False, 109_560_576),
    ("(2)4(2)4(2)", 160_000, 1600, 4, 768, 768, 768, 12, False, 114_279_168),
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row[0]} {row[-1]}")
def test_the_encoder_has_the_official_number_of_parameters(row):
    layers, tokens, groups, latents, width, latent_width, channels, heads, named, wanted = row
    config = EncoderConfig(
        patch_px=1,
        trunk=TrunkConfig(
            layers=layers,
            width=width,
            latent_width=latent_width,
            latents_per_group=latents,
            heads=heads,
            latent_heads=heads,
        ),
        latent_position="learned",
        num_groups=groups,
        group_token="one_hot" if named else "none",
    )
    with torch.device("meta"):
        encoder = Encoder(config, num_tokens=tokens // groups, inputs=channels)
    assert sum(parameter.numel() for parameter in encoder.parameters()) == wanted


@pytest.mark.parametrize(
    "config",
    [
        model_config(),
        model_config(token_position="sin_cos_2d", latent_position="sin_cos_2d", num_groups=4),
        model_config(latent_position="learned", num_groups=6, group_token="one_hot"),
        model_config(
            trunk=trunk_config(layers="(1)2(2)", width=30, heads=5, latent_heads=8, mlp_ratio=3),
            head=RegressConfig(
                targets=("age",), target_mean=(3.0,), target_std=(2.0,), pool="tokens"
            ),
        ),
    ],
)
def test_parameters_are_known_without_building_the_model(config):
    assert num_parameters(config) == sum(p.numel() for p in build(config).parameters())


def large(*, group_side_px, latents, width):
    return model_config(
        trunk=TrunkConfig(
            layers="(2)4(2)4(2)",
            width=width,
            latent_width=width,
            latents_per_group=latents,
            heads=6,
            latent_heads=6,
        ),
        pixels=InputConfig(
            bands=3, group_side_px=group_side_px, band_mean=(0.0,) * 3, band_std=(1.0,) * 3
        ),
        head=RegressConfig(targets=("x",), target_mean=(0.0,), target_std=(1.0,), pool="tokens"),
    )


@pytest.mark.parametrize(
    ("config", "groups", "wanted", "within"),
    [
        (large(group_side_px=32, latents=16, width=384), 4, 4_190_109_696, 0),
        (large(group_side_px=40, latents=16, width=768), 16, 9.458e10, 5e6),
        (large(group_side_px=40, latents=4, width=768), 1600, 8.691e12, 5e8),
    ],
)
def test_multiply_adds_are_those_of_the_facts(config, groups, wanted, within):
    # The facts count patches of 16 px; here they are 4 px, which changes the stem alone.
    tokens = groups * config.num_tokens
    stem = tokens * (768 - config.patch_channels) * config.face.trunk.width
    assert abs(forward_macs(config, [groups]) + stem - wanted) <= within


def test_images_of_a_batch_cost_what_they_cost_alone():
    config = model_config()
    assert forward_macs(config, [3, 7]) == forward_macs(config, [3]) + forward_macs(config, [7])
