"""Images of every size, with gaps and edges, in one batch: none changes what another one gives."""

from dataclasses import replace

import pytest
import torch

from fit_model.groups import collate
from fit_model.heads import ClassifyConfig
from fit_model.layout import ImageLayout
from fit_model.models import build
from fit_model.tokens import normalized, patches_of, valid_patches
from tests.fit_model.examples import image, model_config, randomize, trunk_config

IMAGES = [
    image(2, 2, seed=1),
    image(3, 5, stored=[0, 3, 11], seed=2),
    image(1, 1, height_px=3, width_px=6, seed=3),
    image(4, 2, height_px=27, width_px=13, stored=[0, 1, 4, 7], nodata=50.0, seed=4),
]
CLASSES = ("day", "night")


def double_model(pool="latents", **encoder):
    layers = "(1)2(1)1" if pool == "latents" else "(1)2(1)"
    config = model_config(
        head=ClassifyConfig(classes=CLASSES, pool=pool),
        trunk=trunk_config(layers=layers),
        **encoder,
    )
    torch.manual_seed(0)
    return randomize(build(config)).double().eval()


@pytest.mark.parametrize("pool", ["latents", "tokens"])
@pytest.mark.parametrize("mask", ["none", "causal"])
def test_no_batch_mate_changes_a_result_or_a_gradient(pool, mask):
    model = double_model(pool, latent_mask=mask)
    together = model(collate(IMAGES))
    alone = torch.cat([model(single) for single in IMAGES])
    torch.testing.assert_close(together, alone, atol=1e-12, rtol=0)
    weights = list(model.parameters())
    gradients = [
        torch.autograd.grad(outputs.square().sum(), weights, allow_unused=True)
        for outputs in (together, alone)
    ]
    for ours, theirs in zip(*gradients, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=1e-10)


def cut(batch, *, side_px):
    return replace(batch, pixels=batch.pixels[:, :side_px, :side_px])


def test_equal_images_need_no_mask_and_unequal_ones_do():
    equal = ImageLayout.of(torch.tensor([0, 0, 1, 1]), num_images=2, latents_per_group=2)
    assert equal.place is None
    assert equal.may_attend is None
    unequal = ImageLayout.of(torch.tensor([0, 1, 1]), num_images=2, latents_per_group=2)
    assert unequal.may_attend[:, 0, 0].tolist() == [[True, True, False, False], [True] * 4]
    latents = torch.arange(12.0).reshape(3, 2, 2)
    assert torch.equal(unequal.split(unequal.join(latents)), latents)


@pytest.mark.parametrize("pool", ["latents", "tokens"])
def test_the_head_sees_the_mean_over_what_an_image_shows(pool):
    model, batch = double_model(pool), collate(IMAGES)
    values = normalized(batch, config=model.config.input)
    valid = valid_patches(batch, patch_px=4)
    encoded = model.encoder(patches_of(values, patch_px=4), batch.places, valid=valid)
    seen = []
    model.head.norm.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    model(batch)
    for number, pooled in enumerate(seen[0]):
        mine = batch.image == number
        shown = encoded.latents[mine] if pool == "latents" else encoded.tokens[mine][valid[mine]]
        wanted = shown.reshape(-1, shown.shape[-1]).mean(0)
        torch.testing.assert_close(pooled, wanted, atol=1e-13, rtol=0)


@pytest.mark.parametrize("pool", ["latents", "tokens"])
def test_what_lies_beyond_the_image_changes_nothing(pool):
    model, batch = double_model(pool), collate(IMAGES)
    before = model(batch)
    place = torch.arange(batch.pixels.shape[1])
    outside = (place >= batch.valid_height_px[:, None])[:, :, None] | (
        place >= batch.valid_width_px[:, None]
    )[:, None, :]
    assert outside.any()
    batch.pixels[outside] = 255
    assert torch.equal(model(batch), before)


def test_padding_patches_are_not_attended_to():
    """An image of one patch gives what a model of groups of one patch gives."""
    single = image(1, 1, height_px=4, width_px=4)
    model = double_model()
    small = build(
        model_config(
            head=ClassifyConfig(classes=CLASSES),
            pixels=replace(model.config.input, group_side_px=4),
        )
    ).double()
    state = model.state_dict()
    state["encoder.token_position.table"] = state["encoder.token_position.table"][:1]
    small.load_state_dict(state)
    torch.testing.assert_close(small(cut(single, side_px=4)), model(single), atol=1e-12, rtol=0)


def test_a_group_that_is_missing_is_not_a_group_of_zeros():
    model = double_model()
    whole, gap = image(2, 2), image(2, 2, stored=[0, 1, 3])
    whole.pixels[2] = 100
    assert not torch.allclose(model(whole), model(gap))


def test_missing_pixels_never_reach_the_output_as_nan():
    batch = image(2, 2, dtype=torch.float32)
    batch.pixels[1] = float("nan")
    batch.pixels[2, :3] = float("inf")
    model = double_model()
    outputs = model(batch)
    assert outputs.isfinite().all()
    outputs.sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_coordinates_tell_where_a_group_lies():
    model = double_model()
    left, right = image(2, 2, stored=[0]), image(2, 2, stored=[1])
    assert not torch.allclose(model(left), model(right))


@pytest.mark.parametrize(
    "encoder",
    [
        {"latent_position": "learned", "num_groups": 4},
        {"latent_position": "sin_cos_2d", "num_groups": 4},
        {"group_token": "one_hot", "num_groups": 4, "token_position": "sin_cos_2d"},
    ],
    ids=str,
)
def test_fixed_grids_take_gaps_and_edges_but_no_other_grid(encoder):
    model = double_model(**encoder)
    fitting = [image(2, 2, stored=[0, 3], width_px=12), image(4, 1, seed=5), image(1, 4)]
    together = model(collate(fitting))
    alone = torch.cat([model(single) for single in fitting])
    torch.testing.assert_close(together, alone, atol=1e-12, rtol=0)
    with pytest.raises(ValueError, match=r"4 groups, not \[6\]"):
        model(image(2, 3))


def test_pixels_of_another_format_are_refused():
    small = cut(image(1, 1, height_px=4, width_px=4), side_px=4)
    with pytest.raises(ValueError, match="8 px and 2 bands, not of 4 px"):
        double_model()(small)
