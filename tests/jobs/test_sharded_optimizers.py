"""LAMB and averaged weights under every way to spread a training are those of one plain loop."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from tests.fit_model.numpy_lamb import NumpyLamb
from tests.jobs.small_engines import (
    ADAMW,
    DECAY,
    LAMB,
    RATES,
    VARIANTS,
    WORKERS,
    Small,
    inputs,
    loss,
)

ADAPTED = {"wide.weight", "last.weight", "table"}


@pytest.fixture(scope="module")
def results(sharded):
    return sharded.found


def gradients(model: nn.Module, step: int) -> dict[str, torch.Tensor]:
    """Of the mean over all workers' losses."""
    model.zero_grad()
    each = [loss(model(inputs(step, rank)), step) for rank in range(WORKERS)]
    torch.stack(each).mean().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def plain_lamb() -> list[dict[str, np.ndarray]]:
    """The weights before the first step and after each, with LAMB in NumPy."""
    model = Small(seed=1)
    optimizers = {
        name: NumpyLamb(
            each.detach().numpy(), 0.1 if name in ADAPTED else 0.0, name in ADAPTED,
            LAMB.betas, LAMB.eps,
        )
        for name, each in model.named_parameters()
    }  # fmt: skip
    history = []
    for step, lr in enumerate(RATES):
        found = gradients(model, step)
        for name, each in model.named_parameters():
            optimizers[name].step(found[name].numpy(), lr=lr)
            each.data.copy_(torch.from_numpy(optimizers[name].weight))
        history.append({name: each.weight for name, each in optimizers.items()})
    return history


def plain_adamw() -> list[dict[str, np.ndarray]]:
    model = Small(seed=1)
    named = list(model.named_parameters())
    groups = [
        {"params": [each], "weight_decay": 0.1 if name in ADAPTED else 0.0} for name, each in named
    ]
    adamw = torch.optim.AdamW(groups, betas=ADAMW.betas)
    history = []
    for step, lr in enumerate(RATES):
        for group in adamw.param_groups:
            group["lr"] = lr
        gradients(model, step)
        adamw.step()
        history.append({name: each.detach().numpy().copy() for name, each in named})
    return history


@pytest.fixture(scope="module")
def plain() -> dict[str, list[dict[str, np.ndarray]]]:
    return {"lamb": plain_lamb(), "adamw": plain_adamw()}


def assert_near(found: dict[str, np.ndarray], expected: dict[str, np.ndarray], atol: float) -> None:
    assert found.keys() == expected.keys()
    for name, each in expected.items():
        np.testing.assert_allclose(found[name], each, rtol=0, atol=atol, err_msg=name)


def variants(precision: str) -> list[str]:
    return [name for name, each in VARIANTS.items() if each.precision == precision]


@pytest.mark.parametrize("name", variants("fp32"))
def test_two_workers_make_the_steps_of_one_plain_loop(results, plain, name):
    history = results[name]["history"]
    for found, expected in zip(history[1:], plain[VARIANTS[name].optimizer.kind], strict=True):
        assert_near(found, expected, atol=2e-6)


@pytest.mark.parametrize("name", variants("bf16"))
def test_bfloat16_stays_near_the_plain_loop_from_the_first_step_on(results, plain, name):
    history = results[name]["history"]
    start = {name: each.detach().numpy() for name, each in Small(seed=1).named_parameters()}
    assert_near(history[0], start, atol=0.01)
    for found, expected in zip(history[1:], plain[VARIANTS[name].optimizer.kind], strict=True):
        assert_near(found, expected, atol=0.02)


@pytest.mark.parametrize("name", VARIANTS)
def test_the_first_step_is_the_first_that_adam_counts(results, name):
    # its bias correction makes every first step of what is not adapted as large as the rate
    before, after = (step["last.bias"] for step in results[name]["history"][:2])
    np.testing.assert_allclose(np.abs(after - before), RATES[0], rtol=1e-4)


@pytest.mark.parametrize("name", VARIANTS)
def test_the_average_is_that_of_the_weights_after_every_step(results, name):
    history = results[name]["history"]
    expected = {key: each.astype(np.float64) for key, each in history[0].items()}
    for step in history[1:]:
        expected = {key: DECAY * expected[key] + (1 - DECAY) * step[key] for key in expected}
    assert_near(results[name]["averaged"], expected, atol=1e-6)


@pytest.mark.parametrize("name", VARIANTS)
def test_the_weights_are_back_after_the_averages_were_read(results, name):
    for key, each in results[name]["after"].items():
        np.testing.assert_array_equal(each, results[name]["history"][-1][key])


@pytest.mark.parametrize("name", VARIANTS)
def test_a_checkpoint_goes_on_as_if_never_stopped_average_included(results, name):
    assert_near(results[name]["resumed"], results[name]["history"][-1], atol=0.0)
    assert_near(results[name]["resumed average"], results[name]["averaged"], atol=0.0)


def test_every_step_but_the_first_moves_every_weight(results):
    for found in results.values():
        # the first step comes before there is a gradient below the weights of zero
        for before, after in pairwise(found["history"][1:]):
            assert all(not np.array_equal(before[key], after[key]) for key in before)
