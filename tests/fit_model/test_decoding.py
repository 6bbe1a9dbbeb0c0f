"""Drawing with caches gives exactly what running the whole decoder for every sub-pixel gives."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fit_model.autoregressive import AutoregressiveConfig, Decoder
from fit_model.choosing import DecodingConfig
from fit_model.decoding import decode
from fit_model.groups import Places
from fit_model.subpixels import sequence_order, shifted
from fit_model.trunk_config import TrunkConfig
from tests.fit_model.examples import randomize

IMAGES, ROWS, COLUMNS, TOKENS, LEVELS = 3, 2, 2, 4, 16
SEEDS = torch.tensor([11, 5, 8])
CLASSES = torch.eye(3)


def patches(*, images=IMAGES, order="snake"):
    """A grid of patches an image, in the order of its sequence."""
    number = torch.arange(ROWS * COLUMNS).repeat(images)
    places = Places(
        image=torch.arange(images).repeat_interleave(ROWS * COLUMNS),
        row=number // COLUMNS,
        column=number % COLUMNS,
        grid_rows=torch.full((images,), ROWS),
        grid_columns=torch.full((images,), COLUMNS),
    )
    return places.take(sequence_order(places, order=order))


def decoder(*, num_classes=3, num_tokens=TOKENS, num_levels=LEVELS, face=None, **trunk):
    size = {"width": 16, "latent_width": 12, "heads": 2, "latent_heads": 3, "latents_per_group": 2}
    config = AutoregressiveConfig(
        patch_px=2,
        trunk=TrunkConfig(**({"layers": "(1)2(1)1(1)"} | size | trunk)),
        num_levels=num_levels,
        **(face or {}),
    )
    return randomize(Decoder(config, num_tokens=num_tokens, num_classes=num_classes)).double()


def draw(model, *, classes=CLASSES, seeds=SEEDS, sampling=None, **arguments):
    images = len(seeds)
    return decode(
        model,
        patches(images=images, order=model.config.order),
        num_tokens=TOKENS,
        classes=classes,
        seeds=seeds,
        config=sampling or DecodingConfig(),
        **arguments,
    )


def require_same(model, **arguments):
    for dtype in (torch.float64, torch.float32):
        model = model.to(dtype)
        plain = draw(model, reader="plain", **arguments)
        assert torch.equal(draw(model, **arguments), plain)
        assert len(plain.unique()) > 1


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"layers": "(2)"},
        {"layers": "(0)1(1)"},
        {"layers": "(2)2(0)1(2)"},
        {"local_mixing": "none"},
        {"after_exchange": "feed_forward"},
        {"key_norm": "none"},
        {"after_exchange": "feed_forward", "local_mixing": "none", "key_norm": "none"},
        {"local_operator": "softmax_reference", "global_operator": "softmax_reference"},
        {"dropout": 0.4, "drop_path": 0.4, "checkpointing": "layer"},
        {"width": 8, "latent_width": 24, "latents_per_group": 1, "heads": 4, "latent_heads": 2},
        {"num_classes": 0},
        {"face": {"embedding": "separate", "output_bias": "none", "order": "raster"}},
        {"face": {"token_position": "sin_cos", "latent_position": "learned", "num_groups": 4}},
        {
            "face": {
                "token_position": "sin_cos_2d",
                "latent_position": "sin_cos_2d",
                "num_groups": 4,
            }
        },
    ],
    ids=str,
)
def test_caches_change_no_level_whatever_the_decoder(changes):
    model = decoder(**changes)
    require_same(model, classes=None if changes.get("num_classes") == 0 else CLASSES)
    assert model.training


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.0},
        {"temperature": 0.6, "top_k": 5},
        {"top_p": 0.7},
        {"guidance": 2.0},
        {"guidance": 0.5, "temperature": 0.0, "top_k": 3},
    ],
    ids=str,
)
def test_caches_change_no_level_whatever_is_chosen(settings):
    require_same(decoder(), sampling=DecodingConfig(**settings))


@pytest.mark.parametrize("num_known", [1, 3, 4])
@pytest.mark.parametrize("guidance", [0.0, 1.0])
def test_caches_change_no_level_of_a_completed_image(num_known, guidance):
    generator = torch.Generator().manual_seed(2)
    known = torch.randint(0, LEVELS, (IMAGES * num_known, TOKENS), generator=generator)
    sampling = DecodingConfig(guidance=guidance)
    model = decoder()
    require_same(model, known=known, sampling=sampling)
    found = draw(model, known=known, sampling=sampling).unflatten(0, (IMAGES, -1))
    assert torch.equal(found[:, :num_known].flatten(0, 1), known)


def test_an_image_completed_from_its_own_beginning_is_the_same_image():
    model = decoder()
    whole = draw(model)
    known = whole.unflatten(0, (IMAGES, -1))[:, :2].flatten(0, 1)
    assert torch.equal(draw(model, known=known), whole)


def test_what_is_known_leads_to_other_levels_behind_it():
    model = decoder()
    whole = draw(model).unflatten(0, (IMAGES, -1))
    known = (whole[:, :1] + LEVELS // 2) % LEVELS
    completed = draw(model, known=known.flatten(0, 1)).unflatten(0, (IMAGES, -1))
    assert (completed[:, 1:] != whole[:, 1:]).any()


@pytest.mark.parametrize("guidance", [0.0, 1.0])
def test_an_image_depends_on_its_own_seed_and_class_and_on_nobody_else(guidance):
    model, sampling = decoder(), DecodingConfig(guidance=guidance)
    together = draw(model, sampling=sampling).chunk(IMAGES)
    for image, levels in enumerate(together):
        one = slice(image, image + 1)
        alone = draw(model, classes=CLASSES[one], seeds=SEEDS[one], sampling=sampling)
        assert torch.equal(alone, levels)
    other_seed = draw(model, seeds=SEEDS + 1, sampling=sampling).chunk(IMAGES)
    other_class = draw(model, classes=CLASSES.flip(1), sampling=sampling).chunk(IMAGES)
    assert not torch.equal(other_seed[0], together[0])
    assert not torch.equal(other_class[0], together[0])
    assert torch.equal(other_class[1], together[1])


def test_guidance_without_effect_of_the_label_changes_nothing():
    model = decoder()
    with torch.no_grad():
        model.classes.zero_()
    guided = draw(model, sampling=DecodingConfig(guidance=3.0))
    assert torch.equal(guided, draw(model))


def test_the_likeliest_levels_are_the_decoders_own_maxima():
    model = decoder()
    places = patches()
    images = model.layout(places)
    found = draw(model, sampling=DecodingConfig(temperature=0.0))
    with torch.no_grad():
        tokens = model.eval()(shifted(found, images), places, images, classes=CLASSES)
    assert torch.equal(model.logits(tokens).argmax(-1), found)


def test_images_come_as_often_as_the_decoder_says():
    model = decoder(num_levels=2, num_tokens=1, num_classes=0).eval()
    count, pairs = 4000, torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]])
    row = {"device": torch.device("cpu"), "num_groups": 2}
    found = decode(
        model,
        Places.in_one_row(num_images=count, **row),
        num_tokens=1,
        classes=None,
        seeds=torch.arange(count),
        config=DecodingConfig(),
    ).view(count, 2)
    with torch.no_grad():
        places, levels = Places.in_one_row(num_images=4, **row), pairs.view(-1, 1)
        images = model.layout(places)
        nats = model.nats(model(shifted(levels, images), places, images), levels)
        bits = images.total(nats[:, None])[:, 0] / 2 / np.log(2.0)
    wanted = count * np.exp2(-2.0 * bits.numpy())
    seen = np.bincount((2 * found[:, 0] + found[:, 1]).numpy(), minlength=4)
    assert wanted.sum() == pytest.approx(count)
    assert wanted.min() > 50
    assert ((seen - wanted) ** 2 / wanted).sum() < 11.3  # 99 %, 3 degrees of freedom


def test_progress_is_told_of_every_patch_that_is_drawn():
    told = []
    known = torch.zeros(IMAGES * 2, TOKENS, dtype=torch.int64)
    draw(decoder(), known=known, progress=lambda: told.append(None))
    assert len(told) == ROWS * COLUMNS - 2


@pytest.mark.parametrize("num_known", [5, IMAGES * (ROWS * COLUMNS + 1)])
def test_known_patches_that_do_not_fit_the_images_are_refused(num_known):
    known = torch.zeros(num_known, TOKENS, dtype=torch.int64)
    with pytest.raises(ValueError, match=f"{num_known} known patches do not fit 3 images of 4"):
        draw(decoder(), known=known)


def test_images_of_different_sizes_are_not_drawn_together():
    places = replace(patches(images=2), image=torch.tensor([0] * 3 + [1] * 5))
    with pytest.raises(ValueError, match=r"images of \[3, 5\] patches"):
        decode(
            decoder(num_classes=0),
            places,
            num_tokens=TOKENS,
            classes=None,
            seeds=SEEDS[:2],
            config=DecodingConfig(),
        )
