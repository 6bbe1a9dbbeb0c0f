"""What one training step costs: seconds and peak memory, to be called in a process of its own.

On the CPU two peaks are measured: of resident memory (VmHWM), and of anonymous memory (RssAnon,
looked at every 20 ms), in which pixels that lie in a file do not count. On a GPU it is what PyTorch
allocated. Moments exist before the step that is measured; bare products run in between, see
`products`.
"""

import os
import resource
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Self

import numpy as np
import torch
from torch import Tensor

from fit_model.bounded.config import BoundedConfig
from fit_model.groups import GroupBatch
from fit_model.model import ModelConfig
from fit_model.models import build
from fit_model.objective import Objective
from jobs.engine import DTYPES
from jobs.operator_costs import LeftOut, is_out_of_memory
from jobs.plain_training import MasterWeights
from jobs.products import Products
from jobs.trial import MEMORY
from pipeline.process_memory import keep_freed_blocks, status_bytes

LOOK_EVERY_S = 0.02


@dataclass(frozen=True, kw_only=True)
class StepTask:
    """One measurement."""

    model: ModelConfig
    groups_a_side: int
    bounded: BoundedConfig | None
    precision: Literal["fp32", "bf16"]
    device: Literal["cpu", "cuda"]
    threads: int
    limit_gb: float


@dataclass(frozen=True, kw_only=True)
class StepCost:
    """Of a step at batch 1."""

    seconds: float
    peak_bytes: int
    """Resident memory of the whole process; of a GPU what is allocated."""
    anonymous_bytes: int
    """The same without what lies in files."""
    beyond_bytes: int
    """Of these, what is neither program nor weights, masters, moments and gradients."""
    product_flops_per_s: float
    """What bare matrix products reached in between; they are not counted in `seconds`."""


def measure(task: StepTask) -> StepCost | LeftOut:
    """The cost of a step; more memory than the limit is refused to the process."""
    torch.set_num_threads(task.threads)
    keep_freed_blocks()
    LIMITERS[task.device](task.limit_gb)
    try:
        return one_step(task)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return LeftOut(why=f"> {task.limit_gb:g} GB")


def limit_data(limit_gb: float) -> None:
    """Refuse this process more memory than that, beside what it has."""
    limit = status_bytes("VmData") + int(1e9 * limit_gb)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, resource.RLIM_INFINITY))


def limit_allocated(limit_gb: float) -> None:
    """Refuse PyTorch more of the GPU than that."""
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, 1e9 * limit_gb / total))


LIMITERS: dict[str, Callable[[float], None]] = {"cpu": limit_data, "cuda": limit_allocated}


def one_step(task: StepTask) -> StepCost:
    """Everything that is there before, then the step."""
    device, exact = torch.device(task.device), DTYPES[task.precision]
    before = status_bytes("RssAnon") if task.device == "cpu" else torch.cuda.memory_allocated()
    torch.manual_seed(0)
    model = build(task.model).to(device, exact)
    objective, weights = Objective(model, bounded=task.bounded), MasterWeights(model, lr=1e-4)
    weights.make_state()
    batch = noise(task.model, groups_a_side=task.groups_a_side)
    batch = batch.to(device) if task.bounded is None else batch
    targets = torch.zeros(1, dtype=torch.int64, device=device)
    memory, products = MEMORY[task.device], Products(model)
    memory.restart()
    with WATCHES[task.device]() as watch, products.between():
        started_s = time.perf_counter()
        objective(batch, targets, torch.zeros(1, dtype=torch.int64)).sum().backward()
        weights.step()
        products.wait()
        seconds = time.perf_counter() - started_s
    return StepCost(
        seconds=seconds - products.spent_s,
        product_flops_per_s=products.flops_per_s,
        peak_bytes=memory.peak(),
        anonymous_bytes=watch.peak_bytes,
        beyond_bytes=watch.peak_bytes - before - weights.num_bytes,
    )


class AnonymousMemory:
    """The largest RssAnon of this process while it lasts."""

    def __enter__(self) -> Self:
        self.peak_bytes = status_bytes("RssAnon")
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def _look(self) -> None:
        while not self._over.wait(LOOK_EVERY_S):
            self.peak_bytes = max(self.peak_bytes, status_bytes("RssAnon"))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join()


class AllocatedMemory(AnonymousMemory):
    """What PyTorch allocated at most on the GPU."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.peak_bytes = torch.cuda.max_memory_allocated()


WATCHES: dict[str, type[AnonymousMemory]] = {"cpu": AnonymousMemory, "cuda": AllocatedMemory}


def noise(model: ModelConfig, *, groups_a_side: int) -> GroupBatch:
    """One square image of random pixels that lie in a file without a name."""
    source, count = model.input, groups_a_side**2
    number = torch.arange(count)
    side_px = torch.full_like(number, source.group_side_px)
    return GroupBatch(
        pixels=mapped_noise((count, source.group_side_px, source.group_side_px, source.bands)),
        image=torch.zeros_like(number),
        row=number // groups_a_side,
        column=number % groups_a_side,
        valid_height_px=side_px,
        valid_width_px=side_px,
        grid_rows=torch.tensor([groups_a_side]),
        grid_columns=torch.tensor([groups_a_side]),
        nodata=torch.tensor([float("nan")], dtype=torch.float64),
    )


def mapped_noise(shape: tuple[int, int, int, int]) -> Tensor:
    """Bytes of a file, written a group at a time."""
    generator = np.random.default_rng(0)
    with tempfile.TemporaryFile(prefix="farreach-") as file:
        for _ in range(shape[0]):
            file.write(generator.bytes(int(np.prod(shape[1:]))))
        file.flush()
        os.fsync(file.fileno())
        return torch.from_numpy(np.memmap(file, dtype=np.uint8, mode="r+", shape=shape))
