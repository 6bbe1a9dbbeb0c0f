"""What the denoiser sees and what it does not: facts/fit.md sections 1.6 and 8.4."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fit_model.denoiser import Denoiser, DiffusionConfig, TimeToken
from fit_model.denoising import Steps, denoised, deviations, image_means
from fit_model.groups import Places
from fit_model.layout import ImageLayout
from tests.fit_model.examples import randomize, trunk_config
from tests.fit_model.generators import IMAGES, LAYERS, batch_of

GROUPS, TOKENS, CHANNELS, CLASSES, WIDTH = 4, 3, 5, 6, 16
TRUNK = trunk_config(layers=LAYERS, latent_width=WIDTH)
SHAPE = (TOKENS, CHANNELS)


def denoiser(*, classes=CLASSES, groups=GROUPS, fresh=False, trunk=TRUNK, **changes):
    settings = {"latent_position": "learned", "num_groups": groups} | changes
    config = DiffusionConfig(patch_px=1, trunk=trunk, **settings)
    torch.manual_seed(0)
    model = Denoiser(config, num_tokens=TOKENS, inputs=CHANNELS, num_classes=classes).double()
    return model if fresh else randomize(model)


def places(*, images=2, groups=GROUPS):
    return Places.in_one_row(num_images=images, num_groups=groups, device=torch.device("cpu"))


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def inputs(*, images=2, groups=GROUPS, classes=CLASSES):
    return {
        "patches": normal(images * groups, *SHAPE),
        "places": places(images=images, groups=groups),
        "gamma": torch.linspace(0.2, 0.9, images),
        "classes": torch.eye(classes)[:images] if classes else None,
        "before": normal(images * groups, 3, WIDTH, seed=1),
    }


def test_at_first_the_latents_before_have_no_effect_and_once_their_norm_moved_they_have():
    model, asked = denoiser(fresh=True), inputs()
    found = model(**asked)
    without = model(**asked | {"before": None})
    assert torch.equal(found.patches, without.patches)
    assert torch.equal(found.latents, without.latents)
    torch.nn.init.constant_(model.before.norm.weight, 0.1)
    assert not torch.allclose(model(**asked).patches, found.patches, atol=1e-4)


def test_no_latents_before_are_latents_of_zeros():
    model, asked = denoiser(), inputs()
    zeros = model(**asked | {"before": torch.zeros_like(asked["before"])})
    assert torch.equal(model(**asked | {"before": None}).patches, zeros.patches)


def test_no_gradient_flows_into_the_latents_before_but_into_what_reads_them():
    model, asked = denoiser(), inputs()
    asked["before"].requires_grad_(True)
    model(**asked).patches.square().sum().backward()
    assert asked["before"].grad is None
    assert all(p.grad is not None and p.grad.any() for p in model.before.parameters())


def test_without_self_conditioning_the_latents_before_are_not_looked_at():
    model, asked = denoiser(self_conditioning="none"), inputs()
    assert torch.equal(model(**asked).patches, model(**asked | {"before": None}).patches)


def test_every_image_hears_its_own_noise_level_and_class_and_no_other():
    model, asked = denoiser(), inputs()
    first, second = model(**asked).patches.unflatten(0, (2, GROUPS))
    for name, change in (
        ("gamma", torch.tensor([0.2, 0.5])),
        ("classes", torch.eye(CLASSES)[[0, 4]]),
        ("classes", torch.eye(CLASSES)[[0, 1]] * torch.tensor([[1.0], [0.0]])),
    ):
        same, other = model(**asked | {name: change}).patches.unflatten(0, (2, GROUPS))
        torch.testing.assert_close(same, first, rtol=0, atol=1e-12)
        assert (other - second).abs().amax((1, 2)).min() > 1e-4


def test_a_model_with_classes_refuses_to_guess_them():
    with pytest.raises(ValueError, match="with labels: give one"):
        denoiser()(**inputs() | {"classes": None})


def test_a_model_without_classes_needs_none():
    model = denoiser(classes=0)
    assert model(**inputs(classes=0)).patches.isfinite().all()
    assert "classes" not in {name.split(".")[0] for name, _ in model.named_parameters()}


def test_the_code_of_the_noise_level_is_standardised():
    token, seen = TimeToken(48), []
    token.expand.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    token(torch.tensor([0.0, 0.3, 1.0]))
    torch.testing.assert_close(seen[0].mean(-1), torch.zeros(3), atol=1e-6, rtol=0)
    torch.testing.assert_close(seen[0].std(-1, correction=0), torch.ones(3), atol=1e-6, rtol=0)


@pytest.mark.parametrize("groups", [1, 3])
def test_any_number_of_groups_works_one_included(groups):
    model, asked = denoiser(groups=groups), inputs(groups=groups)
    found = model(**asked)
    assert found.patches.shape == (2 * groups, *SHAPE)
    assert found.latents.shape == (2 * groups, 3, WIDTH)
    assert found.patches.isfinite().all()


@pytest.mark.parametrize("mask", ["none", "causal"])
def test_permuting_groups_with_their_latents_permutes_outputs_unless_order_counts(mask):
    model, asked = denoiser(latent_mask=mask), inputs(images=1)
    found = model(**asked)
    order = torch.tensor([2, 0, 3, 1])
    with torch.no_grad():
        table = model.latent_position.table
        table.copy_(table.unflatten(0, (GROUPS, -1))[order].flatten(0, 1).clone())
    moved = {name: asked[name][order] for name in ("patches", "before")}
    permuted = model(**asked | moved)
    for ours, theirs in ((permuted.patches, found.patches), (permuted.latents, found.latents)):
        assert torch.allclose(ours, theirs[order], rtol=0, atol=1e-12) == (mask == "none")


def test_no_batch_mate_changes_a_prediction():
    model = denoiser(latent_position="coordinate", num_groups=None)
    batch = batch_of()
    patches, before = normal(len(batch.image), *SHAPE), normal(len(batch.image), 3, WIDTH, seed=1)
    gamma, classes = torch.linspace(0.1, 0.9, 4), torch.eye(CLASSES)[:4]
    together = model(patches, batch.places, gamma=gamma, classes=classes, before=before)
    for number, image in enumerate(IMAGES):
        mine, one = batch.image == number, slice(number, number + 1)
        alone = model(
            patches[mine], image.places, gamma=gamma[one], classes=classes[one],
            before=before[mine],
        )  # fmt: skip
        torch.testing.assert_close(together.patches[mine], alone.patches, rtol=0, atol=1e-12)
        torch.testing.assert_close(together.latents[mine], alone.latents, rtol=0, atol=1e-12)


def test_means_and_deviations_are_those_of_each_image_alone():
    batch = batch_of()
    values = 3.0 * normal(len(batch.image), *SHAPE) + batch.image[:, None, None] * 10.0
    images = ImageLayout.of(batch.image, num_images=len(IMAGES), latents_per_group=1)
    means = image_means(values.mean((1, 2)), images)
    spreads = deviations(values, batch.places)
    for number in range(len(IMAGES)):
        alone = values[batch.image == number].numpy()
        np.testing.assert_allclose(means[number], alone.mean(), rtol=1e-12)
        np.testing.assert_allclose(spreads[number], alone.std(), rtol=1e-12)


def test_divided_by_its_deviation_a_noisy_image_may_be_of_any_scale():
    batch, found = batch_of(), {}
    for name in ("deviation", "none"):
        settings = {"latent_position": "coordinate", "num_groups": None, "normalize_input": name}
        model = denoiser(classes=0, **settings)
        config = DiffusionConfig(patch_px=1, trunk=TRUNK, **settings)
        patches = normal(len(batch.image), *SHAPE)
        scaled = patches * torch.tensor([0.1, 1.0, 3.0, 20.0])[batch.image][:, None, None]
        plain, rescaled = (
            denoised(
                model, config, noisy, batch.places, gamma=torch.full((4,), 0.5), classes=None,
                before=None,
            ).patches
            for noisy in (patches, scaled)
        )  # fmt: skip
        found[name] = torch.allclose(plain, rescaled, rtol=0, atol=1e-10)
    assert found == {"deviation": True, "none": False}


def test_steps_carry_the_latents_of_the_pass_with_the_label():
    asked = inputs()
    config = DiffusionConfig(patch_px=1, trunk=TRUNK, latent_position="learned", num_groups=GROUPS)
    model, noisy, gamma = denoiser(), asked["patches"], torch.tensor(0.4)
    steps = Steps(model, config, asked["places"], classes=asked["classes"], guidance=1.5)
    before = None
    for _ in range(3):
        given = {"gamma": gamma.expand(2), "before": before}
        named = model(noisy, asked["places"], classes=asked["classes"], **given)
        nameless = model(noisy, asked["places"], classes=0 * asked["classes"], **given)
        wanted = 2.5 * named.patches - 1.5 * nameless.patches
        torch.testing.assert_close(steps(noisy, gamma), wanted, rtol=0, atol=1e-12)
        before = named.latents


def test_nothing_is_dropped_outside_local_and_global_layers():
    trunk = replace(TRUNK, dropout=0.9, drop_path=0.9, after_exchange="feed_forward")
    model, seen = denoiser(trunk=trunk).train(), normal(4, 3, WIDTH)
    assert torch.equal(model.before(seen), model.before(seen))
    for move in (model.trunk.blocks[0].read, model.trunk.blocks[0].write):
        width = move.layer.query_norm.normalized_shape[0]
        asking, offering = (
            normal(4, 3, width),
            normal(4, 3, move.layer.key_norm.normalized_shape[0]),
        )
        assert torch.equal(move.exchange(asking, offering), move.exchange(asking, offering))
    layer = model.trunk.blocks[0].across.layers[0]
    assert not torch.equal(layer(seen), layer(seen))
