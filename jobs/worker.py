"""The training loop of one worker: read a share of the batch, step the engine, measure, save."""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist

from fit_model.models import build
from fit_model.objective import Objective
from fit_model.parallel.crew import form_crew
from jobs.assignment import Assignment
from jobs.batches import Batch, Feed
from jobs.checkpoint_folders import FOLDER
from jobs.checkpoints import Checkpoints
from jobs.determinism import computing_by
from jobs.engine import build_engine
from jobs.engine_state import states_kept
from jobs.errors import MachineFault, UserError
from jobs.events import Event
from jobs.exporting import MODEL, export
from jobs.guard import RollBack
from jobs.guarded import Guarded
from jobs.inbox import StepRecord
from jobs.manifests import Progress
from jobs.one_step import StepMaker, now_ms
from jobs.profiling import Profiler
from jobs.pulse import Heart
from jobs.sharing import Comparison, Seat
from jobs.smaller_chunks import memory_named
from jobs.targets import read_labelled
from jobs.validation import Validator
from pipeline.dataset import open_dataset
from pipeline.process_memory import keep_freed_blocks
from pipeline.storage import Location

KEPT_RECORDS = 1000
"""Steps whose figures travel in a checkpoint; far more than the driver ever lags behind."""


def run(loop: dict[str, Assignment]) -> str:
    """Ray Train's entry: train from the newest checkpoint, or from the start, to the last step.

    Gives why the workers left before it, or nothing.
    """
    with looping(loop["assignment"]) as worker:
        return worker.run()


