"""Which group can reach which: facts/fit.md sections 8.3 and 8.4."""

import pytest
import torch

from fit_model.attention.chunks import chunk_mask
from fit_model.attention.mixers import CAUSAL_MIXERS
from fit_model.encoder import Encoder, EncoderConfig, encode_images
from tests.fit_model.examples import randomize, trunk_config

GROUPS, TOKENS, CHANNELS = 4, 4, 3
IDENTITY = torch.eye(GROUPS, dtype=torch.bool)
ALL = torch.ones(GROUPS, GROUPS, dtype=torch.bool)
NOTHING = torch.zeros(GROUPS, GROUPS, dtype=torch.bool)
LOWER = ALL.tril()


def encoder(layers, *, groups=GROUPS, trunk=None, **changes):
    settings = {"latent_position": "learned", "num_groups": groups} | changes
    chosen = trunk_config(layers=layers, **(trunk or {}))
    config = EncoderConfig(patch_px=1, trunk=chosen, **settings)
    return randomize(Encoder(config, num_tokens=TOKENS, inputs=CHANNELS).double())


def streams(model, x):
    encoded = encode_images(model, x)
    return tuple(
        stream.detach().unflatten(0, x.shape[:2]) for stream in (encoded.tokens, encoded.latents)
    )


def influence(model):
    """Rows are output groups, columns the perturbed input group: tokens first, then latents."""
    x = torch.randn(1, GROUPS, TOKENS, CHANNELS, dtype=torch.float64)
    before = streams(model, x)
    matrices = [NOTHING.clone(), NOTHING.clone()]
    for group in range(GROUPS):
        changed = x.clone()
        changed[:, group] += 1.0
        for matrix, old, new in zip(matrices, before, streams(model, changed), strict=True):
            matrix[:, group] = (old != new)[0].flatten(1).any(1)
    return matrices


@pytest.mark.parametrize(
    ("layers", "mask", "tokens", "latents"),
    [
        ("(2)", "none", IDENTITY, NOTHING),
        ("(2)1", "none", IDENTITY, ALL),
        ("(1)1(1)", "none", ALL, ALL),
        ("(1)1(1)", "causal", LOWER, LOWER),
        ("(1)1(1)1(1)", "causal", LOWER, LOWER),
        ("(1)1", "causal", IDENTITY, LOWER),
    ],
)
def test_groups_reach_each_other_as_the_official_code_lets_them(layers, mask, tokens, latents):
    torch.manual_seed(0)
    found = influence(encoder(layers, latent_mask=mask))
    assert torch.equal(found[0], tokens)
    assert torch.equal(found[1], latents)


@pytest.mark.parametrize("operator", CAUSAL_MIXERS)
def test_groups_reach_later_ones_alone_with_any_causal_operator(operator):
    trunk = {"global_operator": operator}
    found = influence(encoder("(1)1(1)", latent_mask="causal", trunk=trunk))
    assert torch.equal(found[0], LOWER)
    assert torch.equal(found[1], LOWER)


def test_without_global_layers_latents_are_their_normalised_embedding():
    model = encoder("(2)")
    x = torch.randn(2, GROUPS, TOKENS, CHANNELS, dtype=torch.float64)
    _, latents = streams(model, x)
    embedding = model.latent_norm(model.latent_position.table).unflatten(0, (GROUPS, -1))
    torch.testing.assert_close(latents, embedding.detach().expand_as(latents))


def test_the_chunk_mask_is_full_inside_a_chunk():
    rows = ["110000", "110000", "111100", "111100", "111111", "111111"]
    wanted = torch.tensor([[sign == "1" for sign in row] for row in rows])
    assert torch.equal(chunk_mask(6, 6, chunk=2)[0, 0], wanted)


def test_one_group_works():
    model = encoder("(1)2(1)1", groups=1)
    tokens, latents = streams(model, torch.randn(2, 1, TOKENS, CHANNELS, dtype=torch.float64))
    assert tokens.isfinite().all()
    assert latents.shape == (2, 1, 3, 8)


def test_permuting_tokens_with_their_positions_permutes_tokens_and_leaves_latents():
    model = encoder("(1)1(1)1")
    x = torch.randn(1, GROUPS, TOKENS, CHANNELS, dtype=torch.float64)
    order = torch.tensor([2, 0, 3, 1])
    tokens, latents = streams(model, x)
    with torch.no_grad():
        model.token_position.table.copy_(model.token_position.table[order].clone())
    permuted_tokens, permuted_latents = streams(model, x[:, :, order])
    torch.testing.assert_close(permuted_tokens, tokens[:, :, order], atol=1e-12, rtol=0)
    torch.testing.assert_close(permuted_latents, latents, atol=1e-12, rtol=0)


@pytest.mark.parametrize("mask", ["none", "causal"])
def test_permuting_groups_with_their_embeddings_permutes_outputs_unless_order_counts(mask):
    model = encoder("(1)1(1)1", latent_mask=mask)
    x = torch.randn(1, GROUPS, TOKENS, CHANNELS, dtype=torch.float64)
    order = torch.tensor([2, 0, 3, 1])
    before = streams(model, x)
    with torch.no_grad():
        rows = model.latent_position.table.unflatten(0, (GROUPS, -1))[order].flatten(0, 1)
        model.latent_position.table.copy_(rows.clone())
    after = streams(model, x[:, order])
    same = [
        torch.allclose(new, old[:, order], atol=1e-12, rtol=0)
        for new, old in zip(after, before, strict=True)
    ]
    assert same == [mask == "none"] * 2
