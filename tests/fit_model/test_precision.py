"""bfloat16 stays near float32, and recomputation changes no number."""

from dataclasses import replace

import pytest
import torch

from fit_model.groups import collate
from fit_model.heads import ClassifyConfig, RegressConfig
from fit_model.layers import drop_path
from fit_model.models import build
from tests.fit_model.examples import image, model_config, trunk_config
from tests.fit_model.generators import (
    FACES,
    TRUNK,
    batch_of,
    generator_config,
    model_of,
    seeds_of,
    targets_of,
)

BATCH = collate([image(2, 2, seed=1), image(3, 3, stored=[0, 4, 5], width_px=20, seed=2)])
TARGETS = torch.tensor([0, 2])


def step(model):
    """Loss and gradients of one batch, with the same random numbers every time."""
    torch.manual_seed(7)
    loss = model.head.loss(model(BATCH), TARGETS)
    loss.backward()
    return loss.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def test_bf16_stays_near_float32():
    torch.manual_seed(0)
    model = build(model_config()).eval()
    wanted, gradients = step(model)
    model.zero_grad()
    outputs = model(BATCH)
    model.to(torch.bfloat16)
    assert model(BATCH).dtype == torch.float32
    torch.testing.assert_close(model(BATCH), outputs, atol=0.05, rtol=0)
    found, rough = step(model)
    torch.testing.assert_close(found, wanted, atol=0.02, rtol=0)
    exact = torch.cat([gradients[name].flatten() for name in gradients])
    near = torch.cat([rough[name].float().flatten() for name in gradients])
    assert torch.cosine_similarity(exact, near, dim=0) > 0.99


@pytest.mark.parametrize("rate", [0.0, 0.3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_recomputing_activations_gives_the_same_loss_and_gradients(rate, dtype):
    results = []
    for checkpointing in ("none", "layer"):
        torch.manual_seed(0)
        trunk = trunk_config(checkpointing=checkpointing, dropout=rate, drop_path=rate)
        results.append(step(build(model_config(trunk=trunk)).to(dtype).train()))
    (loss, gradients), (again, recomputed) = results
    assert torch.equal(loss, again)
    assert gradients.keys() == recomputed.keys()
    for name in gradients:
        assert torch.equal(gradients[name], recomputed[name]), name


def generator_step(model):
    """Losses and gradients of one batch of images to imitate."""
    torch.manual_seed(7)
    losses = model.losses(batch_of(), targets_of(model, 4), seeds=seeds_of(4))
    losses.sum().backward()
    return losses.detach(), {n: p.grad for n, p in model.named_parameters()}


GENERATORS = [
    ("diffusion", {}),
    ("diffusion", {"prediction": "v", "normalize_input": "deviation"}),
    ("diffusion", {"classes": (), "self_conditioning": "none"}),
    ("autoregressive", {}),
    ("autoregressive", {"classes": (), "embedding": "separate", "order": "raster"}),
]


@pytest.mark.parametrize(("kind", "settings"), GENERATORS, ids=str)
def test_generators_in_bf16_stay_near_float32(kind, settings):
    torch.manual_seed(0)
    model = build(generator_config(kind, trunk=TRUNK, **settings))
    wanted, gradients = generator_step(model)
    model.zero_grad()
    found, rough = generator_step(model.to(torch.bfloat16))
    assert found.dtype == torch.float32
    assert found.isfinite().all()
    torch.testing.assert_close(found, wanted, atol=0, rtol=0.02)
    exact = torch.cat([gradients[name].flatten() for name in gradients])
    near = torch.cat([rough[name].float().flatten() for name in gradients])
    assert torch.cosine_similarity(exact, near, dim=0) > 0.99


@pytest.mark.parametrize("rate", [0.0, 0.3])
@pytest.mark.parametrize(("kind", "settings"), GENERATORS, ids=str)
def test_recomputing_in_generators_gives_the_same_losses_and_gradients(kind, settings, rate):
    results = []
    for checkpointing in ("none", "layer"):
        trunk = replace(TRUNK, checkpointing=checkpointing, dropout=rate, drop_path=rate)
        model = model_of(kind, trunk=trunk, **settings).double().train()
        results.append(generator_step(model))
    (losses, gradients), (again, recomputed) = results
    torch.testing.assert_close(again, losses, atol=1e-12, rtol=1e-12)
    for name, gradient in gradients.items():
        torch.testing.assert_close(recomputed[name], gradient, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("kind", FACES)
def test_dropout_acts_on_generators_in_training_alone(kind):
    model = model_of(kind, trunk=replace(TRUNK, dropout=0.3, drop_path=0.3))
    targets, seeds = targets_of(model, 4), seeds_of(4)

    def losses():
        with torch.no_grad():
            return model.losses(batch_of(), targets, seeds=seeds)

    assert torch.equal(losses(), losses())
    model.train()
    assert (losses() != losses()).any()


@pytest.mark.parametrize("kind", FACES)
def test_every_parameter_of_a_generator_learns(kind):
    _, gradients = generator_step(model_of(kind))
    assert all(gradient is not None and gradient.any() for gradient in gradients.values())


def test_recomputing_keeps_fewer_activations():
    kept = {}
    for checkpointing in ("none", "layer"):
        model = build(model_config(trunk=trunk_config(checkpointing=checkpointing)))
        sizes = []

        def pack(tensor, sizes=sizes):
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(BATCH)
        kept[checkpointing] = sum(sizes)
    assert kept["layer"] < kept["none"] / 2


def test_drop_path_leaves_out_whole_sequences_and_keeps_the_mean():
    torch.manual_seed(0)
    dropped = drop_path(torch.ones(4000, 3, 2), rate=0.5, training=True)
    assert set(dropped.flatten(1).unique(dim=0).flatten().tolist()) == {0.0, 2.0}
    assert abs(dropped.mean() - 1.0) < 0.05


def test_dropout_acts_in_training_alone():
    model = build(model_config(trunk=trunk_config(dropout=0.3, drop_path=0.3)))
    assert not torch.equal(model.train()(BATCH), model(BATCH))
    assert torch.equal(model.eval()(BATCH), model(BATCH))


def test_every_parameter_but_the_unused_output_norm_learns():
    _, gradients = step(build(model_config()))
    idle = {name for name, _ in build(model_config()).named_parameters()} - gradients.keys()
    assert idle == {"encoder.token_norm.weight", "encoder.token_norm.bias"}


def test_regression_speaks_the_units_of_its_targets():
    head = RegressConfig(targets=("age", "size"), target_mean=(60.0, 1e6), target_std=(10.0, 1e3))
    model = build(model_config(head=head))
    targets = torch.tensor([[60.0, 1e6 + 1e3], [50.0, 1e6]], dtype=torch.float64)
    perfect = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
    assert model.head.loss(perfect, targets) == 0
    torch.testing.assert_close(model.head.predictions(perfect), targets.float())
    assert model.head.loss(perfect + 2.0, targets) == 4


def test_classes_get_probabilities():
    head = build(model_config(head=ClassifyConfig(classes=("a", "b")))).head
    logits = torch.tensor([[0.0, 0.0], [0.0, torch.log(torch.tensor(3.0))]])
    torch.testing.assert_close(head.predictions(logits), torch.tensor([[0.5, 0.5], [0.25, 0.75]]))
    torch.testing.assert_close(
        head.loss(logits, torch.tensor([0, 1])), -torch.tensor([0.5, 0.75]).log().mean()
    )
