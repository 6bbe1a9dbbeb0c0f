"""LAMB and averaged weights under every way to spread a training are those of one plain loop."""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import ray.train
import torch
from ray.train.torch import TorchTrainer
from torch import nn

from jobs.engine import (
    EngineConfig,
    OptimizerConfig,
    build_engine,
    full_weights,
    set_learning_rate,
)
from jobs.inbox import Inbox
from tests.fit_model.numpy_lamb import NumpyLamb

pytestmark = [pytest.mark.ray]

RATES = (0.02, 0.05, 0.01, 0.03)
SAVED_AFTER = 2
DECAY = 0.7
WORKERS = 2
ADAPTED = {"wide.weight", "last.weight", "table"}
LAMB = OptimizerConfig(
    kind="lamb", weight_decay=0.1, betas=(0.9, 0.99), clip_norm=0.0, ema_decay=DECAY
)
ADAMW = OptimizerConfig(
    kind="adamw", weight_decay=0.1, betas=(0.9, 0.99), clip_norm=0.0, ema_decay=DECAY
)


class Small(nn.Module):
    """Odd sizes, which two workers do not share evenly, and weights that start at zero."""

    def __init__(self, *, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.table = nn.Parameter(torch.randn(3))
        self.wide = nn.Linear(3, 5)
        self.norm = nn.LayerNorm(5)
        self.last = nn.Linear(5, 7)
        nn.init.zeros_(self.last.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.to(self.table.dtype) + self.table
        return self.last(self.norm(torch.tanh(self.wide(x))))


def loss(outputs: torch.Tensor, step: int) -> torch.Tensor:
    return ((outputs.float() - torch.arange(7) / 3 - step) ** 2).mean()


def inputs(step: int, rank: int) -> torch.Tensor:
    return torch.randn(4, 3, generator=torch.Generator().manual_seed(100 * step + rank))


@dataclass(frozen=True)
class Variant:
    optimizer: OptimizerConfig
    stage: int
    precision: str = "fp32"


VARIANTS = {
    **{f"lamb {stage}": Variant(LAMB, stage) for stage in range(4)},
    **{f"lamb bf16 {stage}": Variant(LAMB, stage, "bf16") for stage in range(4)},
    **{f"adamw {stage}": Variant(ADAMW, stage) for stage in (2, 3)},
    "adamw bf16 0": Variant(ADAMW, 0, "bf16"),
}


def made(variant: Variant, *, seed: int) -> Any:
    return build_engine(
        Small(seed=seed),
        optimizer=variant.optimizer,
        engine=EngineConfig(zero_stage=variant.stage, precision=variant.precision),
        accumulation=1,
        device=torch.device("cpu"),
    )


def weights(engine: Any, which: str) -> dict[str, np.ndarray]:
    return {name: each.numpy() for name, each in full_weights(engine, which=which)}


def train(engine: Any, steps: range) -> list[dict[str, np.ndarray]]:
    """The weights after each of these steps."""
    history = []
    for step in steps:
        set_learning_rate(engine, RATES[step])
        engine.backward(loss(engine(inputs(step, engine.global_rank)), step))
        engine.step()
        history.append(weights(engine, "latest"))
    return history


uninitialized = torch.empty


def dirty_empty(*args: Any, **settings: Any) -> torch.Tensor:
    """Memory that was not written to, and looks like it: what fills up shares must not count."""
    found = uninitialized(*args, **settings)
    small = found.is_floating_point() and found.numel() < 100
    return found.detach().fill_(7.0) if small else found


def train_all(loop: dict[str, Any]) -> None:
    """Every variant in one go, and in two with a checkpoint between them."""
    torch.set_num_threads(1)
    torch.empty = dirty_empty
    for name, variant in VARIANTS.items():
        engine = made(variant, seed=1)
        history = [weights(engine, "latest"), *train(engine, range(SAVED_AFTER))]
        engine.save_checkpoint(loop["folder"], tag=name, save_latest=False)
        history += train(engine, range(SAVED_AFTER, len(RATES)))
        averaged = weights(engine, "averaged")
        after = weights(engine, "latest")
        again = made(variant, seed=2)
        again.load_checkpoint(loop["folder"], tag=name)
        train(again, range(SAVED_AFTER, len(RATES)))
        found = {
            "history": history,
            "averaged": averaged,
            "after": after,
            "resumed": weights(again, "latest"),
            "resumed average": weights(again, "averaged"),
        }
        if engine.global_rank == 0:
            ray.get(loop["inbox"].put.remote([(name, found)]))


@pytest.fixture(scope="module")
def results(ray_local, tmp_path_factory) -> dict[str, Any]:
    inbox = Inbox.remote()
    folder: Path = tmp_path_factory.mktemp("sharded")
    TorchTrainer(
        train_all,
        train_loop_config={"inbox": inbox, "folder": str(folder)},
        scaling_config=ray.train.ScalingConfig(num_workers=WORKERS),
        run_config=ray.train.RunConfig(name="sharded", storage_path=str(folder)),
    ).fit()
    return dict(ray.get(inbox.drain.remote()).records)


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
