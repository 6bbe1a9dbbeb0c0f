"""Bits a sub-pixel: of fresh models, against plain loops, image by image."""

import math
from dataclasses import replace

import pytest
import torch

from fit_model import autoregressive, recompute
from fit_model.layout import ImageLayout
from fit_model.models import build
from fit_model.subpixels import shifted
from tests.fit_model.examples import image
from tests.fit_model.generators import (
    IMAGES,
    TRUNK,
    batch_of,
    generator_config,
    model_of,
    seeds_of,
    targets_of,
)

KIND = "autoregressive"


@pytest.mark.parametrize("num_levels", [2, 7, 17, 256])
@pytest.mark.parametrize("embedding", ["shared", "separate"])
def test_a_fresh_model_needs_about_the_logarithm_of_the_levels(num_levels, embedding):
    torch.manual_seed(0)
    config = generator_config(KIND, num_levels=num_levels, embedding=embedding)
    model = build(config)
    batch = batch_of([image(2, 2, seed=seed) for seed in range(4)])
    with torch.no_grad():
        found = model.losses(batch, targets_of(model, 4), seeds=seeds_of(4))
    assert (found - math.log2(num_levels)).abs().max() < 0.06


def bits_alone(model, batch, label):
    """Mean -log2 of the probability of what is there, a sub-pixel at a time."""
    read = model.sequences(batch)
    decoder, places = model.decoder, read.places
    images = ImageLayout.of(
        places.image, num_images=1, latents_per_group=model.face.trunk.latents_per_group,
    )  # fmt: skip
    classes = None if label is None else torch.eye(3)[label][None]
    tokens = decoder(shifted(read.levels, images), places, images, classes=classes)
    logits = decoder.logits(tokens).flatten(0, 1)
    total = 0.0
    for row, level in zip(logits.tolist(), read.levels.flatten().tolist(), strict=True):
        largest = max(row)
        normaliser = math.fsum(math.exp(logit - largest) for logit in row)
        total -= (row[level] - largest - math.log(normaliser)) / math.log(2)
    return total / len(logits)


SETTINGS = [
    {},
    {"order": "raster", "embedding": "separate", "output_bias": "none"},
    {"num_levels": 17, "classes": ()},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("positions_a_part", [1, 100, 1 << 17])
@torch.no_grad()
def test_bits_are_those_of_a_loop_in_parts_of_any_size(settings, positions_a_part, monkeypatch):
    monkeypatch.setattr(recompute, "POSITIONS_A_PART", positions_a_part)
    monkeypatch.setattr(autoregressive, "LOGITS_A_PART", positions_a_part)
    trunk = replace(TRUNK, checkpointing="layer")
    model = model_of(KIND, trunk=trunk, **settings).double()
    targets = targets_of(model, len(IMAGES))
    found = model.losses(batch_of(), targets, seeds=seeds_of(4))
    for number, alone in enumerate(IMAGES):
        wanted = bits_alone(model, alone, None if targets is None else int(targets[number]))
        assert float(found[number]) == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("learning", [True, False])
def test_with_recomputation_logits_are_never_there_for_more_than_a_part(learning, monkeypatch):
    model, seen = model_of(KIND, trunk=replace(TRUNK, checkpointing="layer")), []
    whole = model.decoder.logits
    monkeypatch.setattr(autoregressive, "LOGITS_A_PART", 100 * model.face.num_levels)
    monkeypatch.setattr(
        model.decoder, "logits", lambda tokens: seen.append(len(tokens)) or whole(tokens)
    )
    with torch.set_grad_enabled(learning):
        model.losses(batch_of(), targets_of(model, 4), seeds=seeds_of(4))
    assert set(seen) == {3}  # patches of 32 sub-pixels each
    assert len(seen) == sum(4 * len(each.image) for each in IMAGES) / 3


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@torch.no_grad()
def test_no_batch_mate_changes_bits_or_a_measure(settings):
    model = model_of(KIND, label_dropout=0.5, **settings).double()
    targets, seeds = targets_of(model, 4), seeds_of(4)
    for ask in (model.losses, model.measures):
        together = ask(batch_of(), targets, seeds=seeds)
        for order in ([0], [2], [3, 1]):
            images = [IMAGES[number] for number in order]
            mine = None if targets is None else targets[order]
            alone = ask(batch_of(images), mine, seeds=seeds[order])
            torch.testing.assert_close(alone, together[order], rtol=1e-12, atol=0)


@torch.no_grad()
def test_labels_are_withheld_as_often_as_configured_and_then_change_nothing():
    model, count = model_of(KIND, label_dropout=0.3), 4000
    assert abs(model.named(torch.arange(count)).mean() - 0.7) < 0.025
    seeds = seeds_of(12)
    named = model.named(seeds).bool()
    assert 0 < named.sum() < 12
    batch = batch_of([image(1, 1, seed=number) for number in range(12)])
    night, day = (model.losses(batch, torch.full((12,), k), seeds=seeds) for k in (0, 2))
    assert ((night != day) == named).all()
    measured = [model.measures(batch, torch.full((12,), k), seeds=seeds)[:, 0] for k in (0, 2)]
    assert (measured[0] != measured[1]).all()
    assert torch.equal(measured[0][named], night[named])


@torch.no_grad()
def test_without_label_dropout_every_label_is_told():
    model = model_of(KIND)
    assert (model.named(torch.arange(1000)) == 1).all()
    assert torch.equal(
        model.losses(batch_of(), targets_of(model, 4), seeds=seeds_of(4)),
        model.measures(batch_of(), targets_of(model, 4), seeds=seeds_of(4))[:, 0],
    )


@pytest.mark.parametrize(
    ("targets", "said"), [(torch.tensor([3]), "class number 3"), (None, "with labels: name one")]
)
def test_classes_that_the_model_does_not_know_are_refused(targets, said):
    with pytest.raises(ValueError, match=said):
        model_of(KIND).losses(image(1, 1), targets, seeds=seeds_of(1))


def test_tables_of_latents_know_one_number_of_patches_along_the_sequence():
    model = model_of(KIND, latent_position="learned", num_groups=16).double()
    targets, seeds = torch.tensor([0]), seeds_of(1)
    with torch.no_grad():
        wanted = model.losses(image(2, 2), targets, seeds=seeds)
        gap = model.losses(image(2, 2, stored=[0, 3]), targets, seeds=seeds)
    assert wanted.isfinite().all()
    assert gap.isfinite().all()
    with pytest.raises(ValueError, match=r"16 groups, not \[24\]"):
        model.losses(image(2, 3), targets, seeds=seeds)


@pytest.mark.parametrize("order", ["snake", "raster"])
def test_row_t_of_the_table_of_latents_belongs_to_patch_t_of_the_sequence(order):
    model = model_of(KIND, latent_position="learned", num_groups=16, order=order)
    places = model.sequences(image(2, 2)).places
    rows = model.decoder.latent_position.table.unflatten(0, (16, -1))
    assert torch.equal(model.decoder.latents(places), rows)
