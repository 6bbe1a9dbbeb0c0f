"""Parameter counts of facts/fit.md section 8.1, verified there against the official classes."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from fit_model.autoregressive import AutoregressiveConfig, Decoder
from fit_model.denoiser import Denoiser, DiffusionConfig
from fit_model.encoder import Encoder, EncoderConfig
from fit_model.flops import (
    decoder_parameters,
    denoiser_parameters,
    encoder_parameters,
    forward_macs,
    num_parameters,
    training_macs,
)
from fit_model.heads import RegressConfig
from fit_model.models import build
from fit_model.tokens import InputConfig
from fit_model.trunk_config import TrunkConfig
from tests.fit_model.examples import image, model_config, trunk_config
from tests.fit_model.generators import batch_of, generator_config, head, pixels, targets_of

SMALL = {"layers": "(2)2(1)", "width": 32, "latent_width": 48, "latents_per_group": 3}
LARGE = {"layers": "(2)4(2)4(2)", "width": 256, "latent_width": 512}


def count(model) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def trunk(*, heads=4, **size):
    return TrunkConfig(heads=heads, latent_heads=heads, **size)


ENCODERS = [
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


@pytest.mark.parametrize("row", ENCODERS, ids=lambda row: f"{row[0]} {row[-1]}")
def test_the_encoder_has_the_official_number_of_parameters(row):
    layers, tokens, groups, latents, width, latent_width, channels, heads, named, wanted = row
    size = {"width": width, "latent_width": latent_width, "latents_per_group": latents}
    config = EncoderConfig(
        patch_px=1,
        trunk=trunk(layers=layers, heads=heads, **size),
        latent_position="learned",
        num_groups=groups,
        group_token="one_hot" if named else "none",
    )
    with torch.device("meta"):
        encoder = Encoder(config, num_tokens=tokens // groups, inputs=channels)
    assert count(encoder) == wanted
    assert encoder_parameters(config, num_tokens=tokens // groups, inputs=channels) == wanted


DENOISERS = [
    # trunk, self-conditioning, tokens of a group, channels, classes, parameters
    (SMALL, "none", 16, 12, 10, 120_620),
    (SMALL, "latent", 16, 12, 10, 139_484),
    (SMALL | {"after_exchange": "feed_forward"}, "none", 16, 12, 10, 147_804),
    (SMALL | {"local_mixing": "none"}, "none", 16, 12, 10, 107_756),
    (LARGE | {"latents_per_group": 32}, "latent", 64, 48, 1000, 36_697_392),
]


@pytest.mark.parametrize("row", DENOISERS, ids=lambda row: str(row[-1]))
def test_the_denoiser_has_the_official_number_of_parameters(row):
    size, self_conditioning, tokens, channels, classes, wanted = row
    config = DiffusionConfig(
        patch_px=1,
        trunk=trunk(**size),
        latent_position="learned",
        num_groups=4,
        self_conditioning=self_conditioning,
    )
    shape = {"num_tokens": tokens, "inputs": channels, "num_classes": classes}
    with torch.device("meta"):
        denoiser = Denoiser(config, **shape)
    assert count(denoiser) == wanted
    assert denoiser_parameters(config, **shape) == wanted


DECODERS = [
    # trunk, embedding, bias, tokens of a group, groups, parameters
    (SMALL, "shared", "learned", 12, 4, 114_960),
    (SMALL, "separate", "none", 12, 4, 122_896),
    (LARGE | {"latents_per_group": 8}, "shared", "learned", 192, 64, 31_918_848),
]


@pytest.mark.parametrize("row", DECODERS, ids=lambda row: str(row[-1]))
def test_the_autoregressive_decoder_has_the_official_number_of_parameters(row):
    size, embedding, output_bias, tokens, groups, wanted = row
    config = AutoregressiveConfig(
        patch_px=1,
        trunk=trunk(**size),
        latent_position="learned",
        num_groups=groups,
        embedding=embedding,
        output_bias=output_bias,
    )
    with torch.device("meta"):
        decoder = Decoder(config, num_tokens=tokens)
    assert count(decoder) == wanted
    assert decoder_parameters(config, num_tokens=tokens, num_classes=0) == wanted


TRUNKS = [
    trunk_config(layers="(1)2(1)1(2)", mlp_ratio=3),
    trunk_config(layers="(1)2(1)", key_norm="none", after_exchange="feed_forward"),
    trunk_config(layers="(2)1(1)", local_mixing="none", width=30, heads=5, latent_heads=8),
    trunk_config(layers="(2)1(0)"),
    trunk_config(layers="(0)1(0)1(0)"),
]
OPTIONS = {
    "diffusion": [
        {},
        {"classes": ()},
        {"self_conditioning": "none"},
        {"token_position": "sin_cos_2d", "latent_position": "sin_cos_2d", "num_groups": 4},
        {"token_position": "sin_cos", "latent_position": "learned", "num_groups": 4},
        *({"trunk": trunk} for trunk in TRUNKS),
    ],
    "autoregressive": [
        {},
        {"classes": ()},
        {"embedding": "separate", "output_bias": "none", "num_levels": 17},
        {"token_position": "sin_cos", "latent_position": "sin_cos_2d", "num_groups": 16},
        {"embedding": "separate", "latent_position": "learned", "num_groups": 16},
        *({"trunk": trunk} for trunk in TRUNKS),
    ],
}


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
        *(
            generator_config(kind, **options)
            for kind, choices in OPTIONS.items()
            for options in choices
        ),
    ],
)
def test_parameters_are_known_without_building_the_model(config):
    with torch.device("meta"):
        model = build(config)
    assert num_parameters(config) == count(model)


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
    for config in (model_config(), *(generator_config(kind) for kind in OPTIONS)):
        assert forward_macs(config, [3, 7]) == forward_macs(config, [3]) + forward_macs(config, [7])


def counted(run) -> int:
    """Multiply-adds that PyTorch counts in its matrix products."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        run()
    return counter.get_total_flops() // 2


