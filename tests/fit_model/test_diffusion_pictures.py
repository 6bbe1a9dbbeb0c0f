"""Pictures of a diffusion model: each depends on its own seed and class, and fits the images."""

from dataclasses import replace

import pytest
import torch

from fit_model.samplers import SamplingConfig
from tests.fit_model.examples import BANDS, SIDE_PX, image
from tests.fit_model.generators import (
    CLASSES,
    IMAGES,
    batch_of,
    head,
    model_of,
    seeds_of,
    single_groups,
    targets_of,
)

STEPS = SamplingConfig(steps=3)


def generate(model, places, *, seeds, targets="all", sampling=STEPS, **others):
    if isinstance(targets, str):
        targets = targets_of(model, places.num_images)
    return model.generate(places, targets=targets, seeds=seeds, sampling=sampling, **others)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "ddpm@small"])
@pytest.mark.parametrize("face", [{}, {"normalize_input": "deviation"}, {"classes": ()}], ids=str)
def test_a_picture_depends_on_its_own_seed_and_class_alone(sampler, face):
    makes = head(classes=face.get("classes", CLASSES), pixel_dtype="float32")
    model = model_of("diffusion", makes=makes, prediction="v", **face)
    sampling, batch, seeds = replace(STEPS, sampler=sampler), batch_of(), seeds_of(4)
    together = generate(model, batch.places, seeds=seeds, sampling=sampling)
    assert torch.equal(generate(model, batch.places, seeds=seeds, sampling=sampling), together)
    targets = targets_of(model, 4)
    for order in ([1], [2, 0]):
        alone = generate(
            model,
            batch_of([IMAGES[number] for number in order]).places,
            seeds=seeds[order],
            targets=None if targets is None else targets[order],
            sampling=sampling,
        )
        mine = torch.cat([together[batch.image == number] for number in order])
        # ddpm's first step magnifies rounding, and sums over a batch round in another order
        atol = 0.05 if sampler == "ddim" else 2.0
        torch.testing.assert_close(alone, mine, rtol=0, atol=atol)
    other = generate(model, batch.places, seeds=seeds + 100, sampling=sampling)
    assert (other - together).abs().mean() > 20


def test_the_class_that_is_asked_for_and_guidance_change_the_picture():
    model, places = model_of("diffusion"), single_groups(2)
    seeds, night, day = torch.tensor([5, 5]), torch.tensor([0, 0]), torch.tensor([0, 2])
    plain = generate(model, places, seeds=seeds, targets=night)
    assert torch.equal(plain[0], plain[1])
    asked = generate(model, places, seeds=seeds, targets=day)
    assert torch.equal(asked[0], plain[0])
    assert not torch.equal(asked[1], plain[1])
    stronger = generate(
        model, places, seeds=seeds, targets=day, sampling=replace(STEPS, guidance=3.0)
    )
    assert not torch.equal(stronger[1], asked[1])


@pytest.mark.parametrize(
    ("dtype", "low", "high"),
    [("uint8", 0.0, 255.0), ("uint8", 0.0, 16.0), ("uint16", 100.0, 40_000.0),
     ("int16", -500.0, 700.0), ("float32", -1.5, 2.0)],
)  # fmt: skip
def test_pixels_have_the_dtype_the_shape_and_the_range_of_the_images(dtype, low, high):
    model = model_of("diffusion", makes=head(pixel_dtype=dtype, pixel_low=low, pixel_high=high))
    batch = batch_of()
    found = generate(model, batch.places, seeds=seeds_of(4))
    assert found.shape == (len(batch.image), SIDE_PX, SIDE_PX, BANDS)
    assert str(found.dtype) == f"torch.{dtype}"
    wide = found.to(torch.float64)
    assert (wide.min(), wide.max()) == (low, high)  # a random network reaches both ends


def test_a_network_that_knows_the_picture_draws_it():
    """Picture predictions of a constant come out as that constant, input scale undone."""
    for scale, constant, wanted in ((1.0, 0.5, 191), (0.5, 0.25, 191), (0.5, 2.0, 255)):
        model = model_of("diffusion", prediction="x", input_scale=scale)
        with torch.no_grad():
            model.denoiser.project.weight.zero_()
            model.denoiser.project.bias.fill_(constant)
        found = generate(model, single_groups(2), seeds=seeds_of(2))
        assert (found == wanted).all()


def test_patches_are_put_together_as_they_are_taken_apart():
    """A network that predicts the patches of a picture draws that picture."""
    model, wanted = model_of("diffusion", prediction="x"), image(2, 2, seed=8)
    clean = model.pictures(wanted, seeds_of(1)).pair(slice(0, 4)).clean
    model.denoiser.forward = lambda *_, **__: type(
        "Known", (), {"patches": clean, "latents": torch.zeros(4, 3, 16)}
    )
    found = generate(model, wanted.places, seeds=seeds_of(1))
    assert torch.equal(found, wanted.pixels)


def test_progress_is_told_after_every_step():
    seen = []
    generate(
        model_of("diffusion"), single_groups(1), seeds=seeds_of(1), progress=lambda: seen.append(1)
    )
    assert len(seen) == STEPS.steps


def test_sampling_may_follow_another_schedule():
    model, places = model_of("diffusion", makes=head(pixel_dtype="float32")), single_groups(1)
    usual, other, same = (
        generate(model, places, seeds=seeds_of(1), sampling=replace(STEPS, schedule=name))
        for name in (None, "simple_linear", "cosine")
    )
    assert torch.equal(usual, same)
    assert not torch.allclose(usual, other)


@pytest.mark.parametrize(
    ("face", "said"),
    [
        ({"classes": ()}, "guidance 2 needs labels.*leave guidance at 0"),
        ({"label_dropout": 0.0}, "guidance 2 compares with no label.*label_dropout above 0"),
    ],
)
def test_guidance_that_nothing_was_trained_for_is_refused(face, said):
    with pytest.raises(ValueError, match=said):
        generate(
            model_of("diffusion", **face),
            single_groups(1),
            seeds=seeds_of(1),
            sampling=SamplingConfig(guidance=2.0),
        )


@pytest.mark.parametrize(
    ("targets", "said"),
    [(torch.tensor([3]), "class number 3"), (None, "with labels: name one of night, dawn, day")],
)
def test_classes_that_were_never_seen_are_refused(targets, said):
    model = model_of("diffusion")
    with pytest.raises(ValueError, match=said):
        generate(model, single_groups(1), seeds=seeds_of(1), targets=targets)
    with pytest.raises(ValueError, match=said):
        model.losses(image(1, 1), targets, seeds=seeds_of(1))
