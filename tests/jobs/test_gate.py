"""A step that is not taken leaves all as it was, however a training is spread."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from jobs.engine import (
    EngineConfig,
    OptimizerConfig,
    build_engine,
    full_weights,
    set_learning_rate,
)
from jobs.gate import Gate
from jobs.small_world import in_small_world
from tests.jobs.test_sharded_optimizers import ADAMW, LAMB, Small, inputs, loss

RATES = (0.02, 0.05, 0.01)
PLAIN = replace(ADAMW, ema_decay=None)


@dataclass(frozen=True)
class Variant:
    optimizer: OptimizerConfig
    stage: int
    precision: str
    accumulation: int = 1


CLIPPED = replace(ADAMW, clip_norm=0.01)
VARIANTS = {
    f"{name} {precision} {stage}": Variant(optimizer, stage, precision, accumulation)
    for name, optimizer, accumulation in (
        ("clipped adamw, averaged", CLIPPED, 2),
        ("lamb, averaged", LAMB, 1),
    )
    for precision in ("fp32", "bf16")
    for stage in range(4)
} | {
    "adamw fp32 0": Variant(PLAIN, 0, "fp32"),
    "adamw fp32 1": Variant(PLAIN, 1, "fp32"),
    "adamw bf16 2": Variant(PLAIN, 2, "bf16"),
}
FAULTS = {
    "nan on one worker": (math.nan, 1),
    "inf on one worker": (math.inf, 0),
    "refused by judgement": (1.0, 0),
}


def made(variant: Variant) -> Any:
    return build_engine(
        Small(seed=1),
        optimizer=variant.optimizer,
        engine=EngineConfig(zero_stage=variant.stage, precision=variant.precision),
        accumulation=variant.accumulation,
        device=torch.device("cpu"),
    )


def step(gate: Gate, variant: Variant, number: int, *, factor: float = 1.0, admit: Any) -> bool:
    """One step; the factor is that of the last micro-step's loss on this worker."""
    engine = gate.engine
    set_learning_rate(engine, RATES[number])
    for part in range(variant.accumulation):
        last = part == variant.accumulation - 1
        data = inputs(10 * number + part, engine.global_rank)
        engine.backward(loss(engine(data), number) * (factor if last else 1.0))
        if not last:
            engine.step()
    return gate.step(admit)


def tensors(value: Any) -> Iterator[np.ndarray]:
    """Copies of all tensors and numbers that something holds."""
    if isinstance(value, torch.Tensor):
        yield value.detach().float().numpy().copy()
    elif isinstance(value, dict):
        for each in value.values():
            yield from tensors(each)
    elif isinstance(value, int | float):
        yield np.array(value)


def everything(engine: Any) -> dict[str, list[np.ndarray]]:
    """What a step may change: this worker's part of the state, and all weights."""
    optimizer = engine.basic_optimizer
    return {
        "state": [each for kept in optimizer.state.values() for each in tensors(kept)],
        "weights": [each.numpy() for _, each in full_weights(engine, which="latest")],
        "averages": [each.numpy() for _, each in full_weights(engine, which="averaged")],
        "rounded": [
            each.detach().float().numpy().copy()
            for each in engine.module.parameters()
            # ZeRO 3 gathers them when it needs them
            if not hasattr(each, "ds_id")
        ],
    }


def same(found: dict[str, list[np.ndarray]], expected: dict[str, list[np.ndarray]]) -> None:
    for name, each in expected.items():
        assert len(found[name]) == len(each), name
        for left, right in zip(found[name], each, strict=True):
            np.testing.assert_array_equal(left, right, err_msg=name)


def compared(variant: Variant, rank: int) -> str:
    """What differs between a disturbed and an undisturbed training on this worker."""
    undisturbed = Gate(made(variant))
    history = [everything(undisturbed.engine)]
    for number in range(len(RATES)):
        assert step(undisturbed, variant, number, admit=lambda norm: True)
        history.append(everything(undisturbed.engine))
    try:
        disturb(variant, rank, history)
    except AssertionError as error:
        return f"rank {rank}: {error}"
    return ""


def disturb(variant: Variant, rank: int, history: list[dict[str, list[np.ndarray]]]) -> None:
    """Every step is refused for every reason before it is taken."""
    gate = Gate(made(variant))
    for number in range(len(RATES)):
        for fault, (factor, worker) in FAULTS.items():
            norms: list[float] = []

            def refuse(norm: float, norms: list[float] = norms) -> bool:
                norms.append(norm)
                return False

            mine = factor if rank == worker else 1.0
            assert not step(gate, variant, number, factor=mine, admit=refuse)
            assert [math.isfinite(norm) for norm in norms] == [factor == 1.0], (fault, norms)
            same(everything(gate.engine), history[number])
        assert step(gate, variant, number, admit=lambda norm: True)
        same(everything(gate.engine), history[number + 1])


def admitted_with_nan(variant: Variant) -> bool:
    gate = Gate(made(variant))
    taken = step(gate, variant, 0, factor=math.nan, admit=lambda norm: True)
    return taken or len(gate.engine.basic_optimizer.state) > 0


def moments(variant: Variant, *, refused: int) -> list[list[str]]:
    """Of every parameter, the parts of its state that DeepSpeed finds after the first step."""
    gate = Gate(made(variant))
    for admitted in (False,) * refused + (True,):
        step(gate, variant, 0, admit=lambda norm, admitted=admitted: admitted)
    parameters = [each for each in gate.engine.module.parameters() if each._hp_mapping is not None]
    return [each._hp_mapping.get_optim_state_keys() for each in parameters]


def all_found(task: None, rank: int) -> dict[str, Any]:
    """By variant what every worker says, and what else is looked at; one world for all tests."""
    differences: dict[str, list[str]] = {}
    for name, variant in VARIANTS.items():
        differences[name] = [""] * dist.get_world_size()
        dist.all_gather_object(differences[name], compared(variant, rank))
    named = {name: VARIANTS[name] for name in ("adamw fp32 0", "adamw fp32 1", "adamw bf16 2")}
    return {
        "differences": differences,
        "admitted": {name: admitted_with_nan(each) for name, each in named.items()},
        "moments": {
            name: [moments(each, refused=count) for count in (0, 1)]
            for name, each in named.items()
            if each.stage > 0
        },
    }


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    return in_small_world(all_found, None, num_workers=2, threads=1)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_refused_step_changes_nothing_and_the_next_one_is_as_if_it_had_never_been(found, name):
    assert found["differences"][name] == ["", ""]


def test_a_gradient_that_is_not_finite_is_refused_whoever_admits_it(found):
    assert not any(found["admitted"].values())


def test_deepspeed_finds_the_moments_also_where_the_first_step_was_refused(found):
    for expected, after_refusal in found["moments"].values():
        assert after_refusal == expected
        assert ["exp_avg", "exp_avg_sq"] in expected