@contextmanager
def looping(task: Assignment) -> Iterator["Loop"]:
    """A worker's loop, whose heart beats meanwhile."""
    torch.set_num_threads(task.threads)
    keep_freed_blocks()
    context = ray.train.get_context()
    heart = Heart(
        task.inbox,
        rank=context.get_world_rank(),
        num_workers=context.get_world_size(),
        first_on_node=context.get_local_rank() == 0,
    )
    with told_of_each_other(), computing_by(task.engine.algorithms), heart:
        yield Loop(task, heart)


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

    def __init__(self, task: Assignment, heart: Heart) -> None:
        context = ray.train.get_context()
        self.task = task
        self.heart = heart
        self.rank = context.get_world_rank()
        self.seat = Seat.of(
            self.rank,
            num_workers=context.get_world_size(),
            parallel=task.parallel,
            face=task.model.face,
        )
        self.device = ray.train.torch.get_device()
        self.crew = form_crew(task.parallel)
        self.feed = self.open_feed()
        self.validator = self.open_validator()
        self.folder = Location.of(task.folder)
        self.checkpoints = Checkpoints(
            self.folder.child(FOLDER),
            config=task.record,
            states=states_kept(task.optimizer),
            origin=task.origin,
            last_step=task.total_steps,
            device=self.device,
            tell=self.tell,
        )
        self.profiler = Profiler(task.profile, run=task.folder, rank=self.rank, device=self.device)
        self.guarded = Guarded(
            task.guard,
            folder=task.folder,
            build=self.build,
            restore=self.checkpoints.restore,
            device=self.device,
            tell=self.tell,
        )
        progress = self.guarded.begin()
        if self.validator:
            self.validator.resume(progress.validation)
        self.finished_steps = progress.step
        # after a rollback some steps that are still to be made again are recorded already
        self.recorded_steps = max([progress.step, *(each.step for each in progress.records)])
        self.recent = deque(progress.records, maxlen=KEPT_RECORDS)
        self.around = self.guarded.guard.goes_around()
        self.make = StepMaker(
            task,
            rank=self.rank,
            seat=self.seat,
            device=self.device,
            feed=self.feed,
            guarded=self.guarded,
            damaged=progress.damaged,
        )
        # the driver may have died before it logged them; it knows which ones it has
        self.unsent = list(progress.records)

    def run(self) -> str:
        """All remaining steps, more than once those before which the guard goes back.

        Gives why the workers agreed to leave before the last, or nothing.
        """
        while True:
            try:
                return self.steps()
            except RollBack as back:
                self.flush()
                progress = self.guarded.roll_back(back)
                self.finished_steps = progress.step
                self.around = self.guarded.guard.goes_around()
                if self.validator:
                    self.validator.resume(progress.validation)
            except (MachineFault, UserError):
                # no other attempt may make these steps again, and they tell why it ends
                self.flush()
                raise

    def steps(self) -> str:
        """The steps from the last finished one on; a checkpoint every so often and after the last.

        Gives as `run`.
        """
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
            leaves = self.heart.leaves(self.device)
            ends = last or bool(leaves)
            if ends or done % self.task.record.log_every_steps == 0:
                self.flush()
            if ends or done % self.task.record.checkpoint_every_steps == 0:
                self.save(done, wait=ends)
            self.checkpoints.settle()
            self.heart.finished(done)
            if leaves and not last:
                return leaves
        export(self.engine, self.task.model, self.folder.child(MODEL))
        return ""

    @property
    def engine(self) -> Any:
        """The present one: going back makes another."""
        return self.guarded.engine

    def build(self) -> Any:
        """An engine with the initial weights."""
        # every worker draws the same ones
        torch.manual_seed(self.task.batch.seed)
        model = Objective(build(self.task.model), bounded=self.task.bounded, crew=self.crew)
        return build_engine(
            model.to(self.device),
            optimizer=self.task.optimizer,
            engine=self.task.engine,
            accumulation=self.task.batch.accumulation,
            device=self.device,
        )

    def open_feed(self) -> Feed:
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
            compare=Comparison(crew=self.crew, device=self.device),
        )

    def open_validator(self) -> Validator | None:
        """Who measures the model on other images, if that is wanted."""
        if self.task.validation is None:
            return None
        return Validator(
            self.task.validation,
            task=self.task,
            dataset=self.feed.dataset,
            seat=self.seat,
            crew=self.crew,
            device=self.device,
            advances=self.heart.advances,
        )

    @property
    def stopped(self) -> bool:
        """Whether there is nothing to be gained from more steps."""
        return self.validator is not None and self.validator.stopped

    def validate(self, done: int) -> None:
        """Add what validation finds to the record of the step, when it is due."""
        if self.validator is None or not self.validator.due(done):
            return
        with memory_named(step=done - 1, rank=self.rank):
            found = self.validator(self.engine, step=done)
        if self.unsent and (record := self.unsent[-1]).step == done:
            self.recent[-1] = self.unsent[-1] = replace(
                record,
                metrics={**record.metrics, **found.metrics},
                events=[*record.events, *found.events],
            )

    def batches(self) -> Iterator[Batch]:
        """The worker's micro-batches from the first step that is still to do."""
        return self.feed.stream(self.finished_steps, self.task.total_steps, around=self.around)

    def step(self, step: int, batches: Iterator[Batch]) -> None:
        """One step, into the record; one that is gone around takes no batch."""
        if step in self.around:
            self.keep(StepRecord(step=step + 1, metrics={"guard/around": 1.0}, time_ms=now_ms()))
            return
        made = self.make(step, batches)
        self.keep(made.record)
        if made.skip is not None:
            self.guarded.guard.skipped(made.skip)

    def keep(self, record: StepRecord) -> None:
        """Take a step into the record, once: after a rollback some are made again."""
        if record.step > self.recorded_steps:
            self.recorded_steps = record.step
            self.recent.append(record)
            self.unsent.append(record)

    def flush(self) -> None:
        """Hand what was measured to the driver; one worker speaks for all."""
        if self.rank == 0:
            ray.get(self.task.inbox.put.remote(self.unsent))
        self.unsent = []

    def tell(self, event: Event) -> None:
        """Let the driver know at once."""
        self.task.inbox.tell.remote(event)

    def save(self, done: int, *, wait: bool) -> None:
        """A checkpoint after `done` steps."""
        progress = Progress(
            step=done,
            records=tuple(self.recent),
            guard=self.guarded.guard.state(),
            validation=self.validator.saved() if self.validator else {},
            damaged=tuple(sorted(self.make.damaged)),
        )
        self.checkpoints.save(self.engine, progress, wait=wait)
