"""What training steps of the compared models cost: tokens a second and peak memory.

Every measurement has a fresh process with one thread, forked from one that has imported PyTorch
and done nothing with it. Memory is the most resident memory (VmHWM) of some training steps above
what was there before the model was built; a step with one canvas goes before, so that kernels and
their buffers are there already, and freed blocks go back to the system at once, so that the peak is
that of tensors in use. Times are measured with the usual allocator.
"""

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, TypeVar

import torch
from rich.progress import track

from jobs.digit_canvases import training_canvases
from jobs.digits_children import children
from jobs.digits_training import Setup, Trainer
from pipeline.process_memory import (
    restart_peak,
    return_all_freed,
    return_freed_blocks,
    status_bytes,
)

TIMED_STEPS = 12
MEMORY_STEPS = 3
Measured = TypeVar("Measured")
Models = Sequence[tuple[str, str]]


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of a training step."""

    tokens_per_s: float
    """Patches of the canvases, on one thread; the median over all rounds."""
    peak_bytes: int


def measure_costs(models: Models, setup: Setup, *, rounds: int) -> dict[tuple[str, str], Cost]:
    """Speed in rounds over all models, so that a slow moment hits all alike; then memory."""
    seconds: dict[tuple[str, str], list[float]] = {model: [] for model in models}
    turns = [model for _ in range(rounds) for model in models]
    for model in track(turns, description="speed", transient=True):
        seconds[model] += in_a_process(seconds_of_steps, *model, setup)
    peaks = {
        model: in_a_process(peak_bytes, *model, setup)
        for model in track(models, description="memory", transient=True)
    }
    return {
        model: Cost(
            tokens_per_s=setup.tokens_per_step / median(seconds[model]), peak_bytes=peaks[model]
        )
        for model in models
    }


def in_a_process(measure: Callable[..., Measured], *arguments: Any) -> Measured:
    """What `measure` gives in a process of its own, which ends with it."""
    with children(1) as child:
        return child.submit(measure, *arguments).result()


def seconds_of_steps(body: str, operator: str, setup: Setup) -> list[float]:
    """Of training steps, drawing of canvases left out; the first two do not count."""
    torch.set_num_threads(1)
    canvases = training_canvases(setup.canvas, seed=0, step=0, count=setup.recipe.batch)
    trainer = Trainer(setup.model(body, operator), setup.recipe, learning_rate=1e-3)
    taken = []
    for number in range(TIMED_STEPS + 2):
        started_s = time.perf_counter()
        trainer.step(canvases, number=number)
        taken.append(time.perf_counter() - started_s)
    return taken[2:]


def peak_bytes(body: str, operator: str, setup: Setup) -> int:
    """Resident memory that training steps need: weights, optimizer, and what a step keeps."""
    torch.set_num_threads(1)
    return_freed_blocks()
    _steps(body, operator, setup, count=1, batch=1)
    gc.collect()
    return_all_freed()
    restart_peak()
    before = status_bytes("VmRSS")
    _steps(body, operator, setup, count=MEMORY_STEPS, batch=setup.recipe.batch)
    return status_bytes("VmHWM") - before


def _steps(body: str, operator: str, setup: Setup, *, count: int, batch: int) -> None:
    canvases = training_canvases(setup.canvas, seed=0, step=0, count=batch)
    trainer = Trainer(setup.model(body, operator), setup.recipe, learning_rate=1e-3)
    for number in range(count):
        trainer.step(canvases, number=number)
