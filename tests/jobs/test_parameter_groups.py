"""Groups with a rate and a decay of their own make the steps that plain torch makes with them."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from fit_model.optimize import ParameterGroup
from jobs.determinism import computing_by
from jobs.engine import EngineConfig, OptimizerConfig, build_engine, full_weights, set_learning_rate
from jobs.settings import load, to_flat_dict
from jobs.small_world import in_small_world
from tests.fit_model.numpy_lamb import NumpyLamb
from tests.jobs.test_sharded_optimizers import ADAPTED, RATES, Small, gradients, inputs, loss

ADAMW = OptimizerConfig(
    weight_decay=0.1,
    betas=(0.9, 0.99),
    clip_norm=0.0,
    groups=(
        ParameterGroup(pattern="last.*", lr_factor=0.3, weight_decay=0.5),
        ParameterGroup(pattern="norm.*", lr_factor=4.0),
        ParameterGroup(pattern="tab?e", lr_factor=0.0),
    ),
)
LAMB = replace(ADAMW, kind="lamb")
FACTORS = {"last": (0.3, 0.5), "norm": (4.0, 0.0), "table": (0.0, 0.1), "wide": (1.0, 0.1)}
STAGES = range(4)


def settings(name: str) -> tuple[float, float]:
    """Factor of the rate, and weight decay, of one parameter."""
    factor, decay = FACTORS[name.split(".")[0]]
    return factor, decay if name in ADAPTED else 0.0


def train(variants: dict[str, tuple[OptimizerConfig, int]], rank: int) -> dict[str, Any]:
    """The weights after each step, by variant."""
    found = {}
    with computing_by("deterministic"):
        for name, (optimizer, stage) in variants.items():
            engine = build_engine(
                Small(seed=1),
                optimizer=optimizer,
                engine=EngineConfig(zero_stage=stage),
                accumulation=1,
                device=torch.device("cpu"),
            )
            history = []
            for step, lr in enumerate(RATES):
                set_learning_rate(engine, lr)
                engine.backward(loss(engine(inputs(step, rank)), step))
                engine.step()
                learned = dict(engine.module.named_parameters())
                weights = dict(full_weights(engine))
                history.append({key: weights[key].numpy() for key in learned})
            found[name] = history
    return found


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    named = {f"adamw {stage}": (ADAMW, stage) for stage in STAGES}
    named |= {f"lamb {stage}": (LAMB, stage) for stage in STAGES}
    return in_small_world(train, named, num_workers=2, threads=1)


def plain_adamw() -> list[dict[str, np.ndarray]]:
    model = Small(seed=1)
    named = list(model.named_parameters())
    adamw = torch.optim.AdamW(
        [{"params": [each], "weight_decay": settings(name)[1]} for name, each in named],
        betas=ADAMW.betas,
    )
    history = []
    for step, lr in enumerate(RATES):
        for (name, _), group in zip(named, adamw.param_groups, strict=True):
            group["lr"] = lr * settings(name)[0]
        gradients(model, step)
        adamw.step()
        history.append({name: each.detach().numpy().copy() for name, each in named})
    return history


def plain_lamb() -> list[dict[str, np.ndarray]]:
    model = Small(seed=1)
    optimizers = {
        name: NumpyLamb(
            each.detach().numpy(), settings(name)[1], name in ADAPTED, LAMB.betas, LAMB.eps
        )
        for name, each in model.named_parameters()
    }
    history = []
    for step, lr in enumerate(RATES):
        found = gradients(model, step)
        for name, each in model.named_parameters():
            optimizers[name].step(found[name].numpy(), lr=lr * settings(name)[0])
            each.data.copy_(torch.from_numpy(optimizers[name].weight))
        history.append({name: each.weight for name, each in optimizers.items()})
    return history


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(("kind", "plain"), [("adamw", plain_adamw), ("lamb", plain_lamb)])
def test_two_workers_make_the_steps_of_plain_groups(results, kind, plain, stage):
    for found, expected in zip(results[f"{kind} {stage}"], plain(), strict=True):
        assert found.keys() == expected.keys()
        for name, each in expected.items():
            np.testing.assert_allclose(found[name], each, rtol=0, atol=2e-6, err_msg=name)


def test_a_factor_of_zero_leaves_parameters_as_they_are_bit_by_bit(results):
    start = Small(seed=1).table.detach().numpy()
    for history in results.values():
        np.testing.assert_array_equal(history[-1]["table"], start)


def test_groups_are_settings_like_all_others():
    config = load(OptimizerConfig, None, ["groups=[{pattern: 'head.*', lr_factor: 1e-1}]"])
    assert config.groups == (ParameterGroup(pattern="head.*", lr_factor=0.1),)
    assert "head.*" in to_flat_dict(config)["groups"]