@pytest.mark.parametrize(
    ("kind", "options"),
    [(kind, options) for kind, choices in OPTIONS.items() for options in choices],
    ids=str,
)
def test_generators_cost_as_many_multiply_adds_as_pytorch_counts(kind, options):
    model = build(generator_config(kind, **options))
    batch, size = batch_of([image(2, 2, seed=seed) for seed in (1, 2)]), model.face.trunk
    targets, seeds = targets_of(model, 2), torch.arange(2)
    found = counted(lambda: model.losses(batch, targets, seeds=seeds))
    named, passes, apart, prediction = len(model.head.classes), 1, 0, 0
    if kind == "diffusion":
        # what is left out, an image and a pass: the tokens of time and class, and, a latent, the
        # thought about the step before
        e = size.latent_width
        passes = 2 if model.face.self_conditioning == "latent" else 1
        apart = 2 * passes * ((e // 4) * e + e * e + named * e)
        if passes == 2:
            apart += passes * 8 * size.latents_per_group * 2 * size.mlp_ratio * e * e
            # nobody asks what the first pass predicts
            apart -= (prediction := 8 * model.config.num_tokens * 32 * size.width)
    elif named:
        apart = 2 * named * size.width
    assert found - apart == passes * forward_macs(model.config, [4, 4])
    wanted = (2 + passes) * forward_macs(model.config, [4, 4]) - prediction
    assert training_macs(model.config, [4, 4]) == wanted


def test_a_pixel_more_of_every_patch_costs_the_stem_and_the_projection():
    small, wide = (
        generator_config("diffusion", source=pixels(bands=bands), makes=head()) for bands in (1, 3)
    )
    tokens = 5 * small.num_tokens
    assert forward_macs(wide, [5]) - forward_macs(small, [5]) == tokens * 2 * 16 * 2 * 12
