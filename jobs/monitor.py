"""From the workers to the record: they drop what they measured, the driver shows and logs it."""

import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from jobs.events import Event
from jobs.log_line import Pace, figures_of


class Log(Protocol):
    """Takes the figures of one step."""

    def __call__(self, metrics: Mapping[str, float], *, step: int) -> None:
        """Keep them."""


class LogDamaged(Protocol):
    """Takes the ids of images that were found damaged in one step."""

    def __call__(self, ids: Sequence[str], *, step: int) -> None:
        """Keep them."""


POLL_S = 0.5
TELL_S = 15.0


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """One training step as rank 0 measured it."""

    step: int
    metrics: Mapping[str, float]
    damaged: Sequence[str] = ()
    """Ids of images that cannot be read; others stood in for them."""
    events: Sequence[Event] = ()
    """What happened in this step."""


@ray.remote(num_cpus=0)
class Inbox:
    """Where rank 0 drops its records; lives on the driver's node and dies with the driver."""

    def __init__(self) -> None:
        self.records: list[StepRecord] = []

    def put(self, records: list[StepRecord]) -> None:
        """Take records from a worker."""
        self.records.extend(records)

    def drain(self) -> list[StepRecord]:
        """Hand over what came since the last call."""
        records, self.records = self.records, []
        return records


class Monitor:
    """Drains the inbox while training runs: logs every step once, moves the progress bar.

    Steps up to `logged_steps` are in the record already, from before a restart, and are not logged
    again.
    """

    def __init__(
        self,
        *,
        total_steps: int,
        logged_steps: int,
        log: Log,
        log_damaged: LogDamaged,
        console: Console,
    ) -> None:
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self.inbox = Inbox.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]
        self.last: StepRecord | None = None
        self._waiting: deque[StepRecord] = deque()
        self._logged_steps = logged_steps
        self._log = log
        self._log_damaged = log_damaged
        self._damaged: set[str] = set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._progress = Progress(
            TextColumn("train"),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f} steps"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
            console=console,
        )
        self._bar = self._progress.add_task("train", total=total_steps, figures="")
        self._pace = Pace(total_steps=total_steps)
        self._shown_step = 0
        self._told_s = 0.0

    def __enter__(self) -> "Monitor":
        self._progress.start()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        self._stop.set()
        self._thread.join()
        try:
            self._drain()
        except Exception:
            # what ended the training is the better reason
            if kind is None:
                raise
        finally:
            self._progress.stop()

    def _watch(self) -> None:
        failing = False
        while not self._stop.wait(timeout=POLL_S):
            try:
                self._drain()
                failing = False
            except Exception as error:
                # training goes on, and what could not be recorded waits for the next attempt
                if not failing:
                    self._progress.console.print(f"recording fails, and is tried again: {error}")
                failing = True

    def _drain(self) -> None:
        self._waiting += ray.get(self.inbox.drain.remote())
        while self._waiting:
            record = self._waiting[0]
            if record.step > self._logged_steps:
                self._log(record.metrics, step=record.step)
                self._logged_steps = record.step
            self._tell_damaged(record)
            self.last = self._waiting.popleft()
        if self.last is not None and self.last.step != self._shown_step:
            self._show(self.last)

    def _tell_damaged(self, record: StepRecord) -> None:
        """What is new, and new only: an image comes back every epoch."""
        new = sorted(set(record.damaged) - self._damaged)
        if new:
            self._log_damaged(new, step=record.step)
            self._damaged.update(new)
        for each in new:
            self._progress.console.print(
                f"step {record.step}: image {each!r} is damaged, another one stands in for it"
            )

    def _show(self, record: StepRecord) -> None:
        figures = figures_of(record.metrics)
        left = self._pace.left(record.step, now_s=time.monotonic())
        self._progress.update(self._bar, completed=record.step, figures=figures)
        self._shown_step = record.step
        # without a terminal there is no bar to look at; a line now and then says as much
        if not self._progress.console.is_terminal and time.monotonic() - self._told_s > TELL_S:
            self._told_s = time.monotonic()
            self._progress.console.print(f"step {record.step}  {figures}  {left}".rstrip())
