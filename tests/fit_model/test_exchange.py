"""BiXT in FIT: who sees whom, what learns, what it costs, and where it is refused."""

import json

import pytest
import torch

from fit_model import recompute, weights
from fit_model.body import Trunk
from fit_model.flops import forward_macs, num_parameters
from fit_model.groups import collate
from fit_model.heads import RegressConfig
from fit_model.layout import ImageLayout
from fit_model.models import build, config_from_dict, config_to_dict
from fit_model.reach import Reach
from tests.fit_model.examples import image, model_config, randomize, trunk_config
from tests.fit_model.generators import batch_of, generator_config, seeds_of, targets_of
from tests.fit_model.test_influence import ALL, IDENTITY, encoder, influence
from tests.fit_model.test_parameters import count, counted

TOKENS_POOLED = RegressConfig(
    targets=("age",), target_mean=(3.0,), target_std=(2.0,), pool="tokens"
)
IMAGES = [
    image(2, 2, seed=1, height_px=13, width_px=10),
    image(3, 5, stored=[0, 3, 11], seed=2),
    image(1, 1, seed=3),
]


def bixt(**changes):
    return trunk_config(**{"exchange": "bixt"} | changes)


def model_of(layers, **changes):
    """A model whose last layers reach its head."""
    chosen = bixt(layers=layers, **changes)
    head = None if chosen.blocks[-1].num_across else TOKENS_POOLED
    return randomize(build(model_config(trunk=chosen, head=head))).double()


def targets(model, count):
    return (
        torch.zeros(count, 1) if model.config.head is TOKENS_POOLED else torch.zeros(count).long()
    )


@pytest.mark.parametrize(
    ("layers", "tokens", "latents"),
    [
        ("(2)1", IDENTITY, ALL),
        # in the first block tokens read latents that have not met yet, in the last one nothing
        ("(1)1(1)1", IDENTITY, ALL),
        ("(1)1(1)", ALL, ALL),
        ("(1)1(1)1(1)1", ALL, ALL),
    ],
)
def test_no_group_sees_another_before_their_latents_have_met(layers, tokens, latents):
    torch.manual_seed(0)
    found = influence(encoder(layers, trunk={"exchange": "bixt"}))
    assert torch.equal(found[0], tokens)
    assert torch.equal(found[1], latents)


@pytest.mark.parametrize("layers", ["(1)2(1)1", "(1)1(1)1(1)"])
@torch.no_grad()
def test_neither_batch_mates_nor_what_lies_outside_an_image_change_anything(layers):
    model = model_of(layers).eval()
    together = model(collate(IMAGES))
    for number, alone in enumerate(IMAGES):
        torch.testing.assert_close(model(alone)[0], together[number], rtol=1e-9, atol=1e-9)
    outside = collate(IMAGES)
    outside.pixels[1, :, 2:] += 50  # of 10 columns the second group has two
    assert torch.equal(model(outside), together)


@pytest.mark.parametrize("layers", ["(1)1(1)1", "(1)1(1)1(1)"])
@torch.no_grad()
def test_tokens_that_are_not_valid_are_read_by_nobody(layers):
    trunk = randomize(Trunk(bixt(layers=layers), reach=Reach()).double())
    images = ImageLayout.of(torch.tensor([0, 0, 1]), num_images=2, latents_per_group=3)
    tokens, latents = torch.randn(3, 4, 12).double(), torch.randn(3, 3, 8).double()
    valid = torch.tensor([[True, True, False, True], [True] * 4, [False, False, True, False]])
    before = trunk(tokens, latents, images=images, valid=valid)
    after = trunk(tokens + ~valid[..., None], latents, images=images, valid=valid)
    assert torch.equal(after.latents, before.latents)
    assert torch.equal(after.tokens[valid], before.tokens[valid])


@pytest.mark.parametrize("after", ["nothing", "feed_forward"])
@pytest.mark.parametrize("layers", ["(1)1", "(1)2(1)1", "(1)1(0)1", "(1)1(1)1(1)", "(1)1(0)"])
def test_every_parameter_of_the_trunk_learns(layers, after):
    model = model_of(layers, after_exchange=after)
    model.losses(collate(IMAGES), targets(model, 3), seeds=seeds_of(3)).sum().backward()
    inside = model.encoder.trunk.named_parameters()
    idle = [name for name, each in inside if each.grad is None or each.grad.abs().max() < 1e-9]
    assert not idle
    assert num_parameters(model.config) == count(model)


def test_a_diffusion_model_learns_with_it():
    config = generator_config("diffusion", trunk=bixt(layers="(1)1(1)1(1)"), classes=())
    model = randomize(build(config))
    model.losses(batch_of(), targets_of(model, 4), seeds=seeds_of(4)).sum().backward()
    idle = [name for name, each in model.named_parameters() if each.grad is None]
    assert not idle
    assert num_parameters(config) == count(model)


@pytest.mark.parametrize("layers", ["(1)2(1)1", "(1)1(1)1(1)"])
def test_it_costs_as_many_multiply_adds_as_pytorch_counts(layers):
    model = model_of(layers, width=10, heads=5, after_exchange="feed_forward").float()
    batch = collate([image(2, 2, seed=1), image(2, 2, seed=2)])
    pooled = model.head.project.in_features * model.head.project.out_features
    found = counted(lambda: model(batch))
    assert found - 2 * pooled == forward_macs(model.config, [4, 4])


def test_recomputing_a_part_of_the_groups_at_a_time_changes_no_gradient(monkeypatch):
    monkeypatch.setattr(recompute, "POSITIONS_A_PART", 8)  # two groups of four patches
    found = []
    for checkpointing in ("none", "layer"):
        torch.manual_seed(0)
        model = model_of("(1)1(1)1(1)", checkpointing=checkpointing, after_exchange="feed_forward")
        model.losses(collate(IMAGES), torch.zeros(3, 1), seeds=seeds_of(3)).sum().backward()
        found.append([each.grad for each in model.parameters()])
    for plain, again in zip(*found, strict=True):
        torch.testing.assert_close(again, plain, rtol=1e-10, atol=1e-12)


def test_a_model_with_it_survives_json_and_saving(tmp_path):
    model = model_of("(1)2(1)1").float().eval()
    assert config_from_dict(json.loads(json.dumps(config_to_dict(model.config)))) == model.config
    weights.save(model, tmp_path)
    with torch.no_grad():
        assert torch.equal(weights.load(tmp_path)(image(2, 2)), model(image(2, 2)))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: bixt(layers="(2)"), "exchange 'bixt' has nothing to exchange without global"),
        (lambda: bixt(key_norm="none"), "exchange 'bixt' has one norm a stream.*'layer_norm'"),
        (
            lambda: generator_config("autoregressive", trunk=bixt(layers="(1)1(1)")),
            "exchange 'bixt' has no causal form, which an autoregressive model",
        ),
        (
            lambda: model_config(trunk=bixt(), latent_mask="causal"),
            "exchange 'bixt' has no causal form.*take 'read_write'",
        ),
        (
            lambda: generator_config(
                "diffusion", trunk=bixt(layers="(1)1(1)"), latent_mask="causal"
            ),
            "exchange 'bixt' has no causal form.*take 'read_write'",
        ),
    ],
)
def test_where_it_cannot_be_it_is_refused_by_name(make, says):
    with pytest.raises(ValueError, match=says):
        make()
