"""From the workers to the record: they drop what they measured, the driver shows and logs it."""

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import ray
from ray.exceptions import RayActorError
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from jobs.events import Event, Journal, num_restarts
from jobs.hangs import HangWatch, kill_worker
from jobs.inbox import Delivery, Pulse, StepRecord, open_inbox
from jobs.log_line import Pace, figures_of


class Record(Protocol):
    """Takes what is to be seen of a run."""

    def log_metrics(self, metrics: Mapping[str, float], *, step: int, time_ms: int) -> None:
        """Figures of one step."""

    def log_json(self, value: Any, file: str) -> None:
        """An artifact."""

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """What is true of the run by now."""

    def take_events(self) -> list[Event]:
        """What happened to the record since the last call."""


POLL_S = 0.5
TELL_S = 15.0


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
        record: Record,
        journal: Journal,
        console: Console,
        hang_timeout_s: float,
        trace: Callable[[Sequence[StepRecord]], None] | None = None,
        notice: Callable[[Event], None] | None = None,
    ) -> None:
        self.inbox: Any = None
        self.last: StepRecord | None = None
        self.pulses: Mapping[int, Pulse] = {}
        """The newest of every worker of this attempt."""
        self.journal = journal
        self.record = record
        self.watch = HangWatch(
            timeout_s=hang_timeout_s,
            finished=lambda: self.step,
            tell=self.tell,
            kill=kill_worker,
        )
        self._notice = notice
        self._waiting: deque[StepRecord] = deque()
        self._logged_steps = logged_steps
        self._trace = trace
        self._damaged: set[str] = set()
        self._draining = threading.Lock()
        self._telling = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
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
        self._heard_s = float("-inf")
        self._num_workers = 0

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

    def open_inbox(self) -> Any:
        """An inbox for the workers of a new attempt."""
        with self._draining:
            self.inbox, self.pulses = open_inbox(), {}
            self.watch.begin()
            return self.inbox

    def close_inbox(self) -> None:
        """Take what the inbox of an attempt that has ended still holds."""
        with self._draining:
            if self.inbox is None:
                return
            try:
                self._take(ray.get(self.inbox.drain.remote()))
                ray.kill(self.inbox)
            except RayActorError:
                pass  # what it held comes again with the newest checkpoint
            self.inbox = None

    def ask_to_leave(self, why: str) -> None:
        """Have the workers save at the end of their step, and leave."""
        if self.inbox is not None:
            self.inbox.leave.remote(why)

    @property
    def step(self) -> int:
        """Finished steps, as far as is known."""
        measured = self.last.step if self.last else self._logged_steps
        return max([measured, *(pulse.step for pulse in self.pulses.values())])

    def hears_workers(self, *, within_s: float) -> bool:
        """Whether any worker has given a sign of life lately."""
        return time.monotonic() - self._heard_s < within_s

    def tell(self, event: Event) -> None:
        """Show an event and put it on record."""
        with self._telling:
            self._progress.console.print(f"step {event.step}: {event.text}")
            self.journal.add(event)
            events = self.journal.events
            self.record.log_json([vars(each) for each in events], "events.json")
            self.record.set_tags({"restarts": num_restarts(events)})
        if self._notice is not None:
            self._notice(event)

    def _run(self) -> None:
        failing = False
        while not self._stop.wait(timeout=POLL_S):
            try:
                self._drain()
                failing = False
            except RayActorError:
                # the workers notice as well, and the next attempt has another inbox
                continue
            except Exception as error:
                # training goes on, and what could not be recorded waits for the next attempt
                if not failing:
                    self._progress.console.print(f"recording fails, and is tried again: {error}")
                failing = True

    def _drain(self) -> None:
        for event in self.record.take_events():
            self.tell(event)
        with self._draining:
            if self.inbox is not None:
                delivery = ray.get(self.inbox.drain.remote())
                self._take(delivery)
                self.watch(delivery)

    def _take(self, delivery: Delivery) -> None:
        self._waiting += delivery.records
        self._tell_size(delivery.pulses)
        self._log_load(delivery.pulses)
        self.pulses = {pulse.rank: pulse for pulse in delivery.pulses}
        alive = [delivery.silent_s[pulse.rank] for pulse in delivery.pulses if pulse.at != "done"]
        self._heard_s = max(self._heard_s, time.monotonic() - min(alive, default=float("inf")))
        for event in delivery.events:
            self.tell(event)
        if self._trace is not None:
            self._trace(self._waiting)
        while self._waiting:
            self._log(record := self._waiting[0])
            # a step that was gone around has no figures
            self.last = record if "loss" in record.metrics else self.last
            self._waiting.popleft()
        if self.last is not None and self.last.step != self._shown_step:
            self._show(self.last)

    def _log(self, record: StepRecord) -> None:
        new = self._new_damaged(record)
        if record.step > self._logged_steps:
            self.record.log_metrics(record.metrics, step=record.step, time_ms=record.time_ms)
            self._logged_steps = record.step
            for event in record.events:
                self.tell(event)
        if new:
            self.record.log_json(new, f"damaged_images/step-{record.step:07d}.json")

    def _tell_size(self, pulses: Sequence[Pulse]) -> None:
        """When an attempt has another number of workers than the last."""
        for pulse in pulses[:1]:
            before, self._num_workers = self._num_workers, pulse.num_workers
            if before not in (0, pulse.num_workers):
                self.tell(
                    Event(
                        kind="resized",
                        step=self.step,
                        text=f"resized: {pulse.num_workers} workers go on where {before} left off",
                        facts={"before": before, "now": pulse.num_workers},
                    )
                )

    def _log_load(self, pulses: Sequence[Pulse]) -> None:
        """How busy the nodes are, each figure once: a pulse is delivered until the next comes."""
        for pulse in pulses:
            known = self.pulses.get(pulse.rank)
            if pulse.figures and (known is None or known.figures != pulse.figures):
                figures = {
                    f"system/{pulse.hostname}/{name}": value
                    for name, value in pulse.figures.items()
                }
                now_ms = int(1000 * time.time())
                self.record.log_metrics(figures, step=pulse.step, time_ms=now_ms)

    def _new_damaged(self, record: StepRecord) -> Sequence[str]:
        """What is new, and new only: an image comes back every epoch."""
        new = sorted(set(record.damaged) - self._damaged)
        self._damaged.update(new)
        for each in new:
            self._progress.console.print(
                f"step {record.step}: image {each!r} is damaged, another one stands in for it"
            )
        return new

    def _show(self, record: StepRecord) -> None:
        figures = figures_of(record.metrics)
        left = self._pace.left(record.step, now_s=time.monotonic())
        self._progress.update(self._bar, completed=record.step, figures=figures)
        self._shown_step = record.step
        # without a terminal there is no bar to look at; a line now and then says as much
        if not self._progress.console.is_terminal and time.monotonic() - self._told_s > TELL_S:
            self._told_s = time.monotonic()
            self._progress.console.print(f"step {record.step}  {figures}  {left}".rstrip())
