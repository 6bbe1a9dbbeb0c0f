"""One optimizer step of one worker: its micro-batches, the guard's word, what it cost and found."""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist

from fit_model.optimize import learning_rate_factor
from jobs.assignment import Assignment
from jobs.batches import Batch, Feed
from jobs.engine import set_learning_rate
from jobs.guard import Skip
from jobs.guarded import Guarded
from jobs.inbox import StepRecord
from jobs.meter import Meter
from jobs.offenders import LineUp
from jobs.sharing import Seat
from jobs.smaller_chunks import memory_named
from jobs.trace import images_read


@dataclass(frozen=True, kw_only=True)
class Made:
    """A step that was made."""

    record: StepRecord
    skip: Skip | None
    """Where the guard refused it."""


class StepMaker:
    """Makes one worker's steps; all workers make the same ones.

    Args:
        task: what the worker is told.
        rank: among all workers.
        seat: which images and groups are its own.
        device: where it computes.
        feed: where its batches come from.
        guarded: its engine.
        damaged: images, by number, that were found damaged before.
    """

    def __init__(
        self,
        task: Assignment,
        *,
        rank: int,
        seat: Seat,
        device: torch.device,
        feed: Feed,
        guarded: Guarded,
        damaged: Iterable[int],
    ) -> None:
        self.task = task
        self.rank = rank
        self.seat = seat
        self.device = device
        self.feed = feed
        self.guarded = guarded
        self.damaged = set(damaged)

    def __call__(self, step: int, batches: Iterator[Batch]) -> Made:
        """One optimizer step on one global batch, measured."""
        torch.manual_seed(step_seed(self.task.batch.seed, step=step, rank=self.rank))
        optimizer = self.task.optimizer
        lr = optimizer.lr * learning_rate_factor(
            step,
            warmup_steps=optimizer.warmup_steps,
            total_steps=self.task.total_steps,
            end_factor=optimizer.end_factor,
            cosine_share=optimizer.cosine_share,
        )
        engine = self.guarded.engine
        set_learning_rate(engine, lr)
        meter = Meter(self.task.model, device=self.device, sharing=self.seat.groups)
        line_up = LineUp()
        with memory_named(step=step, rank=self.rank):
            for part in range(self.task.batch.accumulation):
                if part:
                    engine.step()
                with meter.waiting():
                    batch = next(batches)
                meter.add(batch, self.backward(batch, line_up))
            outcome = self.guarded.step(
                step,
                loss=meter.loss / self.seat.groups,
                line_up=line_up,
                ids=self.feed.stand_ins.ids,
            )
        metrics = meter.metrics(
            self.guarded.engine, lr=lr, peak_tflops=self.task.record.peak_tflops
        )
        damaged = self.told_damaged(meter.damaged) if metrics["damaged_images"] else []
        metrics["damaged_images_total"] = float(len(self.damaged))
        record = StepRecord(
            step=step + 1,
            metrics=metrics | outcome.figures,
            damaged=damaged,
            images=self.told_images(meter.images),
            events=outcome.events,
            time_ms=now_ms(),
        )
        return Made(record=record, skip=outcome.skip)

    def told_damaged(self, images: Sequence[int]) -> list[str]:
        """Ids of the images that any worker found damaged; every worker calls it.

        Fails, on all workers alike, when there are too many of them by now.
        """
        stand_ins = self.feed.stand_ins
        flags = torch.zeros(len(stand_ins.ids), dtype=torch.int32, device=self.device)
        flags[list(images)] = 1
        dist.all_reduce(flags, op=dist.ReduceOp.MAX)
        found = flags.nonzero().flatten().tolist()
        stand_ins.add(found)
        self.damaged.update(found)
        return [stand_ins.ids[image] for image in found]

    def told_images(self, numbers: Sequence[int]) -> list[str]:
        """Ids of the images that all workers read, if they are traced; every worker calls it."""
        if self.task.record.trace == "none":
            return []
        ids = self.feed.stand_ins.ids
        return images_read(numbers, ids, sharing=self.seat.groups, device=self.device)

    def backward(self, batch: Batch, line_up: LineUp) -> float:
        """Gradient of the weighted sum of this micro-batch's losses; gives that sum.

        DeepSpeed divides by the micro-steps and averages over the workers; the factor undoes both,
        so that the gradient is the mean over the global batch however many workers share it. The
        workers of a set all give the losses of their images, and each counts for its part.
        """
        targets = None if batch.targets is None else batch.targets.to(self.device)
        # what is bounded moves a chunk at a time
        groups = batch.groups if self.task.bounded else batch.groups.to(self.device)
        losses = self.guarded.engine(groups, targets, batch.seeds)
        loss = (losses * batch.weights.to(self.device)).sum()
        self.guarded.engine.backward(loss * self.task.batch.accumulation * self.seat.num_sets)
        line_up.add(batch.images, losses)
        return float(loss.detach())


def now_ms() -> int:
    """Since 1970."""
    return int(1000 * time.time())


def step_seed(seed: int, *, step: int, rank: int) -> int:
    """Seed of one worker's randomness in one step: restarts repeat it, workers differ in it."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1)[0])
