"""A training's attempts: workers are started again until the last step, or until it is no use.

fails by a lost worker or store     again, from the newest checkpoint, after a growing pause
fails by a mistake                  raised at once
leaves since it was asked to        ends, or goes on with the workers that there are now
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from jobs.assignment import Assignment
from jobs.checkpoint_folders import FOLDER, files_by_step, finished
from jobs.errors import MachineFault
from jobs.events import Event
from jobs.failures import SILENCES, Failure, failure_of, pause_s
from jobs.monitor import Monitor
from jobs.runner import describe
from jobs.stopping import Stop, Stopped
from pipeline.storage import Location

SILENCE_S = 20.0
"""After a signal; workers that say nothing for so long will not save either."""

Fit = Callable[[Assignment], Any]
"""Runs one attempt; gives why the workers left before the last step, or nothing."""
Adapt = Callable[[BaseException, Assignment], Assignment | None]
"""What the next attempt is told after a failure that a change may get over; None for no change."""


def as_it_was(_error: BaseException, _assignment: Assignment) -> Assignment | None:
    """Every failure is met with the same assignment."""
    return None


@dataclass(kw_only=True)
class Attempts:
    """Everything that an attempt needs, and what came of those before it."""

    fit: Fit
    monitor: Monitor
    stop: Stop
    folder: str
    """Of the run."""
    max_failures: int
    """In a row, without a new checkpoint between them."""
    adapt: Adapt = as_it_was
    check: Callable[[], None] = lambda: None
    """Raises what ends the training at once."""
    num_failures: int = 0

    def run(self, assignment: Assignment) -> None:
        """Train to the last step.

        Raises:
            Stopped: a signal came; the workers have saved and left.
            Exception: what a worker raised and another attempt would meet again, or the last of
                too many failures.
        """
        while True:
            before = committed_step(self.folder)
            assignment = replace(assignment, inbox=self.monitor.open_inbox())
            # a signal that came before had nobody to ask
            self._raise_if_stopped(None)
            try:
                left = self._attempt(assignment)
            except Exception as error:
                self.monitor.close_inbox()
                self._raise_if_stopped(error)
                changed = self.adapt(error, assignment)
                if changed is None:
                    self._take(error, progressed=committed_step(self.folder) > before)
                    self.stop.pause(pause_s(self.num_failures))
                assignment = changed or assignment
            else:
                self.monitor.close_inbox()
                if not left:
                    return
                self.num_failures = 0
            self._raise_if_stopped(None)

    def _attempt(self, assignment: Assignment) -> str:
        def gives_up() -> bool:
            asked_s = time.monotonic() - self.stop.asked_s
            return asked_s > SILENCE_S and not self.monitor.hears_workers(within_s=SILENCE_S)

        return (
            self.stop.heeded(lambda: self.fit(assignment), gives_up=gives_up, check=self.check)
            or ""
        )

    def _raise_if_stopped(self, error: BaseException | None) -> None:
        if self.stop.signum is None:
            return
        step = committed_step(self.folder)
        saved = f"after step {step}, which is saved" if step else "before there was a checkpoint"
        self.monitor.tell(Event(kind="stopped", step=step, text=f"stopped {saved}"))
        raise Stopped(
            f"stopped {saved}; the same command goes on",
            signum=self.stop.signum,
        ) from error

    def _take(self, error: Exception, *, progressed: bool) -> None:
        """Count a failure and tell of it; raises what no other attempt would get over."""
        failure = failure_of(error)
        if failure is None:
            raise error
        self.num_failures = 1 if progressed else self.num_failures + 1
        if self.num_failures > self.max_failures:
            if not self.max_failures:
                raise error
            raise MachineFault(
                f"{describe(error)}; gave up after {self.num_failures} failures without a new "
                "checkpoint between them (workers.max_failures)"
            ) from error
        if not self.monitor.watch.found:
            # a worker that hung was reported before it was killed
            self.monitor.tell(self._event(failure))

    def _event(self, failure: Failure) -> Event:
        pulse = None if failure.rank is None else self.monitor.pulses.get(failure.rank)
        worker = "" if failure.rank is None else f"worker {failure.rank} "
        host = f"on {pulse.hostname} " if pulse else ""
        return Event(
            kind=failure.kind,
            step=self.monitor.step,
            text=f"{worker}{host}{failure.cause}: going on from the newest checkpoint",
            facts={
                "rank": failure.rank,
                "node": pulse.hostname if pulse else None,
                # all workers take a step together, and rank 0 has told of more than a pulse did
                "last_step": self.monitor.step,
                "cause": failure.cause,
            },
        )


def committed_step(folder: str) -> int:
    """The newest step that a run's folder has a whole checkpoint of; 0 without one.

    A folder that does not answer has none, for the moment.
    """
    try:
        return max(finished(files_by_step(Location.of(folder).child(FOLDER))), default=0)
    except SILENCES:
        return 0
