"""What one layer of an operator costs: time and peak memory of a forward and a backward pass.

Memory is the peak of the process above what it held before the layer was built: weights, input,
what is kept for the backward pass, gradients. On the CPU that is resident memory (VmHWM, set back
before), on a GPU what was allocated. Three things keep short sequences from drowning in it:

-   a pass over the shortest sequence of the bench goes before, so that threads, kernels and their
    buffers are there already;
-   the allocator "returning" gives every freed block of 64 KiB or more back at once and takes it
    anew, so that peaks are those of tensors in use; times are measured with the usual one;
-   what is left, the kernel's own count of pages, is off by less than 0.3 MB.
"""

import gc
import math
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from fit_model.attention.mixers import build_mixer
from fit_model.attention.place import Place
from pipeline.process_memory import (
    restart_peak,
    return_all_freed,
    return_freed_blocks,
    status_bytes,
)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}
LEAST_S = 0.2
"""Passes are repeated until they took this long together, and the fastest counts."""


@dataclass(frozen=True, kw_only=True)
class LayerSpec:
    """The layers that are compared; all but the operator and the length is the same for all."""

    width: int
    heads: int
    batch: int
    dtype: Literal["float32", "bfloat16", "float64"]
    device: Literal["cpu", "cuda"]


@dataclass(frozen=True, kw_only=True)
class Task:
    """One measurement."""

    operator: str
    length: int
    layer: LayerSpec
    warm_length: int
    limit_s: float
    limit_gb: float
    patience_s: float
    """After so long without an answer, start and warm-up included, the process is ended."""
    allocator: Literal["returning", "usual"]


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of a pass over a batch."""

    forward_s: float
    backward_s: float
    peak_bytes: int

    @property
    def seconds(self) -> float:
        """Both ways."""
        return self.forward_s + self.backward_s


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """What was not measured, and why: "> 15 s", "> 4 GB"."""

    why: str


def measure(task: Task) -> Cost | LeftOut:
    """The cost of a layer, to be called in a process of its own (`operator_children`).

    More memory than the limit is refused to the process, which ends the measurement.
    """
    meter = METERS[task.layer.device](task)
    passes(task, length=task.warm_length, least_s=0.0)
    gc.collect()
    meter.start()
    try:
        forward_s, backward_s = min(passes(task, length=task.length, least_s=LEAST_S), key=sum)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return LeftOut(why=f"> {task.limit_gb:g} GB")
    return Cost(forward_s=forward_s, backward_s=backward_s, peak_bytes=meter.peak_bytes())


def is_out_of_memory(error: Exception) -> bool:
    """Whether an allocation was refused; on the CPU PyTorch says so in words alone."""
    words = ("can't allocate memory", "not enough memory", "out of memory", "bad_alloc")
    kinds = (MemoryError, torch.OutOfMemoryError)
    return isinstance(error, kinds) or any(word in str(error) for word in words)


def passes(task: Task, *, length: int, least_s: float) -> list[tuple[float, float]]:
    """Seconds of the forward and of the backward pass, again and again; at least once."""
    spec = task.layer
    torch.manual_seed(0)
    layer = build(task.operator, length=length, spec=spec).to(spec.device, DTYPES[spec.dtype])
    x = torch.randn(spec.batch, length, spec.width, device=spec.device, dtype=DTYPES[spec.dtype])
    x.requires_grad_()
    gradient = torch.ones_like(x)
    wait: Callable[[], None] = torch.cuda.synchronize if spec.device == "cuda" else lambda: None
    taken: list[tuple[float, float]] = []
    while not taken or sum(map(sum, taken)) < least_s:
        layer.zero_grad()
        x.grad = None
        taken.append(one_pass(layer, x, gradient, wait=wait))
    return taken


def one_pass(
    layer: nn.Module, x: Tensor, gradient: Tensor, *, wait: Callable[[], None]
) -> tuple[float, float]:
    """Seconds forward and backward."""
    wait()
    started_s = time.perf_counter()
    y = layer(x)
    wait()
    turned_s = time.perf_counter()
    y.backward(gradient)
    wait()
    return turned_s - started_s, time.perf_counter() - turned_s


def build(operator: str, *, length: int, spec: LayerSpec) -> nn.Module:
    """The layer, projections included, for a sequence of `length` tokens on a grid."""
    place = Place(grid=grid_of(length))
    return build_mixer(operator, width=spec.width, heads=spec.heads, place=place)


def grid_of(length: int) -> tuple[int, int]:
    """The grid of so many tokens that is nearest to a square."""
    rows = next(rows for rows in range(math.isqrt(length), 0, -1) if length % rows == 0)
    return rows, length // rows


class ResidentMemory:
    """Of this process, on Linux."""

    def __init__(self, task: Task) -> None:
        self.limit_bytes = int(task.limit_gb * 1e9)
        if task.allocator == "returning":
            return_freed_blocks()

    def start(self) -> None:
        """Count from here."""
        return_all_freed()
        limit = status_bytes("VmData") + self.limit_bytes
        resource.setrlimit(resource.RLIMIT_DATA, (limit, resource.RLIM_INFINITY))
        restart_peak()
        self.before = status_bytes("VmRSS")

    def peak_bytes(self) -> int:
        """The most since the start, above what was there then."""
        return status_bytes("VmHWM") - self.before


class AllocatedMemory:
    """Of the GPU, by this process."""

    def __init__(self, task: Task) -> None:
        total = torch.cuda.get_device_properties(0).total_memory
        self.limit_share = task.limit_gb * 1e9 / total

    def start(self) -> None:
        """Count from here."""
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(min(1.0, self.limit_share))
        torch.cuda.reset_peak_memory_stats()
        self.before = torch.cuda.memory_allocated()

    def peak_bytes(self) -> int:
        """The most since the start, above what was there then."""
        return torch.cuda.max_memory_allocated() - self.before


METERS: dict[str, type[ResidentMemory] | type[AllocatedMemory]] = {
    "cpu": ResidentMemory,
    "cuda": AllocatedMemory,
}
