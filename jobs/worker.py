"""The training loop of one worker: read a share of the batch, step the engine, measure, save."""

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from torch import Tensor

from fit_model.crew import Crew
from fit_model.models import build
from fit_model.objective import PREFIX, Objective
from fit_model.optimize import learning_rate_factor
from fit_model.parallel.crew import form_crew
from fit_model.weights import save_tensors
from jobs.assignment import Assignment
from jobs.batches import Batch, Feed
from jobs.checkpoints import MODEL_FOLDER, restore, saved
from jobs.determinism import computing_by
from jobs.engine import build_engine, full_weights, set_learning_rate
from jobs.meter import Meter
from jobs.monitor import StepRecord
from jobs.process_memory import keep_freed_blocks
from jobs.profiling import Profiler
from jobs.sharing import Comparison, Seat
from jobs.targets import read_labelled
from jobs.validation import Validator
from pipeline.dataset import open_dataset

KEPT_RECORDS = 1000
"""Steps whose figures travel in a checkpoint; far more than the driver ever lags behind."""


def run(loop: dict[str, Assignment]) -> None:
    """Ray Train's entry: train from the newest checkpoint, or from the start, to the last step."""
    task = loop["assignment"]
    torch.set_num_threads(task.threads)
    keep_freed_blocks()
    with told_of_each_other(), computing_by(task.engine.algorithms):
        Loop(task).run()


@contextmanager
def told_of_each_other() -> Iterator[None]:
    """What a collective says when another worker is gone, as a line that names the cause."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        raise ConnectionError(
            f"worker {dist.get_rank()} of {dist.get_world_size()} got no answer from the others: "
            f"one of them has died or hangs ({str(error).splitlines()[0]})"
        ) from error


class Loop:
    """One worker's state between steps."""

    def __init__(self, task: Assignment) -> None:
        context = ray.train.get_context()
        self.task = task
        self.rank = context.get_world_rank()
        self.seat = Seat.of(
            self.rank,
            num_workers=context.get_world_size(),
            parallel=task.parallel,
            face=task.model.face,
        )
        self.device = ray.train.torch.get_device()
        self.feed = self.open_feed(crew := form_crew(task.parallel))
        # every worker draws the same initial weights
        torch.manual_seed(task.batch.seed)
        self.engine = build_engine(
            Objective(build(task.model), bounded=task.bounded, crew=crew).to(self.device),
            optimizer=task.optimizer,
            engine=task.engine,
            accumulation=task.batch.accumulation,
            device=self.device,
        )
        self.profiler = Profiler(task.profile, run=task.folder, rank=self.rank, device=self.device)
        self.validator = self.open_validator(crew)
        progress = restore(self.engine)
        if self.validator:
            self.validator.resume(progress.validation)
        self.finished_steps = progress.step
        self.recent = deque(progress.records, maxlen=KEPT_RECORDS)
        # the driver may have died before it logged them; it knows which ones it has
        self.unsent = list(progress.records)

    def run(self) -> None:
        """All remaining steps; a checkpoint every so often and after the last."""
        self.flush()
        batches = self.batches()
        for step in range(self.finished_steps, self.task.total_steps):
            if self.stopped:
                break
            with self.profiler.around(step + 1):
                self.step(step, batches)
            done = step + 1
            self.validate(done)
            last = done == self.task.total_steps or self.stopped
            if last or done % self.task.record.log_every_steps == 0:
                self.flush()
            if last or done % self.task.record.checkpoint_every_steps == 0:
                self.save(done, last=last)

    def open_feed(self, crew: Crew) -> Feed:
        """What this worker reads."""
        dataset = open_dataset(self.task.dataset, reading=self.task.reading)
        head = self.task.model.head
        return Feed(
            dataset,
            labelled=read_labelled(dataset, head, split=self.task.split),
            head=head,
            config=self.task.batch,
            augment=self.task.augment,
            seat=self.seat,
            compare=Comparison(crew=crew, device=self.device),
        )

    def open_validator(self, crew: Crew) -> Validator | None:
        """Who measures the model on other images, if that is wanted."""
        if self.task.validation is None:
            return None
        return Validator(
            self.task.validation,
            task=self.task,
            dataset=self.feed.dataset,
            seat=self.seat,
            crew=crew,
            device=self.device,
        )

    @property
    def stopped(self) -> bool:
        """Whether there is nothing to be gained from more steps."""
        return self.validator is not None and self.validator.stopped

    def validate(self, done: int) -> None:
        """Add what validation finds to the record of the step, when it is due."""
        if self.validator is None or not self.validator.due(done):
            return
        found = self.validator(self.engine, step=done)
        record = self.recent[-1]
        self.recent[-1] = self.unsent[-1] = replace(
            record,
            metrics={**record.metrics, **found.metrics},
            events=[*record.events, *found.events],
        )

    def batches(self) -> Iterator[Batch]:
        """The worker's micro-batches from the first step that is still to do."""
        return self.feed.stream(self.finished_steps, self.task.total_steps)

    def step(self, step: int, batches: Iterator[Batch]) -> None:
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
        set_learning_rate(self.engine, lr)
        meter = Meter(self.task.model, device=self.device, sharing=self.seat.groups)
        for _ in range(self.task.batch.accumulation):
            with meter.waiting():
                batch = next(batches)
            meter.add(batch, self.backward(batch))
        metrics = meter.metrics(self.engine, lr=lr, peak_tflops=self.task.record.peak_tflops)
        damaged = self.told_damaged(meter.damaged) if metrics["damaged_images"] else []
        record = StepRecord(step=step + 1, metrics=metrics, damaged=damaged)
        self.recent.append(record)
        self.unsent.append(record)

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
        return [stand_ins.ids[image] for image in found]

    def backward(self, batch: Batch) -> float:
        """Gradient of the weighted sum of this micro-batch's losses; gives that sum.

        DeepSpeed divides by the micro-steps and averages over the workers; the factor undoes both,
        so that the gradient is the mean over the global batch however many workers share it. The
        workers of a set all give the losses of their images, and each counts for its part.
        """
        targets = None if batch.targets is None else batch.targets.to(self.device)
        # what is bounded moves a chunk at a time
        groups = batch.groups if self.task.bounded else batch.groups.to(self.device)
        losses = self.engine(groups, targets, batch.seeds)
        loss = (losses * batch.weights.to(self.device)).sum()
        self.engine.backward(loss * self.task.batch.accumulation * self.seat.num_sets)
        self.engine.step()
        return float(loss.detach())

    def flush(self) -> None:
        """Hand what was measured to the driver; one worker speaks for all."""
        if self.rank == 0:
            ray.get(self.task.inbox.put.remote(self.unsent))
        self.unsent = []

    def save(self, done: int, *, last: bool) -> None:
        """A checkpoint after `done` steps; the last one carries the trained model."""
        weights: dict[str, Tensor] = {}
        for name, weight in full_weights(self.engine) if last else ():
            if self.rank == 0:
                weights[name.removeprefix(PREFIX)] = weight
        standing = self.validator.saved() if self.validator else {}
        records = self.recent
        with saved(self.engine, step=done, records=records, validation=standing) as checkpoint:
            if weights:
                save_tensors(weights, self.task.model, Path(checkpoint.path) / MODEL_FOLDER)
            ray.train.report(
                {"step": done},
                checkpoint=checkpoint,
                checkpoint_dir_name=f"step-{done:07d}",
            )


def step_seed(seed: int, *, step: int, rank: int) -> int:
    """Seed of one worker's randomness in one step: restarts repeat it, workers differ in it."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1)[0])
