"""Training and measuring a diffusion model: against plain loops, image by image."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fit_model.diffusion import MEASURED_TIMES
from fit_model.diffusion_course import group_noise
from tests.fit_model.examples import PATCH_PX, SIDE_PX, image
from tests.fit_model.generators import (
    CLASSES,
    IMAGES,
    batch_of,
    model_of,
    seeds_of,
    targets_of,
)
from tests.fit_model.numpy_sampling import gamma_of


def losses(model, images=IMAGES, *, start=40, targets=None, seeds=None):
    seeds = seeds_of(len(images), start=start) if seeds is None else seeds
    targets = targets_of(model, len(images)) if targets is None else targets
    with torch.no_grad():
        return model.losses(batch_of(images), targets, seeds=seeds)


def patches(pixels):
    """Groups of pixels cut into patches by hand."""
    cut = [
        pixels[:, y : y + PATCH_PX, x : x + PATCH_PX].reshape(len(pixels), -1)
        for y in range(0, SIDE_PX, PATCH_PX)
        for x in range(0, SIDE_PX, PATCH_PX)
    ]
    return np.stack(cut, 1)


def loss_alone(model, batch, *, gamma, noise, shown, label):
    """The loss of one image in float64, from the formulas of the facts."""
    face, b = model.face, model.face.input_scale
    clean = (2 * patches(batch.pixels.numpy().astype(np.float64)) / 255 - 1) * b
    noise = noise.numpy().astype(np.float64)
    noisy = np.sqrt(gamma) * clean + np.sqrt(1 - gamma) * noise
    seen = noisy / noisy.std() if face.normalize_input == "deviation" else noisy

    def network(before):
        return model.denoiser(
            torch.from_numpy(seen), batch.places, gamma=torch.tensor([gamma]).float(),
            classes=None if label is None else torch.from_numpy(label)[None], before=before,
        )  # fmt: skip

    before = None
    if face.self_conditioning == "latent" and shown:
        before = network(None).latents
    out = network(before).patches.numpy()
    if face.loss == "eps":
        found = {
            "eps": lambda: out,
            "x": lambda: (noisy - np.sqrt(gamma) * out) / np.sqrt(1 - gamma),
            "v": lambda: np.sqrt(1 - gamma) * noisy + np.sqrt(gamma) * out,
        }[face.prediction]()
        return ((found - noise) ** 2).mean()
    found = {
        "eps": lambda: (noisy - np.sqrt(1 - gamma) * out) / np.sqrt(gamma),
        "x": lambda: out,
        "v": lambda: np.sqrt(gamma) * noisy - np.sqrt(1 - gamma) * out,
    }[face.prediction]()
    return ((found - clean) ** 2).mean() / b**2


def noise_of(batch, seeds):
    """Of all groups, drawn anew."""
    return group_noise(batch.places, seeds, shape=(4, PATCH_PX**2 * 2))


def one_hot(number):
    return np.eye(len(CLASSES))[number]


OTHERS = [
    {"schedule": "sigmoid@-3,3,0.9", "input_scale": 0.5, "normalize_input": "deviation"},
    {"loss": "x", "prediction": "v", "input_scale": 0.5},
    {"self_conditioning": "none", "schedule": "simple_linear"},
    {"classes": (), "input_scale": 0.3},
    {"label_dropout": 0.9, "self_conditioning_rate": 0.2},
]


@pytest.mark.parametrize(
    "face",
    [{"prediction": p, "loss": loss} for p in ("eps", "x", "v") for loss in ("eps", "x")] + OTHERS,
    ids=str,
)
@torch.no_grad()
def test_losses_are_those_of_a_loop_in_float64(face):
    model = model_of("diffusion", **face).double()
    batch, seeds = batch_of(), seeds_of(len(IMAGES))
    draws, noise = model.draw(seeds), noise_of(batch, seeds)
    assert len(set(draws.time.tolist())) == len(IMAGES)
    found = losses(model, seeds=seeds)
    for number, alone in enumerate(IMAGES):
        label = one_hot(number % 3) * draws.named[number].numpy() if model.head.classes else None
        wanted = loss_alone(
            model,
            alone,
            gamma=gamma_of(model.face.schedule, float(draws.time[number])),
            noise=noise[batch.image == number],
            shown=bool(draws.shown[number]),
            label=label,
        )
        np.testing.assert_allclose(found[number], wanted, rtol=2e-4)


@torch.no_grad()
def test_measures_are_the_losses_at_ten_times_with_label_and_a_first_pass():
    np.testing.assert_allclose(MEASURED_TIMES, np.arange(0.05, 1.0, 0.1))
    model = model_of("diffusion", label_dropout=0.9, self_conditioning_rate=0.0).double()
    batch, seeds = batch_of(), seeds_of(len(IMAGES))
    noise = noise_of(batch, seeds)
    found = model.measures(batch, targets_of(model, len(IMAGES)), seeds=seeds)
    assert found.shape == (len(IMAGES), 10)
    for number, alone in enumerate(IMAGES):
        for column, time in enumerate(MEASURED_TIMES):
            wanted = loss_alone(
                model, alone, gamma=gamma_of("cosine", time), shown=True,
                noise=noise[batch.image == number], label=one_hot(number % 3),
            )  # fmt: skip
            np.testing.assert_allclose(found[number, column], wanted, rtol=2e-4)


@pytest.mark.parametrize("face", [{}, {"normalize_input": "deviation"}, {"classes": ()}], ids=str)
def test_no_batch_mate_changes_a_loss_or_a_measure(face):
    model, count = model_of("diffusion", **face).double(), len(IMAGES)
    targets, seeds = targets_of(model, count), seeds_of(count)
    orders = {model.losses: ([0], [1], [2], [3], [2, 0, 3]), model.measures: ([3, 1],)}
    for ask, subsets in orders.items():
        with torch.no_grad():
            together = ask(batch_of(), targets, seeds=seeds)
            for order in subsets:
                alone = ask(
                    batch_of([IMAGES[number] for number in order]),
                    None if targets is None else targets[order],
                    seeds=seeds[order],
                )
                torch.testing.assert_close(alone, together[order], rtol=1e-5, atol=1e-6)


def test_the_same_seed_gives_the_same_loss_and_another_one_another():
    model = model_of("diffusion")
    assert torch.equal(losses(model), losses(model))
    assert (losses(model) != losses(model, start=50)).all()


def test_noise_is_standard_normal_and_another_one_in_every_group_of_every_image():
    places, seeds = batch_of([image(8, 8)] * 2).places, torch.tensor([5, 6])
    noise = group_noise(places, seeds, shape=(16, 64)).flatten(1)
    assert abs(noise.mean()) < 0.01
    assert abs(noise.std() - 1) < 0.01
    assert (torch.corrcoef(noise) - torch.eye(128)).abs().max() < 0.2


def test_a_group_draws_its_noise_whichever_groups_are_there():
    batch, seeds = batch_of(), seeds_of(len(IMAGES))
    noise = noise_of(batch, seeds)
    some = batch.places.take(slice(5, 8))
    assert torch.equal(group_noise(some, seeds, shape=noise.shape[1:]), noise[5:8])
    other = group_noise(replace(some, row=some.row + 1), seeds, shape=noise.shape[1:])
    assert (other != noise[5:8]).any(2).any(1).all()


def test_noise_does_not_depend_on_the_global_generator():
    model = model_of("diffusion")
    torch.manual_seed(1)
    before = losses(model)
    torch.manual_seed(2)
    assert torch.equal(losses(model), before)


def test_labels_are_withheld_and_latents_shown_as_often_as_configured():
    model, count = model_of("diffusion", label_dropout=0.3, self_conditioning_rate=0.6), 4000
    draws = model.draw(torch.arange(count))
    assert abs(draws.named.mean() - 0.7) < 0.025
    assert abs(draws.shown.mean() - 0.6) < 0.025
    # independently of each other, and of the time
    assert abs((draws.named * draws.shown).mean() - 0.42) < 0.025
    assert abs((draws.time * draws.shown).mean() - 0.3) < 0.025
    assert abs((draws.time * draws.named).mean() - 0.35) < 0.025
    counts = torch.histc(draws.time, bins=10, min=0, max=1) / count
    assert (counts - 0.1).abs().max() < 0.02


@pytest.mark.parametrize(("rate", "wanted"), [(0.0, 0.0), (1.0, 1.0)])
def test_rates_of_0_and_1_leave_nothing_to_chance(rate, wanted):
    model = model_of("diffusion", label_dropout=0.0, self_conditioning_rate=rate)
    draws = model.draw(torch.arange(500))
    assert (draws.named == 1).all()
    assert (draws.shown == wanted).all()


def test_a_withheld_label_changes_nothing_and_a_told_one_does():
    model = model_of("diffusion", label_dropout=0.5)
    images, seeds = [image(1, 1, seed=n) for n in range(12)], seeds_of(12)
    named = model.draw(seeds).named.bool()
    assert 0 < named.sum() < 12
    night, day = (losses(model, images, seeds=seeds, targets=torch.full((12,), k)) for k in (0, 2))
    assert ((night != day) == named).all()


def test_the_first_pass_takes_no_gradient():
    model = model_of("diffusion", self_conditioning_rate=1.0)
    calls, whole = [], model.denoiser.trunk.forward

    def watched(*args, **kwargs):
        calls.append(torch.is_grad_enabled())
        return whole(*args, **kwargs)

    model.denoiser.trunk.forward = watched
    targets, seeds = targets_of(model, 4), seeds_of(4)
    model.losses(batch_of(), targets, seeds=seeds).sum().backward()
    assert calls == [False, True]
    assert all(p.grad is not None for p in model.parameters())


def test_images_of_another_format_are_refused():
    model = model_of("diffusion")
    cut = image(1, 1, height_px=4, width_px=4)
    small = replace(cut, pixels=cut.pixels[:, :4, :4])
    with pytest.raises(ValueError, match="groups of 8 px and 2 bands, not of 4 px"):
        model.losses(small, torch.tensor([0]), seeds=seeds_of(1))
    with pytest.raises(ValueError, match="do not divide an image"):
        model.losses(image(2, 2, width_px=13), torch.tensor([0]), seeds=seeds_of(1))
