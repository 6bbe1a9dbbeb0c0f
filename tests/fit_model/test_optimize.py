"""Which parameters decay, and how the learning rate goes."""

import math

import pytest
import torch

from fit_model.models import build
from fit_model.optimize import learning_rate_factor, parameter_groups
from tests.fit_model.examples import image, model_config


def test_only_the_weights_of_linear_layers_decay():
    model = build(model_config(latent_position="learned", num_groups=4))
    decaying, kept = parameter_groups(model, weight_decay=0.1)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert (decaying["weight_decay"], kept["weight_decay"]) == (0.1, 0.0)
    assert len(decaying["params"]) + len(kept["params"]) == len(names)
    for parameter in decaying["params"]:
        assert parameter.dim() == 2
        assert not names[id(parameter)].endswith("table")
    kept_names = {names[id(parameter)].rsplit(".", 2)[-2] for parameter in kept["params"]}
    assert {"token_position", "latent_position", "token_norm"} <= kept_names


def test_slots_and_gains_of_coordinates_do_not_decay():
    model = build(model_config())
    _, kept = parameter_groups(model, weight_decay=0.1)
    found = {id(parameter) for parameter in kept["params"]}
    assert {id(parameter) for parameter in model.encoder.latent_position.parameters()} <= found


def test_the_learning_rate_warms_up_and_falls_as_a_cosine():
    factors = [learning_rate_factor(step, warmup_steps=4, total_steps=12) for step in range(14)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert factors[4] == 1.0
    assert factors[8] == pytest.approx(0.5)
    assert factors[12:] == [0.0, 0.0]
    assert factors[4:] == sorted(factors[4:], reverse=True)


def test_the_cosine_is_that_of_torch():
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=10, eta_min=0.1)
    for step in range(10):
        factor = learning_rate_factor(step, warmup_steps=0, total_steps=10, end_factor=0.1)
        assert math.isclose(factor, scheduler.get_last_lr()[0], rel_tol=1e-9)
        optimizer.step()
        scheduler.step()


def test_a_model_learns_two_images_by_heart():
    torch.manual_seed(0)
    model = build(model_config())
    batches = [image(2, 2, seed=1), image(1, 3, seed=2)]
    optimizer = torch.optim.AdamW(parameter_groups(model, weight_decay=0.01), lr=1e-2)
    for _ in range(30):
        optimizer.zero_grad()
        loss = sum(
            model.head.loss(model(batch), torch.tensor([target]))
            for target, batch in enumerate(batches)
        )
        loss.backward()
        optimizer.step()
    assert loss < 0.1
