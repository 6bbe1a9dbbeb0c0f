"""Three real training steps on random pixels, in processes of their own: what they took.

Every worker is a process with the engine that trains; they talk over loopback. On a CPU memory is
resident memory, on a GPU what PyTorch has allocated and the context's share.
"""

import os
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fit_model.groups import GroupBatch, collate
from fit_model.models import build
from fit_model.objective import Objective
from fit_model.parallel.config import ParallelConfig
from fit_model.parallel.crew import form_crew
from fit_model.parallel.shares import share_of
from fit_model.stored_pixels import StoredPixels
from jobs.engine import EngineConfig, OptimizerConfig, build_engine
from jobs.errors import UserError
from jobs.planning import PROGRAM_BYTES, Demand, Plan, images_at_once, with_checkpointing
from jobs.small_world import in_small_world
from pipeline.process_memory import restart_peak, status_bytes

STEPS = 3
"""The first one makes the optimizer's state."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What the first worker saw."""

    rest_bytes: int
    """Between two steps."""
    peak_bytes: int
    step_s: tuple[float, ...]


def require_machine(demand: Demand, plan: Plan) -> None:
    """Refuse to measure workers that this machine does not have."""
    have = torch.cuda.device_count() if demand.device == "gpu" else os.cpu_count() or 1
    if have < plan.num_workers:
        kind = "GPUs" if demand.device == "gpu" else "CPU cores"
        raise UserError(
            f"measure wants {plan.num_workers} workers, and this machine has {have} {kind}: leave "
            "--measure out, or take fewer workers.num_workers"
        )


def trial(demand: Demand, plan: Plan, *, threads: int) -> Trial:
    """Run the steps; what fails on a worker is raised here."""
    return in_small_world(
        steps, (demand, plan), num_workers=plan.num_workers, threads=threads, device=demand.device
    )


def steps(task: tuple[Demand, Plan], rank: int) -> Trial:
    """Build the engine and make the steps, on one worker."""
    demand, plan = task
    device = torch.device("cuda", rank) if demand.device == "gpu" else torch.device("cpu")
    torch.manual_seed(0)
    crew = form_crew(ParallelConfig(groups=plan.sharing))
    model = build(with_checkpointing(demand.model, plan.checkpointing))
    engine = build_engine(
        Objective(model, bounded=plan.bounded, crew=crew).to(device),
        optimizer=OptimizerConfig(),
        engine=EngineConfig(zero_stage=plan.zero_stage, precision=demand.precision),
        accumulation=1,
        device=device,
    )
    batch = random_batch(demand, plan, rank)
    taken, rest, peak = [], 0, 0
    for _ in range(STEPS):
        memory = MEMORY[device.type]
        memory.restart()
        rest = memory.now()
        started_s = time.perf_counter()
        one_step(engine, batch, device=device, whole=plan.bounded is None)
        taken.append(time.perf_counter() - started_s)
        peak = max(peak, memory.peak())
    return Trial(rest_bytes=rest, peak_bytes=peak, step_s=tuple(taken))


def one_step(engine: Any, batch: GroupBatch, *, device: torch.device, whole: bool) -> None:
    """Forward, backward, update."""
    images = batch.num_images
    targets = torch.zeros(images, dtype=torch.int64, device=device)
    seeds = torch.arange(images)
    losses = engine(batch.to(device) if whole else batch, targets, seeds)
    engine.backward(losses.mean())
    engine.step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def random_batch(demand: Demand, plan: Plan, rank: int) -> GroupBatch:
    """A worker's share of square images, whose groups all show the same noise."""
    source, side = demand.model.input, round(demand.groups_per_image**0.5)
    number = torch.arange(demand.groups_per_image)
    px = source.group_side_px
    square = np.random.default_rng(0).integers(0, 256, (px, px, source.bands))
    one = GroupBatch(
        pixels=StoredPixels([square.astype(demand.pixel_dtype)] * len(number)),
        image=torch.zeros_like(number),
        row=number // side,
        column=number % side,
        valid_height_px=torch.full_like(number, px),
        valid_width_px=torch.full_like(number, px),
        grid_rows=torch.tensor([side]),
        grid_columns=torch.tensor([side]),
        nodata=torch.tensor([float("nan")], dtype=torch.float64),
    )
    batch = collate([one] * images_at_once(demand, plan))
    if plan.sharing == 1:
        return batch
    unit = "rows" if demand.model.face.kind == "autoregressive" else "groups"
    return share_of(batch, worker=rank % plan.sharing, num_workers=plan.sharing, unit=unit)


class Resident:
    """Resident memory of this process, on Linux."""

    def restart(self) -> None:
        """Count the peak from here."""
        restart_peak()

    def now(self) -> int:
        """Bytes."""
        return status_bytes("VmRSS")

    def peak(self) -> int:
        """Bytes."""
        return status_bytes("VmHWM")


class Allocated:
    """Memory of the GPU that this process has, its context by rule of thumb."""

    def restart(self) -> None:
        """Count the peak from here."""
        torch.cuda.reset_peak_memory_stats()

    def now(self) -> int:
        """Bytes."""
        return torch.cuda.memory_allocated() + PROGRAM_BYTES["gpu"]["device"]

    def peak(self) -> int:
        """Bytes."""
        return torch.cuda.max_memory_allocated() + PROGRAM_BYTES["gpu"]["device"]


MEMORY: dict[str, Resident | Allocated] = {"cpu": Resident(), "cuda": Allocated()}
