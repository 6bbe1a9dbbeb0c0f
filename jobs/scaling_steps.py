"""Where the time of one training step goes on a worker that shares its image with others."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, cast

import torch
import torch.distributed as dist
from torch import nn

from fit_model.bounded.config import BoundedConfig
from fit_model.crew import ALONE, Crew
from fit_model.encoder_model import EncoderCourse, EncoderModel
from fit_model.groups import GroupBatch
from fit_model.model import ModelConfig
from fit_model.models import build
from fit_model.objective import Objective
from fit_model.parallel.config import ParallelConfig
from fit_model.parallel.crew import form_crew
from fit_model.parallel.shares import share_of
from fit_model.recompute import recomputed
from jobs.engine import DTYPES
from jobs.memory_steps import noise


@dataclass(frozen=True, kw_only=True)
class ScalingTask:
    """One measurement, on however many workers there are."""

    model: ModelConfig
    groups_a_side: int
    bounded: BoundedConfig
    precision: Literal["fp32", "bf16"]
    rounds: int


@dataclass(frozen=True, kw_only=True)
class Spent:
    """Seconds of the slowest worker in its fastest round."""

    passes_s: float
    """Forward and backward, meetings among them."""
    meetings_s: float
    """Alone: forward, again, and backward."""
    gradients_s: float
    """Their sum over the workers."""

    @property
    def outside_s(self) -> float:
        """Of the passes, what is not in meetings."""
        return self.passes_s - self.meetings_s

    @property
    def step_s(self) -> float:
        """Passes and gradients."""
        return self.passes_s + self.gradients_s


def spent(task: ScalingTask, rank: int) -> Spent:
    """Called on every worker at once."""
    num_workers = dist.get_world_size()
    crew = form_crew(ParallelConfig(groups=num_workers)) if num_workers > 1 else ALONE
    torch.manual_seed(0)
    model = cast(EncoderModel, build(task.model).to(DTYPES[task.precision]))
    batch = noise(task.model, groups_a_side=task.groups_a_side)
    if num_workers > 1:
        batch = share_of(batch, worker=rank, num_workers=num_workers, unit="groups")
    objective = Objective(model, bounded=task.bounded, crew=crew)
    return Spent(
        passes_s=fastest(lambda: both_passes(objective, batch), rounds=task.rounds),
        meetings_s=fastest(lambda: meetings(model, batch, crew), rounds=task.rounds),
        gradients_s=fastest(lambda: summed_gradients(model), rounds=task.rounds),
    )


def fastest(run: Callable[[], None], *, rounds: int) -> float:
    """Seconds until all workers are through, of the fastest round; one goes before."""
    run()
    taken = []
    for _ in range(rounds):
        dist.barrier()
        started_s = time.perf_counter()
        run()
        seconds = torch.tensor(time.perf_counter() - started_s, dtype=torch.float64)
        dist.all_reduce(seconds, dist.ReduceOp.MAX)
        taken.append(float(seconds))
    return min(taken)


def both_passes(objective: nn.Module, batch: GroupBatch) -> None:
    """Of one image."""
    objective.zero_grad()
    targets, seeds = torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
    objective(batch, targets, seeds).sum().backward()


def meetings(model: EncoderModel, batch: GroupBatch, crew: Crew) -> None:
    """Of all blocks, as bounded memory computes them: forward, forward again, backward."""
    course = EncoderCourse(model, batch, crew=crew)
    latents = course.start().latents.detach()
    for number in range(len(course.trunk.blocks)):
        with torch.no_grad():
            course.trunk.meet(number, latents, images=course.images)
        asked = latents.clone().requires_grad_()
        met = course.trunk.meet(number, asked, images=course.images, run=recomputed)
        if met is not asked:
            met.sum().backward()


def summed_gradients(model: nn.Module) -> None:
    """Over all workers, as data parallelism sums them."""
    if dist.get_world_size() == 1:
        return
    for parameter in model.parameters():
        if parameter.grad is not None:
            dist.all_reduce(parameter.grad)
