"""What the logits of a sub-pixel depend on: facts/fit.md sections 1.7 and 8.4."""

import pytest
import torch

from fit_model.autoregressive import AutoregressiveConfig, Decoder, decode_images
from fit_model.groups import Places
from fit_model.subpixels import shifted
from fit_model.trunk_config import TrunkConfig
from tests.fit_model.examples import randomize

GROUPS, TOKENS, LEVELS = 4, 6, 7
PLACES = GROUPS * TOKENS
EVERY = torch.ones(PLACES, PLACES, dtype=torch.bool)
LOWER, STRICT = EVERY.tril(), EVERY.tril(-1)


def decoder(*, num_tokens=TOKENS, face=None, **trunk):
    size = {"width": 16, "latent_width": 12, "heads": 2, "latent_heads": 3, "latents_per_group": 2}
    config = AutoregressiveConfig(
        patch_px=1,
        trunk=TrunkConfig(**({"layers": "(2)2(2)2(1)"} | size | trunk)),
        num_levels=LEVELS,
        **(face or {}),
    )
    return Decoder(config, num_tokens=num_tokens)


def some_levels(*, images=1, groups=GROUPS):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, LEVELS, (images * groups, TOKENS), generator=generator)


@torch.no_grad()
def logits(model, levels, *, shift):
    """One row a sub-pixel of an image, in the order of its sequence."""
    places = Places.in_one_row(num_images=1, num_groups=GROUPS, device=levels.device)
    images = model.layout(places)
    inputs = shifted(levels, images) if shift else levels
    return model.logits(model(inputs, places, images)).flatten(0, 1)


def dependence(model, *, shift):
    """Rows are sub-pixels predicted, columns sub-pixels changed."""
    levels = some_levels()
    before = logits(model, levels, shift=shift)
    matrix = torch.zeros_like(EVERY)
    for place in range(PLACES):
        changed = levels.flatten().clone()
        changed[place] = (changed[place] + 1) % LEVELS
        after = logits(model, changed.view_as(levels), shift=shift)
        matrix[:, place] = (before != after).any(1)
    return matrix


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"layers": "(1)1(1)"},
        {"layers": "(1)1(0)1(1)"},
        {"after_exchange": "feed_forward", "key_norm": "none"},
        {"local_operator": "softmax_reference", "global_operator": "softmax_reference"},
        {"face": {"embedding": "separate", "latent_position": "learned", "num_groups": GROUPS}},
    ],
    ids=str,
)
def test_logits_depend_on_their_own_and_all_earlier_inputs_and_on_nothing_else(changes):
    model = randomize(decoder(**changes)).double()
    assert torch.equal(dependence(model, shift=False), LOWER)


def test_after_the_shift_a_sub_pixel_depends_on_all_before_it_and_not_on_itself():
    assert torch.equal(dependence(randomize(decoder()).double(), shift=True), STRICT)


def test_without_local_attention_a_patch_is_seen_only_by_later_patches_and_itself():
    model = randomize(decoder(local_mixing="none")).double()
    patch = torch.arange(PLACES) // TOKENS
    earlier_patch = patch[:, None] > patch
    wanted = earlier_patch | torch.eye(PLACES, dtype=torch.bool)
    assert torch.equal(dependence(model, shift=False), wanted)


def test_images_of_different_sizes_do_not_see_each_other():
    model = randomize(decoder()).double()
    image = torch.tensor([0, 0, 1, 1, 1])
    column = torch.tensor([0, 1, 0, 1, 2])
    places = Places(
        image=image,
        row=torch.zeros_like(image),
        column=column,
        grid_rows=torch.tensor([1, 1]),
        grid_columns=torch.tensor([2, 3]),
    )
    images = model.layout(places)
    levels = some_levels(groups=5)
    with torch.no_grad():
        before = model(shifted(levels, images), places, images)
        for changed_image in (0, 1):
            other = torch.where((image == changed_image)[:, None], (levels + 1) % LEVELS, levels)
            after = model(shifted(other, images), places, images)
            same = (before == after).flatten(1).all(1)
            assert torch.equal(same, image != changed_image)


def local_part(model, *, num_layers):
    """A model of the same local layers, embeddings and norms, without latents."""
    alone = decoder(layers=f"({num_layers})")
    weights = {
        name: value
        for name, value in model.state_dict().items()
        if not name.startswith(("trunk.blocks", "latent_position"))
    }
    alone.load_state_dict(weights, strict=False)
    layers = [layer for block in model.trunk.blocks for layer in block.local.layers]
    for mine, theirs in zip(alone.trunk.blocks[0].local.layers, layers, strict=True):
        mine.load_state_dict(theirs.state_dict())
    return alone


def test_the_first_patch_gives_the_logits_of_a_purely_local_model_at_init():
    torch.manual_seed(0)
    model = decoder()
    tokens = some_levels(images=2).unflatten(0, (2, GROUPS))
    with torch.no_grad():
        found = decode_images(model, tokens)
        alone = decode_images(local_part(model, num_layers=5), tokens)
    assert torch.equal(found[:, 0], alone[:, 0])
    assert (found[:, 1:] != alone[:, 1:]).flatten(2).any(2).all()
